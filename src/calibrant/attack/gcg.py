"""GCG (greedy coordinate gradient): optimise an adversarial suffix until the model begins with a target
string.

Papers: Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models" (arXiv
2307.15043), algorithm 1, with nanoGCG's buffer and mellowmax. Where we depart from nanoGCG 0.3.0:

1. Suffix and request are tokenised together, and only candidates whose text tokenises back to their ids in
   the whole prompt compete; nanoGCG checks the suffix by itself. ``exact = true`` is its trajectory, step for
   step.
2. The search ends with a suffix after which greedy decoding produces the target string, when there is one;
   nanoGCG stops for any candidate and may return another.
3. The suffix is sent to the target as a *string*, and only the judge's verdict on the reply counts.
4. Special and added tokens are never sampled; where a vocabulary has fewer than ``top_k`` tokens, all are.
5. A draft model may pre-filter candidates (probe sampling, arXiv 2403.01251): faster, another trajectory.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.gcg"``; inputs target, goals, judge and, if the
target is not local weights itself, surrogate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.metrics import reach_rate
from calibrant.attack.engine.protocol import AskTarget, Attack, Compute, Computed, Episode, Tools
from calibrant.attack.engine.run import AttackResult, run_attack
from calibrant.attack.suffix.search import GCG, Found, Search, State, found, optimise, over, restored, wished
from calibrant.attack.suffix.slot import with_suffix
from calibrant.core import LM, CapabilityError, Chat, Goal, Judge, OpenLM, Quiet, Run, digest, technique
from calibrant.core.digest import canonical
from calibrant.data.rows import Goals

__all__ = ["ATTACK", "GCG", "Found", "gcg", "optimise"]


@technique(version=3)
def gcg(
    target: LM,
    goals: Goals,
    judge: Judge,
    surrogate: OpenLM | None = None,
    draft: OpenLM | None = None,
    config: GCG = GCG(),
    run: Run = Quiet(),
) -> AttackResult:
    """Optimise a suffix for every goal on ``surrogate``'s weights and send it to ``target``, once.

    Args:
        target: the attacked model.
        goals: the harmful requests.
        judge: decides whether a reply reaches its goal.
        surrogate: the model whose gradients are used; by default the target, if it has weights.
        draft: a smaller model with the surrogate's tokenizer, for probe sampling.
        config: see ``GCG``.
        run: tools.

    Raises:
        CapabilityError: there are no weights, or the draft has another tokenizer. InputError: goals over
        which a rate would mean nothing, a tokenizer that does not round-trip the suffix, a context that is
        too small, or a target that answers nothing but errors.
    """
    weights = _weights(target, surrogate)
    notes: dict[str, Found] = {}
    attack = ATTACK._replace(episode=partial(_episode, draft=draft, notes=notes))
    result = run_attack(
        attack, config, goals, Participants(target, judge, config.sampling, surrogate=weights), run
    )
    lines = [canonical(_line(goal, notes[goal.id], weights)) for goal in goals if goal.id in notes]
    run.artifact("suffixes.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    optimised = [notes[goal.id].reached if goal.id in notes else None for goal in goals]
    clusters = [goal.cluster for goal in goals]
    reached = reach_rate(optimised, clusters)
    return result.model_copy(
        update={
            "metrics": result.metrics | {"optimised_rate": reached},
            "caveats": (*result.caveats, *_caveats(config, draft)),
        }
    )


def _episode(
    goals: Sequence[Goal],
    config: GCG,
    tools: Tools,
    draft: OpenLM | None = None,
    notes: dict[str, Found] | None = None,
) -> Episode:
    goal, model = goals[0], tools.surrogate
    assert model is not None  # the driver has checked it
    chat, state = Chat.ask(goal.text), None
    while state is None or not over(state, config):
        first = 0 if state is None else len(state.losses)
        last = min(first + config.block, config.steps)
        block = partial(_block, model, goal, config, tools.seed, draft, state)
        stored = yield [Compute(f"gcg steps {first} to {last} of {goal.id}", block)]
        state = State.model_validate(stored[0]["state"])
        text = stored[0]["text"]
    if notes is not None:
        notes[goal.id] = Found(state.best, text, state.loss, state.losses, state.reached)
    yield [AskTarget(goal, with_suffix(chat, text))]


def _block(
    model: OpenLM, goal: Goal, config: GCG, seed: int, draft: OpenLM | None, state: State | None
) -> Computed:
    """A few steps from ``state``."""
    search = Search(model, Chat.ask(goal.text), wished(config.reply, goal), config, draft)
    generator = torch.Generator(search.scorer.device)
    if state is None:
        state = search.begin(generator.manual_seed(seed))
    else:
        restored(state, generator)
    for _ in range(config.block):
        if over(state, config):
            break
        state = search.step(state, generator)
    value = {"state": state.model_dump(mode="json"), "text": found(search.slot, state).text}
    return Computed(value, search.flops)


def _weights(target: LM, surrogate: OpenLM | None) -> OpenLM:
    if surrogate is not None:
        return surrogate
    if isinstance(target, OpenLM):
        return target
    raise CapabilityError(
        f"attack.gcg reads weights, and the target '{target.identity.name}' shows none",
        hint="give the input 'surrogate': local weights, another model's for transfer",
    )


def _line(goal: Goal, search: Found, model: OpenLM) -> dict[str, object]:
    """The stored line of a goal's suffix."""
    prompt = model.prompt_ids(with_suffix(Chat.ask(goal.text), search.text))
    row = {**search._asdict(), "goal": goal.id, "prompt_ids_digest": digest(prompt)}
    return {**row, "in_context": any(_at(prompt, search.ids))}


def _at(whole: Sequence[int], part: Sequence[int]) -> list[bool]:
    """For each place whether ``part`` stands there in ``whole``."""
    spots = range(len(whole) - len(part) + 1)
    return [tuple(whole[i : i + len(part)]) == tuple(part) for i in spots]


def _caveats(config: GCG, draft: OpenLM | None) -> tuple[str, ...]:
    caveats = [
        "optimised_rate says that the weights give the target string; only the judge's answer to the "
        "target's own reply says that a goal was reached",
        "a nonsense suffix is easily filtered by perplexity: success without a guard says little",
    ]
    if draft is not None:
        caveats.append("probe sampling is inexact: a draft model chose which candidates the surrogate read")
    if config.exact:
        caveats.append(
            "exact follows nanoGCG, so a suffix may be tokenised to other ids inside the whole prompt"
        )
    return tuple(caveats)


ATTACK = Attack("attack.gcg", "gradient", GCG, _episode, queries=lambda config: 1, access="weights")
