"""Ways to bring out what a model does not show, all on copies: a few examples, and noise on its weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from calibrant.core import Chat, InputError, OpenLM, digest
from calibrant.data.rows import Item
from calibrant.models.arm_run import ArmRun
from calibrant.models.branches import Branches, pack, padded_tokens, score, tokenised
from calibrant.models.fit import Fit, Plan, Share, batches_of, fit


class Lesson(NamedTuple):
    """How a copy is trained."""

    passes: int
    batch_size: int
    fit: Fit


def split(items: Sequence[Item], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Places of at least ``count`` items to train on, and of the others; no cluster is in both.

    Raises:
        InputError: not two clusters would be left to ask.
    """
    groups: dict[str, list[int]] = {}
    for at, item in enumerate(items):
        groups.setdefault(item.cluster or item.id, []).append(at)
    names = random.Random(f"sandbagging/{seed}").sample(sorted(groups), len(groups))
    taught: list[int] = []
    while names and len(taught) < count:
        taught += groups[names.pop()]
    if len(names) < 2:
        raise InputError(
            f"to train on {count} of {len(items)} items leaves {len(names)} subjects to ask",
            hint="give more items or clusters, or set 'elicit' lower; 0 trains on none",
        )
    return sorted(taught), sorted(at for name in names for at in groups[name])


def tuned(model: OpenLM, chats: Sequence[Chat], replies: Sequence[str], how: Lesson, run: ArmRun) -> OpenLM:
    """A copy of ``model``, fine-tuned to give these replies; loss on the reply's tokens alone.

    Raises:
        NumericalError: the loss became NaN or infinite.
    """
    copy = model.copy()
    prompts, answers = tokenised(model, chats, replies)
    device = next(copy.module.parameters()).device

    def rows(part: list[int]) -> Branches:
        return Branches([prompts[i] for i in part], [[answers[i]] for i in part])

    def loss(part: list[int], whole: list[int]) -> Share:
        scores = score(copy.module, pack(rows(part), shared=False, device=device))
        return Share(-scores.sums().sum() / sum(len(answers[i]) for i in whole))

    plan = Plan(
        batches_of(len(chats), how.batch_size, how.passes, run.seed),
        key=digest([model.identity.digest, list(how), list(chats), list(replies), run.seed]),
        costs=[len(p) + len(r) for p, r in zip(prompts, answers, strict=True)],
        size=lambda part: padded_tokens(rows(part), shared=False),
    )
    fit(copy.module, plan, loss, how.fit, run)
    return copy


def noised(model: OpenLM, scale: float, seed: int) -> OpenLM:
    """A copy with Gaussian noise on every matrix, of ``scale`` times that matrix's standard deviation."""
    copy = model.copy()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in copy.module.parameters():
            if weights.ndim >= 2:
                drawn = torch.randn(weights.shape, generator=generator)
                weights.add_((drawn * float(weights.float().std()) * scale).to(weights))
            weights.requires_grad_(False)
    return copy
