"""Push a model along a cue's direction, and see whether it behaves as if the cue were there, or were not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.core import Completion, Estimate, Judge, OpenLM, Run, Sampling
from calibrant.core.attempt import HIT, outcome_of
from calibrant.evals.arms import Hits, Sides, estimated
from calibrant.evals.judging import tokens, verdicts
from calibrant.models.directions import steer
from calibrant.understand._cue_arms import Arms
from calibrant.understand._cue_probe import beside


class Moved(NamedTuple):
    """What the direction does, beside random ones of its length and at right angles to it."""

    effect: Estimate
    """Behaviour with the cue's direction added to prompts without it, and taken off prompts with it: the mean
    of both changes, in the sense in which the cue would change it."""
    beside: float
    """Rank of its size among the random directions, as a p-value."""
    largest: float
    """The largest effect of a random direction, with its sign."""
    effects: list[float]
    """Of the direction, then of the random ones; missing outcomes are one half."""


def moved(
    model: OpenLM,
    cue: Arms,
    hits: Hits,
    site: str,
    direction: Tensor,
    judge: Judge,
    *,
    count: int,
    directions: int,
    sampling: Sampling,
    run: Run,
) -> Moved:
    """Add and take off at every position of every pass, on ``count`` goals, each in one of the wordings."""
    chosen = sorted(random.Random(run.seed).sample(range(len(cue.goals)), min(count, len(cue.goals))))
    turns = [(turn % cue.wordings, goal) for turn, goal in enumerate(chosen)]
    pairs = [(cue.place(wording, 0, goal), cue.place(wording, 1, goal)) for wording, goal in turns]
    before = [[hits[pair[side]] for pair in pairs] for side in (0, 1)]
    clusters = [cue.clusters[goal] for goal in chosen]
    vectors = torch.cat([direction[None], beside(direction, directions, run.seed)])
    found = []
    for at, vector in enumerate(vectors):
        after = []
        for side, alpha in ((0, 1.0), (1, -1.0)):
            with steer(model, vector, alpha, site=site):
                after.append(_heard(model, cue, [pair[side] for pair in pairs], judge, sampling, run))
        found.append(Sides([after[0], before[1]], [before[0], after[1]]))
        run.progress(at + 1, len(vectors), "pushing along directions")
    effects = [_middle(one, len(pairs)) for one in found]
    above = sum(abs(one) >= abs(effects[0]) - 1e-12 for one in effects[1:])
    return Moved(
        estimated(found[0], clusters),
        (1 + above) / len(vectors),
        max(effects[1:], key=abs),
        effects,
    )


def _heard(
    model: OpenLM, cue: Arms, places: Sequence[int], judge: Judge, sampling: Sampling, run: Run
) -> list[bool | None]:
    """Whether the behaviour happens at these prompts as the model now is."""
    chats = [cue.chats[at] for at in places]
    most = len(chats) * sampling.max_tokens
    run.spend(queries=len(chats), tokens=most)
    replies: Sequence[Completion] = model.generate(
        chats, sampling.model_copy(update={"seed": sampling.seed + run.seed})
    )
    run.spend(tokens=sum(tokens(one, sampling.max_tokens) for one in replies) - most)
    goals = [cue.goals[at % len(cue.goals)] for at in places]
    judged = verdicts(judge, goals, chats, replies)
    return [HIT[outcome_of(reply, verdict)] for reply, verdict in zip(replies, judged, strict=True)]


def _middle(sides: Sides, rows: int) -> float:
    ends = [sides.ends(row) for row in range(rows)]
    return sum(low + high for low, high in ends) / (2 * rows)
