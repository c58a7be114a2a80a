"""What every method that learns from its own replies needs: prompts in turn, scores, a step, a log."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from calibrant.core import Frozen, InputError, NumericalError, OpenLM, Reward, Run
from calibrant.data.parquet import write_columns
from calibrant.data.rows import Prompt, Prompts
from calibrant.maths.kl import ESTIMATORS, PENALTIES, AdaptiveKL, FixedKL, Unit
from calibrant.maths.shaping import Moments, missing_end
from calibrant.models.branches import Branches, pack, padded_tokens, score, shares
from calibrant.models.fit import Fit
from calibrant.models.generate import buckets
from calibrant.models.rollouts import Rollouts

Old = Literal["auto", "behaviour", "rescored"]
"""Where pi_old comes from."""
PASS = {True: 2048, False: 16_384}
"""Tokens in one pass without gradients, on a CPU (larger batches leave its caches) and elsewhere."""


class KL(Frozen):
    """How the policy is held near the model that it started from."""

    coef: float = Field(default=0.05, ge=0)
    """Reward given up for one nat; where there is a target, where the coefficient starts."""
    place: Literal["reward", "loss"] = "reward"
    """Take it off the reward of each token, or add it to the loss."""
    estimator: Literal["k1", "k2", "k3", "k3+"] = "k1"
    """In the reward k1, k2 or k3; in the loss k2 (the gradient of the KL), k3 (a biased one) or k3+ (the
    value of k3, the gradient of k2). k1 in the reward and k2 in the loss ask for the same."""
    target: float | None = Field(default=None, gt=0)
    """Steer the coefficient so that the KL comes here, in nats per ``unit``. None: it stays."""
    horizon: float = Field(default=10_000, gt=0)
    """With a target: replies over which the coefficient may change by a factor of about 1.2."""
    unit: Unit = "sequence"
    """With a target: nats of a whole reply (6 is common), or of a token (0.1 is)."""

    @model_validator(mode="after")
    def _fits_its_place(self) -> KL:
        known = ESTIMATORS if self.place == "reward" else PENALTIES
        if self.estimator not in known:
            why = "it has no gradient there" if self.estimator == "k1" else "its gradient has no place there"
            raise ValueError(f"'{self.estimator}' in the {self.place}: {why}; take one of {', '.join(known)}")
        if self.target is not None and self.coef == 0:
            raise ValueError("a coefficient of 0 cannot be steered to a target: it is multiplied")
        return self

    def controller(self) -> FixedKL | AdaptiveKL:
        """The coefficient at the start."""
        if self.target is None:
            return FixedKL(self.coef)
        return AdaptiveKL(self.coef, self.target, self.horizon, self.unit)


class Shaping(Frozen):
    """What becomes of a reply's score before it is learned from, in this order."""

    normalise: bool = False
    """Subtract the running mean of all scores so far and divide by their running standard deviation."""
    clip: float | None = Field(default=None, gt=0)
    """Hold scores within plus or minus this."""
    missing_end: float | None = Field(default=None, ge=0)
    """Penalty for a reply that was cut off before it ended. None: it is scored as it is."""
    missing_end_mode: Literal["subtract", "replace"] = "subtract"
    """Subtract the penalty (TRL), or put minus the penalty in place of the score (Huang et al.)."""
    whiten: bool = False
    """Divide the rewards of all tokens by their standard deviation; their mean stays."""

    def shaped(self, scores: Tensor, ended: Tensor, moments: Moments) -> Tensor:
        """Scores (M,) after all but the whitening; ``moments`` have seen these scores already."""
        if self.normalise:
            scores = moments.normalised(scores)
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        if self.missing_end is not None:
            replaced = self.missing_end_mode == "replace"
            scores = missing_end(scores, ended, self.missing_end, replace=replaced)
        return scores


def with_room(model: OpenLM, prompts: Prompts, max_tokens: int) -> list[Prompt]:
    """The prompts that leave room for ``max_tokens`` of reply; the others are left out whole.

    Raises:
        InputError: there are no prompts, or none leaves room.
    """
    where = prompts.source or "the input"
    if not prompts.rows:
        raise InputError(f"{where}: there are no rows", hint="check the data, or what was skipped")
    most = model.max_length
    kept = [row for row in prompts if most is None or len(model.prompt_ids(row.prompt)) + max_tokens <= most]
    if not kept:
        raise InputError(
            f"{where}: none of {len(prompts)} prompts leaves room for {max_tokens} tokens within {most}",
            hint="lower max_tokens, or take a model with a longer context",
        )
    return kept


def cycle(n: int, size: int, step: int, seed: int) -> list[int]:
    """Numbers of the ``size`` prompts of ``step``: passes over all n, each shuffled, one behind the other."""
    first = step * size
    passes = range(first // n, (first + size - 1) // n + 1)
    orders = {p: random.Random(f"prompts/{seed}/{p}").sample(range(n), n) for p in passes}
    return [orders[i // n][i % n] for i in range(first, first + size)]


def judged(reward: Reward, rolled: Rollouts) -> Rollouts:
    """``rolled`` with its scores, checked; what the reward itself raises is passed on.

    Raises:
        InputError: not one score a reply.
        NumericalError: a score is NaN or infinite.
    """
    scores, name = reward.score(rolled.chats, rolled.texts), reward.identity.name
    for what, found in (("scores", scores.mean), ("standard deviations", scores.std)):
        if found is not None and len(found) != len(rolled):
            raise InputError(
                f"the reward '{name}' gave {len(found)} {what} for {len(rolled)} replies",
                hint="return one number a reply, in the same order",
            )
    for number, value in enumerate(scores.mean):
        if not math.isfinite(value):
            raise NumericalError(
                f"the reward '{name}' gave {value} for the reply {rolled.texts[number][:80]!r}",
                hint="a reward must be a finite number for every reply, the empty one included",
            )
    return replace(rolled, scores=scores)


def check_micro_tokens(model: OpenLM, rows: Sequence[Prompt], samples: int, room: int, *fits: Fit) -> None:
    """Refuse, before anything is drawn, prompts whose ``samples`` replies may not fit one forward pass.

    Raises:
        InputError: a prompt with replies of ``room`` tokens is more than ``fit.micro_tokens``.
    """
    most = min((fit.micro_tokens for fit in fits if fit.micro_tokens is not None), default=None)
    if most is None:
        return
    lengths = [len(model.prompt_ids(row.prompt)) for row in rows]
    longest = max(range(len(rows)), key=lengths.__getitem__)
    whole = Branches([[0] * lengths[longest]], [[[0] * room] * samples])
    worst = padded_tokens(whole, shared=not shares(model.module))
    if worst > most:
        raise InputError(
            f"the prompt '{rows[longest].id}' with {samples} replies of up to {room} tokens takes {worst} in "
            f"one forward pass, more than fit.micro_tokens = {most}",
            hint=f"raise it to {worst}, or lower max_tokens or samples",
        )


def cuts(rolled: Rollouts, prompts: Sequence[int], shared: bool, budget: int | None) -> list[list[int]]:
    """Cut prompts into parts of at most ``budget`` tokens, padding included; one prompt with all its replies
    at least, which ``check_micro_tokens`` has seen to fit.
    """
    if budget is None:
        return [list(prompts)]
    asked, answered = rolled.of(prompts)
    costs = [
        padded_tokens(Branches([prompt], [replies]), shared=shared)
        for prompt, replies in zip(asked, answered, strict=True)
    ]
    return [[prompts[i] for i in rows] for rows in buckets(costs, budget)]


@torch.no_grad()
def read(module: nn.Module, rolled: Rollouts, bf16: bool = False) -> Tensor:
    """Log-probs (M, T) of the replies at the temperature of their draw, in nats; 0 beyond a reply."""
    device = next(module.parameters()).device
    shared, everything = not shares(module), range(len(rolled.branches.prompts))
    table = torch.zeros_like(rolled.behaviour, device=device)
    for part in cuts(rolled, everything, shared, PASS[device.type == "cpu"]):
        packed = pack(rolled.of(part), shared=shared, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = score(module, packed, temperature=rolled.temperature).padded()
        table[rolled.rows(part), : found.shape[1]] = found.float()
    return table


@dataclass
class ExampleLog:
    """One row a reply of every step, kept as tensors so that a checkpoint can hold them."""

    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def note(self, step: int, prompts: Sequence[int], rolled: Rollouts, **columns: Tensor) -> None:
        """Keep a step: ``prompts`` are the numbers of its prompts, ``columns`` hold (M,) numbers."""
        spelt = [text.encode("utf-8", "replace") for text in rolled.texts]
        found = {
            "step": torch.full((len(rolled),), step),
            "prompt": torch.tensor(prompts).repeat_interleave(rolled.samples),
            "text_bytes": torch.tensor([len(text) for text in spelt]),
            "reply_tokens": rolled.lengths,
            "ended": rolled.ended,
            "reward": rolled.rewards,
            **columns,
        }
        if rolled.scores is not None and rolled.scores.std is not None:
            found["disagreement"] = torch.tensor(rolled.scores.std)
        for name, value in found.items():
            self.columns.setdefault(name, []).append(value.cpu())
        letters = torch.frombuffer(bytearray(b"".join(spelt)) or bytearray(1), dtype=torch.uint8)
        self.columns.setdefault("text", []).append(letters[: sum(map(len, spelt))].clone())

    def tensors(self) -> dict[str, Tensor]:
        """All steps, one tensor a column."""
        return {name: torch.cat(values) for name, values in self.columns.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.columns = {name: [tensor] for name, tensor in tensors.items()}

    def write(self, run: Run, rows: Sequence[Prompt]) -> None:
        """Write artefact 'examples.parquet'."""
        table = self.tensors()
        letters, at = bytes(table.pop("text").tolist()), 0
        texts = []
        for n in table.pop("text_bytes").tolist():
            texts.append(letters[at : at + n].decode())
            at += n
        asked = [rows[i] for i in table.pop("prompt").tolist()]
        columns = {"step": table.pop("step").tolist(), "id": [row.id for row in asked]}
        columns |= {"prompt": [row.prompt.last_user for row in asked], "reply": texts}
        columns |= {name: table[name].tolist() for name in sorted(table)}
        write_columns(run.artifact("examples.parquet"), columns)
