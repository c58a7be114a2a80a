"""Shared parts of the RL methods: prompt order, sampling, scores, micro-batches, the log of examples."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from calibrant.core import (
    CapabilityError,
    InputError,
    NumericalError,
    OpenLM,
    Reward,
    Run,
    Sampling,
    Watcher,
    digest,
)
from calibrant.data.parquet import write_columns
from calibrant.data.rows import Prompt, Prompts
from calibrant.maths.logprobs import masked_sum
from calibrant.models.branches import Branches, pack, padded_tokens, score, shares
from calibrant.models.fit import Fit
from calibrant.models.generate import buckets
from calibrant.models.parallel import world
from calibrant.models.rollouts import Rollouts, roll
from calibrant.train._settings import Rounds

PASS = {True: 2048, False: 16_384}
"""Tokens in one pass without gradients, on a CPU (larger batches leave its caches) and elsewhere."""


def alone(name: str) -> None:
    """Raise CapabilityError where there are several processes."""
    if world().size > 1:
        raise CapabilityError(
            f"{name} learns in one process", hint="start it without a launcher; train.dpo takes several"
        )


def key(
    config: Rounds, run: Run, model: OpenLM, prompts: Prompts, reward: Reward, watcher: Watcher | None
) -> str:
    """What a checkpoint belongs to."""
    digests = [prompts.digest, model.identity.digest, reward.identity.digest]
    return digest([config, run.seed, *digests, watcher.identity.digest if watcher else ""])


def with_room(model: OpenLM, prompts: Prompts, max_tokens: int) -> list[Prompt]:
    """The prompts that leave room for ``max_tokens`` of reply; the others are left out.

    Raises:
        InputError: there are no prompts, or none leaves room.
    """
    where = prompts.source or "the input"
    if not prompts.rows:
        raise InputError(f"{where}: there are no rows", hint="check the data, or what was skipped")
    most = model.max_length
    rows = [row for row in prompts if most is None or len(model.prompt_ids(row.prompt)) + max_tokens <= most]
    if not rows:
        raise InputError(
            f"{where}: none of {len(prompts)} prompts leaves room for {max_tokens} tokens within {most}",
            hint="lower max_tokens, or take a model with a longer context",
        )
    return rows


def cycle(n: int, size: int, step: int, seed: int) -> list[int]:
    """Numbers of the ``size`` prompts of ``step``: passes over all n, each shuffled, one behind the other."""
    first = step * size
    passes = range(first // n, (first + size - 1) // n + 1)
    orders = {p: random.Random(f"prompts/{seed}/{p}").sample(range(n), n) for p in passes}
    return [orders[i // n][i % n] for i in range(first, first + size)]


def sampling(config: Rounds, seed: int, step: int) -> Sampling:
    """Sampling of a step's replies: a different seed each step, the same one when a step is repeated."""
    step_seed = int(digest(["rollouts", seed, step]), 16) % 2**31
    return Sampling(max_tokens=config.max_tokens, temperature=config.temperature, seed=step_seed)


def draw(
    policy: OpenLM, rows: Sequence[Prompt], config: Rounds, step: int, seed: int
) -> tuple[list[int], Rollouts]:
    """Numbers of the prompts of ``step``, and their sampled replies."""
    picked = cycle(len(rows), config.batch_size, step, seed)
    chats = [rows[i].prompt for i in picked]
    return picked, roll(policy, chats, config.samples, sampling(config, seed, step))


def minibatches(prompts: int, config: Rounds, seed: int, step: int) -> list[list[int]]:
    """Numbers of the prompts of every optimiser step of a round; each epoch is reshuffled.

    With fewer prompts than minibatches, some are empty and left out.
    """
    batches, parts = [], config.minibatches
    for epoch in range(config.epochs):
        order = random.Random(f"minibatches/{seed}/{step}/{epoch}").sample(range(prompts), prompts)
        edges = [prompts * i // parts for i in range(parts + 1)]
        batches += [order[start:stop] for start, stop in pairwise(edges) if stop > start]
    return batches


def clips(clip: float | None, clip_high: float | None) -> tuple[float, float]:
    """Clip range of the ratio below and above 1; infinite without a clip."""
    low = math.inf if clip is None else clip
    return low, low if clip_high is None else clip_high


def judged(reward: Reward, rolled: Rollouts) -> Rollouts:
    """``rolled`` with its scores, checked; what the reward itself raises is passed on.

    Raises:
        InputError: not one score a reply.
        NumericalError: a score is NaN or infinite.
    """
    scores, name = reward.score(rolled.chats, rolled.texts), reward.identity.name
    for what, numbers in (("scores", scores.mean), ("standard deviations", scores.std)):
        if numbers is not None and len(numbers) != len(rolled):
            raise InputError(
                f"the reward '{name}' gave {len(numbers)} {what} for {len(rolled)} replies",
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
    """Refuse, before sampling, prompts whose ``samples`` replies may not fit one forward pass.

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
    """Split prompts into parts of at most ``budget`` tokens, padding included; at least one prompt with all
    its replies, which ``check_micro_tokens`` has checked.
    """
    if budget is None:
        return [list(prompts)]
    prompt_ids, reply_ids = rolled.of(prompts)
    costs = [
        padded_tokens(Branches([prompt], [replies]), shared=shared)
        for prompt, replies in zip(prompt_ids, reply_ids, strict=True)
    ]
    return [[prompts[i] for i in rows] for rows in buckets(costs, budget)]


@torch.no_grad()
def read(module: nn.Module, rolled: Rollouts, bf16: bool = False) -> Tensor:
    """Log-probs (M, T) of the replies at their sampling temperature, in nats; 0 beyond a reply."""
    device = next(module.parameters()).device
    shared, everything = not shares(module), range(len(rolled.branches.prompts))
    table = torch.zeros_like(rolled.behaviour, device=device)
    for part in cuts(rolled, everything, shared, PASS[device.type == "cpu"]):
        packed = pack(rolled.of(part), shared=shared, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logprobs = score(module, packed, temperature=rolled.temperature).padded()
        table[rolled.rows(part), : logprobs.shape[1]] = logprobs.float()
    return table


def wide(table: Tensor, like: Tensor) -> Tensor:
    """A table (M, t) with as many columns as another, 0 in the new ones."""
    return pad(table, (0, like.shape[1] - table.shape[1]))


@dataclass(frozen=True)
class Round:
    """The rollouts of a round, before the update; tensors on the policy's device."""

    rolled: Rollouts
    """P prompts with K replies each, M = P K; with scores and KL."""
    mask: Tensor
    """(M, T) bool, True on the tokens of a reply."""
    old: Tensor
    """(M, T) ln pi_old of each token, nats."""
    reference: Tensor
    """(M, T) ln ref of each token, nats."""
    shaped: Tensor
    """(M,) scores after shaping."""
    coef: float
    """The KL coefficient of this round."""

    @property
    def k1(self) -> Tensor:
        """(M,) ln pi_old - ln ref of each reply, nats."""
        return masked_sum(self.old - self.reference, self.mask)

    def columns(self) -> dict[str, Tensor]:
        """What the log of examples shows of each reply."""
        return {
            "shaped_reward": self.shaped,
            "kl": self.k1,
            "logprob": masked_sum(self.old, self.mask),
            "ref_logprob": masked_sum(self.reference, self.mask),
        }


@dataclass
class ExampleLog:
    """One row a reply of every step, kept as tensors so that a checkpoint can hold them."""

    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def note(self, step: int, prompts: Sequence[int], rolled: Rollouts, **columns: Tensor) -> None:
        """Keep a step: ``prompts`` are the numbers of its prompts, ``columns`` hold (M,) numbers."""
        spelt = [text.encode("utf-8", "replace") for text in rolled.texts]
        entry = {
            "step": torch.full((len(rolled),), step),
            "prompt": torch.tensor(prompts).repeat_interleave(rolled.samples),
            "text_bytes": torch.tensor([len(text) for text in spelt]),
            "reply_tokens": rolled.lengths,
            "ended": rolled.ended,
            "reward": rolled.rewards,
            **columns,
        }
        if rolled.scores is not None and rolled.scores.std is not None:
            entry["disagreement"] = torch.tensor(rolled.scores.std)
        for name, value in entry.items():
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
        prompts = [rows[i] for i in table.pop("prompt").tolist()]
        columns = {"step": table.pop("step").tolist(), "id": [row.id for row in prompts]}
        columns |= {"prompt": [row.prompt.last_user for row in prompts], "reply": texts}
        columns |= {name: table[name].tolist() for name in sorted(table)}
        write_columns(run.artifact("examples.parquet"), columns)
