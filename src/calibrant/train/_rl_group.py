"""What RLOO, GRPO and online DPO share: groups of replies to one prompt, read, learned from and told of.

Each of the three has its loop in its own file, line for line beside that of the others. Here is what does not
tell them apart: reading a round's replies, cutting it into optimiser steps, and the words at the end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from calibrant.core import (
    CapabilityError,
    Estimate,
    Frozen,
    OpenLM,
    Reward,
    Run,
    Sampling,
    Watcher,
    digest,
    point,
    unknown,
)
from calibrant.data.rows import Prompt, Prompts
from calibrant.maths.logprobs import masked_sum
from calibrant.maths.policy_losses import PerToken, Window, token_mean
from calibrant.maths.rounding import alike, levelled
from calibrant.maths.shaping import masks
from calibrant.models.branches import pack, score, shares
from calibrant.models.lora import merged
from calibrant.models.open_model import OpenModel
from calibrant.models.parallel import world
from calibrant.models.rollouts import Rollouts
from calibrant.models.training_caveats import training_caveats
from calibrant.train._ppo_critic import wide
from calibrant.train._rl_common import Old, Shaping, cuts
from calibrant.train._rl_state import Learner, Student, descend, old_and_reference

Term = Callable[[Window, list[int]], tuple[Tensor, Mapping[str, Tensor]]]
"""(what an optimiser step holds, prompts of a part of it) -> the part's share of the loss, and of the log."""


@dataclass(frozen=True)
class Round:
    """The replies of a round and what is known of them before learning; tensors on the policy's device."""

    rolled: Rollouts
    """P prompts with K replies each, M = P K; with scores and KL."""
    mask: Tensor
    """(M, T) bool, True on the tokens of a reply."""
    old: Tensor
    """(M, T) ln pi_old of each token, nats."""
    reference: Tensor
    """(M, T) ln ref of each token, nats."""
    shaped: Tensor
    """(M,) float64 scores after shaping. Their float32 values are exact here, and so is a mean of equals."""
    coef: float
    """The KL coefficient of this round."""

    @property
    def grouped(self) -> Tensor:
        """(P, K) shaped scores, a prompt a row."""
        return self.shaped.view(-1, self.rolled.samples)

    @property
    def k1(self) -> Tensor:
        """(M,) ln pi_old - ln ref of each reply, nats."""
        return masked_sum(self.old - self.reference, self.mask)

    def only_ended(self) -> Round:
        """This round, but no token of a reply that was cut off counts."""
        return replace(self, mask=self.mask & self.rolled.ended.to(self.mask.device)[:, None])

    def columns(self) -> dict[str, Tensor]:
        """What the log of examples shows of each reply."""
        return {
            "shaped_reward": self.shaped,
            "kl": self.k1,
            "logprob": masked_sum(self.old, self.mask),
            "ref_logprob": masked_sum(self.reference, self.mask),
        }

    def summary(self) -> dict[str, float]:
        """What is logged of the round before learning; keys are TRL's where the numbers are."""
        tokens, scores = self.mask.sum(), self.rolled.scores
        surprise = -masked_sum(self.old, self.mask)
        kept = {
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
            kept["disagreement"] = torch.tensor(scores.std).mean()
        return {name: float(value) for name, value in kept.items()} | {"kl_coef": self.coef}


def known(learner: Learner, rolled: Rollouts, model: OpenLM, shaping: Shaping, pi_old: Old = "auto") -> Round:
    """Read a round's replies; scores of a prompt that differ by no more than rounding are made equal."""
    old, reference = old_and_reference(learner.students["policy"], rolled, model, pi_old)
    mask = masks(rolled.lengths.to(old.device), old.shape[1], after=False).tokens
    scores = levelled(rolled.rewards.view(-1, rolled.samples)).flatten().to(old.device)
    ended = rolled.ended.to(old.device)
    learner.moments = learner.moments.after(scores)
    shaped = shaping.shaped(scores, ended, learner.moments).double()
    rolled = replace(rolled, kl=masked_sum(old - reference, mask).cpu())
    return Round(rolled, mask, old, reference, shaped, learner.controller.coef)


def logprobs(module: nn.Module, rolled: Rollouts, part: Sequence[int], like: Tensor) -> Tensor:
    """(m, T) ln pi of the replies to some prompts, as wide as ``like``, 0 beyond a reply; gradients flow."""
    packed = pack(rolled.of(part), shared=not shares(module), device=like.device)
    return wide(score(module, packed, temperature=rolled.temperature).padded(), like)


def minibatches(prompts: int, epochs: int, parts: int, where: str) -> list[list[int]]:
    """Numbers of the prompts of every optimiser step: ``parts`` an epoch, each epoch shuffled anew.

    With fewer prompts than parts, some parts are empty and left out. ``where`` says which round it is.
    """
    found = []
    for epoch in range(epochs):
        order = random.Random(f"minibatches/{where}/{epoch}").sample(range(prompts), prompts)
        edges = [prompts * i // parts for i in range(parts + 1)]
        found += [order[start:stop] for start, stop in pairwise(edges) if stop > start]
    return found


def learn(
    student: Student, found: Round, batches: list[list[int]], term: Term, longest: int = 1
) -> dict[str, float]:
    """Take one optimiser step on each batch of prompts; returns the means of what they showed.

    Args:
        student: the policy, its learning rate set.
        found: the replies, and which of their tokens count.
        batches: numbers of prompts, one list an optimiser step.
        term: the share of a part.
        longest: most tokens of a reply, for losses that divide by it.
    """
    shared, seen = not shares(student.module), dict[str, list[float]]()
    for number, chosen in enumerate(batches):
        parts = cuts(found.rolled, chosen, shared, student.fit.micro_tokens)
        mine = found.rolled.rows(chosen)
        tokens = max(1, int(found.mask[mine].sum()))  # none where every reply of the step is masked
        loss = partial(term, Window(tokens, len(mine), longest, len(parts)))
        for name, value in descend(student, parts, loss, f"update {number} of a round").items():
            seen.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in seen.items()}
    if "logprob_mismatch" in seen:  # the first update met the very weights that drew
        means["logprob_mismatch"] = seen["logprob_mismatch"][0]
    return means | {"updates": len(batches), "lr": student.lr}


def moved(
    found: Round, rows: Sequence[int], new: Tensor, out: PerToken, advantages: Tensor, window: Window
) -> dict[str, Tensor]:
    """Shares of what is logged of an update: clips taken below and above, and how far pi is from pi_old.

    ``new`` is (m, T); ``out`` and ``advantages`` are (m, T), or (m, 1) for ratios of whole replies.
    """
    mask, old = found.mask[rows], found.old[rows]
    drawn, apart = found.rolled.behaviour[rows].to(old.device), new.detach() - old
    whole = out.clipped.shape[1] == 1 < new.shape[1]
    of = torch.ones_like(out.clipped) if whole else mask
    units = window._replace(tokens=window.sequences) if whole else window
    sides = {"low": out.clipped & (advantages < 0), "high": out.clipped & (advantages > 0)}
    return {
        **{f"clip_ratio/{side}_mean": token_mean(c.float(), of, units) for side, c in sides.items()},
        "clip_ratio/region_mean": token_mean(out.clipped.float(), of, units),
        "policy/approxkl_avg": token_mean(0.5 * apart**2, mask, window),
        "logprob_mismatch": token_mean((new.detach() - drawn).abs(), mask, window),
    }


def clips(clip: float | None, clip_high: float | None) -> tuple[float, float]:
    """How far below and above 1 the ratio counts; infinite where there is no clip."""
    low = math.inf if clip is None else clip
    return low, low if clip_high is None else clip_high


def contradictions(batch_size: int, minibatches: int) -> list[str]:
    """What is wrong with the settings that all three have, a sentence each."""
    if minibatches > batch_size:
        return [f"{minibatches} minibatches cannot be cut from {batch_size} prompts"]
    return []


def sampling(max_tokens: int, temperature: float, seed: int, step: int) -> Sampling:
    """How the replies of a step are drawn: another draw each step, the same one whenever it is repeated."""
    drawn = int(digest(["rollouts", seed, step]), 16) % 2**31
    return Sampling(max_tokens=max_tokens, temperature=temperature, seed=drawn)


def alone(name: str) -> None:
    """Raise CapabilityError where there are several processes."""
    if world().size > 1:
        raise CapabilityError(
            f"{name} learns in one process", hint="start it without a launcher; train.dpo takes several"
        )


def key(
    config: Frozen, run: Run, model: OpenLM, prompts: Prompts, reward: Reward, watcher: Watcher | None
) -> str:
    """What a checkpoint belongs to."""
    seen = [prompts.digest, model.identity.digest, reward.identity.digest]
    return digest([config, run.seed, *seen, watcher.identity.digest if watcher else ""])


def saved(
    name: str, model: OpenLM, policy: OpenLM, learner: Learner, rows: Sequence[Prompt], run: Run
) -> OpenLM:
    """Write what a run leaves: 'model', 'examples.parquet' and, where it was watched, 'watch.json'."""
    # Named anew: under the old identity it would pass for the model that came in.
    tuned = OpenModel.from_module(
        merged(policy).module, policy.tokenizer, f"{model.identity.name} after {name}"
    )
    tuned.save(run.artifact("model"))
    if learner.watch is not None:
        learner.watch.write(run)
    learner.examples.write(run, rows)
    return tuned


def metrics(learner: Learner, kept: int, given: int, **more: tuple[str, str]) -> dict[str, Estimate]:
    """What the log says of the first and of the last 10 steps.

    ``kept`` of ``given`` prompts left room for a reply; ``more`` is name = (key of the log, unit).
    """
    rows = learner.rows
    found = {"steps": point(len(rows), unit="steps taken")}
    wanted = {
        "reward_first": ("reward", "reward"),
        "reward_last": ("reward", "reward"),
        "kl_last": ("objective/kl", "nats a reply (k1)"),
        "entropy_last": ("objective/entropy", "nats a reply"),
        "ended_last": ("ended", "share of replies"),
        **more,
    }
    for name, (column, unit) in wanted.items():
        some = rows[:10] if name.endswith("_first") else rows[-10:]
        unit = f"{unit}, {'first' if name.endswith('_first') else 'last'} 10 steps"
        numbers = [row[column] for row in some if column in row]
        if numbers:
            found[name] = point(sum(numbers) / len(numbers), unit=unit)
        else:
            found[name] = unknown(f"no step showed {column}", n=max(1, len(some)), unit=unit)
    found["dropped_for_length"] = point(1 - kept / given, unit="share of rows", n=given)
    return found


def caveats(learner: Learner, model: OpenLM, stopped: bool) -> tuple[str, ...]:
    """What a result of any of the three does not show, and what the reader must know of this one."""
    said = [
        "the reward is what was optimised: a higher one does not show that replies are better",
        "numbers are of the replies that were learned from, drawn by the policy before each step",
    ]
    late, watch = learner.rows[-10:], learner.watch
    idle = sum(row["frac_reward_zero_std"] for row in late) / max(1, len(late))
    if idle > 0.9:
        said.append(
            f"in the last {len(late)} steps {100 * idle:.0f} % of the prompts had replies of one score: "
            "nothing was left to learn from, be it that all were good or that all were bad (see reward_last)"
        )
    if watch is None:
        said.append("nobody watched: whether the true quality rose with the reward was not looked at")
    else:
        said.append(watch.told(stopped, len(learner.rows)))
    policy = learner.students["policy"]
    return (*said, *training_caveats(policy.fit.bf16, model.module, policy.module))
