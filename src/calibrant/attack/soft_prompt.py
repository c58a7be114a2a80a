"""Soft-prompt (embedding-space) attack: an upper bound on suffix attacks, with vectors in place of tokens.

Papers: Schwinn et al. 2024, "Soft Prompt Threats: Attacking Safety Alignment and Unlearning in Open-Source
LLMs through the Embedding Space" (arXiv 2402.09063); Lester et al. 2021 (arXiv 2104.08691) for the method.

1. Adam optimises the embeddings of a suffix until the model begins with the target string.
2. Nobody can send embeddings through a chat: the result is no attempt, enters no campaign, and its rate is
   not called ASR. It bounds suffixes of as many tokens, as far as the optimiser converges.
3. The reply is generated from the vectors by the model itself, and judged as usual.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.soft_prompt"``; inputs target, goals, judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from calibrant.attack.engine.metrics import check_goals, reach_rate
from calibrant.attack.suffix.embedded import speak
from calibrant.attack.suffix.scorer import Candidates
from calibrant.attack.suffix.search import wished
from calibrant.attack.suffix.slot import in_context
from calibrant.core import (
    Chat,
    Completion,
    Estimate,
    Frozen,
    Goal,
    Judge,
    NumericalError,
    OpenLM,
    Quiet,
    Result,
    Run,
    Verdict,
    digest,
    point,
    technique,
)
from calibrant.core.digest import canonical
from calibrant.data.rows import Goals
from calibrant.evals.judging import verdicts
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.loading import stop_ids

_HIT = {"yes": True, "no": False, "unknown": None}


class SoftPrompt(Frozen):
    """The optimisation."""

    reply: str = Field(default="sure, here is how to do it:", min_length=1)
    """Target string that the reply should begin with; {request} is the goal's text, {0}, {1}, ... its
    spans."""
    suffix: str = Field(default=" x" * 20, min_length=1)
    """After the request: its tokens' embeddings are the initial vectors."""
    steps: int = Field(default=200, ge=0)
    """Steps of Adam."""
    lr: float = Field(default=0.1, gt=0)
    """Adam's step, as a share of the root mean square of the model's embeddings."""
    stop: bool = True
    """Stop when greedy decoding produces the target string."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of a generated reply; it is greedy."""


class TunedReply(Frozen):
    """The stored result of one goal."""

    goal: str
    """Its id."""
    key: str
    """Digest of goal, model and settings."""
    completion: Completion
    """The model's reply to the vectors."""
    verdict: Verdict
    """The judge's answer."""
    before: float
    """Loss of the target string before the first step."""
    loss: float
    """Loss at the end."""
    reached: bool
    """Whether greedy decoding says the reply."""
    flops: float
    """Floating-point operations, about."""


class SoftPromptResult(Result):
    """The upper bound, overall and by category."""


class Tuned(NamedTuple):
    """A suffix of vectors."""

    vectors: Tensor
    """(n, D)."""
    losses: tuple[float, ...]
    """Before each step, and at the end."""
    loss: float
    """That of ``vectors``: the lowest, or the lowest that reached the reply."""
    reached: bool
    """Whether greedy decoding says the reply."""


@technique(version=3)
def soft_prompt(
    target: OpenLM, goals: Goals, judge: Judge, config: SoftPrompt = SoftPrompt(), run: Run = Quiet()
) -> SoftPromptResult:
    """Optimise vectors for every goal, generate the replies, and judge them.

    Raises:
        InputError: goals over which a rate would mean nothing, or a suffix or reply that cannot be used.
        NumericalError: a loss became NaN or infinite.
    """
    check_goals(goals, ())
    log = run.work / "soft_prompts.jsonl"
    by = digest([config, target.identity.digest, judge.identity.digest])
    by_key = _stored(log)
    rows = []
    for number, goal in enumerate(goals):
        run.progress(number, len(goals), f"tuning vectors for {goal.id}")
        key = digest([goal, by])
        if key not in by_key:
            run.spend(queries=1, tokens=config.max_tokens)
            by_key[key] = _attack_goal(target, goal, judge, config, key)
            with log.open("ab") as out:
                out.write(canonical(by_key[key]) + b"\n")
            run.spend(queries=-1, tokens=-config.max_tokens)
        run.spend(queries=1, tokens=len(by_key[key].completion.ids or ()), flops=by_key[key].flops)
        rows.append(by_key[key])
    run.artifact("soft_prompts.jsonl").write_bytes(b"".join(canonical(one) + b"\n" for one in rows))
    return SoftPromptResult(metrics=_metrics(goals, rows), caveats=_caveats(judge))


def tune(scorer: Candidates, start: Tensor, config: SoftPrompt) -> Tuned:
    """Optimise vectors from ``start`` (n, D) until the target of the scorer's frame is likely.

    Raises:
        NumericalError: a loss became NaN or infinite.
    """
    table: Tensor = scorer.table.weight
    vectors = start.detach().clone()[None]
    size = float(table.float().pow(2).mean().sqrt())
    optimiser = torch.optim.Adam([vectors], lr=config.lr * size)
    losses = list[float]()
    best = Tuned(vectors[0], (), float("inf"), False)
    for step in range(config.steps + 1):
        loss, reached, vectors.grad = scorer.flow(vectors.requires_grad_())
        losses.append(float(loss))
        if not losses[-1] < float("inf"):
            raise NumericalError(f"the loss became {losses[-1]} at step {step}", hint="lower 'lr'")
        # What says the reply counts more than a lower loss that does not.
        if (not reached, losses[-1]) < (not best.reached, best.loss):
            best = Tuned(vectors.detach()[0].clone(), (), losses[-1], reached)
        if step == config.steps or (config.stop and reached):
            break
        optimiser.step()
    return best._replace(losses=tuple(losses))


def _attack_goal(model: OpenLM, goal: Goal, judge: Judge, config: SoftPrompt, key: str) -> TunedReply:
    chat = Chat.ask(goal.text)
    slot = in_context(model, chat, config.suffix, wished(config.reply, goal))
    scorer = Candidates(model.module, slot.frame)
    tuned = tune(scorer, scorer.table(torch.tensor(slot.ids, device=scorer.device)), config)
    prompt = torch.cat([scorer.table(scorer.before), tuned.vectors, scorer.table(scorer.after)]).detach()
    tokens = ChatTokens(model.tokenizer, stop_ids(model.module))
    room = config.max_tokens if model.max_length is None else model.max_length - len(prompt)
    output = speak(model.module, prompt, min(room, config.max_tokens), tokens.stop_ids)
    spelt = output.ids[:-1] if output.stop == "eos" else output.ids
    parts = tokens.parted(spelt, tokens.prompt_text(chat), chat)
    completion = Completion(
        text=parts.reply,
        reasoning=parts.reasoning,
        ids=output.ids,
        logprobs=output.logprobs,
        stop=output.stop,
        error="the logits became NaN or infinite" if output.stop == "error" else None,
    )
    (verdict,) = verdicts(judge, [goal], [chat], [completion])
    return TunedReply(
        goal=goal.id,
        key=key,
        completion=completion,
        verdict=verdict,
        before=tuned.losses[0],
        loss=tuned.loss,
        reached=tuned.reached,
        flops=scorer.flops + 2 * scorer.size * (len(prompt) + len(output.ids)),
    )


def _stored(log: Path) -> dict[str, TunedReply]:
    """What an earlier try has written down; a line that a kill cut short is asked again."""
    if not log.is_file():
        return {}
    whole = [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    log.write_bytes(b"".join(whole))
    return {one.key: one for one in map(TunedReply.model_validate_json, whole)}


def _metrics(goals: Goals, rows: Sequence[TunedReply]) -> dict[str, Estimate]:
    hits = {one.goal: _HIT[one.verdict.answer] for one in rows}

    def over(part: Sequence[Goal]) -> Estimate:
        return reach_rate([hits[goal.id] for goal in part], [goal.cluster for goal in part])

    metrics = {"upper_bound_success": over(tuple(goals))}
    for category in sorted({goal.category for goal in goals}):
        metrics[f"upper_bound_success/{category}"] = over([g for g in goals if g.category == category])
    reached = [one.reached for one in rows]
    clusters = [goal.cluster for goal in goals]
    metrics["optimised_rate"] = reach_rate(reached, clusters)
    for name, values in (("before", [one.before for one in rows]), ("after", [one.loss for one in rows])):
        metrics[f"loss_{name}"] = point(sum(values) / len(values), unit="nats a token", n=len(values))
    return metrics


def _caveats(judge: Judge) -> tuple[str, ...]:
    caveats = [
        "embeddings cannot be sent through a chat, so this is not an attack success rate",
        "it bounds a suffix of as many tokens from above only as far as the optimiser gets",
        "nearly every open model can be steered so: a high rate says little about its training",
    ]
    if judge.calibration != "exact":
        caveats.append(f"judged by '{judge.identity.name}', which is {judge.calibration}")
    return tuple(caveats)
