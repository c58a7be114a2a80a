"""Shared by RLOO, GRPO and online DPO: groups of replies to one prompt, and updates on them.

GRPO and RLOO have one loop, ``train``: they differ in their advantages and in their loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.core import OpenLM, Reward, Run, Watcher
from calibrant.data.rows import Prompts
from calibrant.maths.logprobs import masked_sum
from calibrant.maths.policy_losses import PerToken, Window, token_mean
from calibrant.maths.rounding import alike, levelled
from calibrant.maths.shaping import masks
from calibrant.models.branches import pack, score, shares
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.lora import adapted
from calibrant.models.rollouts import Rollouts
from calibrant.models.template_check import check_trainable
from calibrant.train._rl_common import (
    Round,
    alone,
    check_micro_tokens,
    cuts,
    draw,
    judged,
    key,
    minibatches,
    wide,
    with_room,
)
from calibrant.train._rl_results import caveats, metrics, saved
from calibrant.train._rl_state import Learner, Student, descend, old_and_reference, watched
from calibrant.train._settings import Grouped, Old, Shaping

Term = Callable[[Window, list[int]], tuple[Tensor, Mapping[str, Tensor]]]
"""(what an optimiser step holds, prompts of a part of it) -> the part's share of the loss, and of the log."""


@dataclass(frozen=True)
class GroupRound(Round):
    """A round whose scores are float64: their float32 values are exact there, and so is a mean of equals."""

    @property
    def grouped(self) -> Tensor:
        """(P, K) shaped scores, a prompt a row."""
        return self.shaped.view(-1, self.rolled.samples)

    def only_ended(self) -> GroupRound:
        """This round, with the tokens of truncated replies masked."""
        return replace(self, mask=self.mask & self.rolled.ended.to(self.mask.device)[:, None])

    def summary(self) -> dict[str, float]:
        """What is logged of the round before learning; keys are TRL's where the numbers are."""
        tokens, scores = self.mask.sum(), self.rolled.scores
        surprise = -masked_sum(self.old, self.mask)
        means = {
            "reward": self.rolled.rewards.mean(),
            "reward_std": self.rolled.rewards.std(),
            "frac_reward_zero_std": alike(self.grouped).double().mean(),
            "kl": self.k1.sum() / tokens,
            "objective/kl": self.k1.mean(),
            "entropy": surprise.sum() / tokens,
            "objective/entropy": surprise.mean(),
            "completions/mean_length": tokens / len(self.rolled),
            "ended": self.rolled.ended.float().mean(),
        }
        if scores is not None and scores.std is not None:
            means["disagreement"] = torch.tensor(scores.std).mean()
        return {name: float(value) for name, value in means.items()} | {"kl_coef": self.coef}


def train(
    name: str,
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None,
    config: Grouped,
    run: Run,
    advantages: Callable[[GroupRound, Any], Tensor],
    term: Callable[[Student, GroupRound, Tensor, Any], Term],
    ended_only: bool = False,
    longest: int = 1,
    **more: tuple[str, str],
) -> dict[str, Any]:
    """Fine-tune a copy of ``model`` on groups of its own replies; returns the fields of the result.

    Args:
        name, model, prompts, reward, watcher, config, run: those of the technique.
        advantages: (round, config) -> (M,), of every reply of the round.
        term: (policy, round, advantages, config) -> the loss of an update.
        ended_only: mask the tokens of truncated replies in the loss.
        longest: see ``learn``.
        more: see ``metrics``.
    """
    alone(f"train.{name}")
    check_trainable(model, config.fit.any_template)
    rows = with_room(model, prompts, config.max_tokens)
    check_micro_tokens(model, rows, config.samples, config.max_tokens, config.fit)
    policy = adapted(model.copy(), config.lora, run.seed)
    student = Student(policy.module, config.fit)
    learner = Learner({"policy": student}, config.kl.controller(), watched(watcher, student))
    stopped = False
    store = Checkpoint(run.work / f"{name}.safetensors", key(config, run, model, prompts, reward, watcher))
    for step in range(learner.resume(store, run), config.steps):
        picked, drawn = draw(policy, rows, config, step, run.seed)
        learner.spend(drawn.tokens * (1 + config.epochs), run)
        round_ = known(learner, judged(reward, drawn), model, config.shaping, config.old_logprobs)
        credit = advantages(round_, config)
        learner.examples.note(step, picked, round_.rolled, **round_.columns(), advantage=credit)
        if stopped := learner.stops(step, policy, round_.rolled, every=config.watch_every):
            break
        student.pace(step, config.steps)
        batches = minibatches(len(picked), config, run.seed, step)
        lesson = round_.only_ended() if ended_only else round_
        loss = term(student, lesson, credit, config)
        with learner.learning():
            stats = learn(student, lesson, batches, loss, longest)
        learner.finish(step, config.steps, round_, {**round_.summary(), **stats}, store, run)
    return {
        "model": saved(name, model, policy, learner, rows, run),
        "metrics": metrics(learner, len(rows), len(prompts), **more),
        "caveats": caveats(learner, model, stopped),
    }


def known(
    learner: Learner, rolled: Rollouts, model: OpenLM, shaping: Shaping, pi_old: Old = "auto"
) -> GroupRound:
    """Compute a round's log-probs; scores of a prompt that differ only by rounding are made equal."""
    old, reference = old_and_reference(learner.students["policy"], rolled, model, pi_old)
    mask = masks(rolled.lengths.to(old.device), old.shape[1], after=False).tokens
    scores = levelled(rolled.rewards.view(-1, rolled.samples)).flatten().to(old.device)
    ended = rolled.ended.to(old.device)
    learner.moments = learner.moments.after(scores)
    shaped = shaping.shaped(scores, ended, learner.moments).double()
    rolled = replace(rolled, kl=masked_sum(old - reference, mask).cpu())
    return GroupRound(rolled, mask, old, reference, shaped, learner.controller.coef)


def logprobs(module: nn.Module, rolled: Rollouts, part: Sequence[int], like: Tensor) -> Tensor:
    """(m, T) ln pi of the replies to some prompts, as wide as ``like``, 0 beyond a reply; gradients flow."""
    packed = pack(rolled.of(part), shared=not shares(module), device=like.device)
    return wide(score(module, packed, temperature=rolled.temperature).padded(), like)


def learn(
    student: Student, round_: GroupRound, batches: list[list[int]], term: Term, longest: int = 1
) -> dict[str, float]:
    """Take one optimiser step on each batch of prompts; returns the means of their metrics.

    Args:
        student: the policy, its learning rate set.
        found: the replies, and which of their tokens count.
        batches: numbers of prompts, one list an optimiser step.
        term: the share of a part.
        longest: most tokens of a reply, for losses that divide by it.
    """
    shared, logged = not shares(student.module), dict[str, list[float]]()
    for number, chosen in enumerate(batches):
        parts = cuts(round_.rolled, chosen, shared, student.fit.micro_tokens)
        mine = round_.rolled.rows(chosen)
        tokens = max(1, int(round_.mask[mine].sum()))  # none where every reply of the step is masked
        loss = partial(term, Window(tokens, len(mine), longest, len(parts)))
        for name, value in descend(student, parts, loss, f"update {number} of a round").items():
            logged.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in logged.items()}
    if "logprob_mismatch" in logged:  # the first update met the very weights that drew
        means["logprob_mismatch"] = logged["logprob_mismatch"][0]
    return means | {"updates": len(batches), "lr": student.lr}


def moved(
    round_: GroupRound, rows: Sequence[int], new: Tensor, out: PerToken, advantages: Tensor, window: Window
) -> dict[str, Tensor]:
    """Parts of an update's logged metrics: clip fractions below and above, and the KL of pi from pi_old.

    ``new`` is (m, T); ``out`` and ``advantages`` are (m, T), or (m, 1) for ratios of whole replies.
    """
    mask, old = round_.mask[rows], round_.old[rows]
    behaviour, apart = round_.rolled.behaviour[rows].to(old.device), new.detach() - old
    whole = out.clipped.shape[1] == 1 < new.shape[1]
    of = torch.ones_like(out.clipped) if whole else mask
    units = window._replace(tokens=window.sequences) if whole else window
    sides = {"low": out.clipped & (advantages < 0), "high": out.clipped & (advantages > 0)}
    return {
        **{f"clip_ratio/{side}_mean": token_mean(c.float(), of, units) for side, c in sides.items()},
        "clip_ratio/region_mean": token_mean(out.clipped.float(), of, units),
        "policy/approxkl_avg": token_mean(0.5 * apart**2, mask, window),
        "logprob_mismatch": token_mean((new.detach() - behaviour).abs(), mask, window),
    }
