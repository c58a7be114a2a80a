"""Walks of a campaign: one attack on one goal (or on all of them), once or several times over."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from calibrant.attack.engine.budget import NOTHING, Spent
from calibrant.attack.engine.protocol import Ask, Attack, Move, Tools, Walk
from calibrant.core import LM, Frozen, Goal, Judge, OpenLM, Sampling, digest
from calibrant.data.rows import Goals


class Cast(NamedTuple):
    """Who takes part."""

    target: LM
    """Who is attacked."""
    judge: Judge
    """Who says whether a goal was reached."""
    sampling: Sampling
    """How the target's replies are drawn."""
    attacker: LM | None = None
    """Who writes attacks."""
    surrogate: OpenLM | None = None
    """Whose weights are attacked."""


@dataclass
class Walker:
    """One walk with what is known of it."""

    attack: Attack
    label: str
    """What its attempts are called: the attack's name unless the campaign gives another."""
    goals: tuple[str, ...]
    """Ids of its goals."""
    repetition: int
    key: str
    """Digest of attack, config, goals, repetition, target, sampling and seed."""
    make: Callable[[], Walk]
    place: int = 0
    """Its number in the campaign."""
    walk: Walk | None = None
    begun: bool = False
    moves: Sequence[Move] = ()
    answers: dict[int, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    """Of the moves that it waits for."""
    numbers: list[int] = field(default_factory=list)
    """Of those that are asks; -1 for others."""
    asked: int = 0
    moved: int = 0
    asks: list[tuple[int, Ask]] = field(default_factory=list)
    """Questions to the target that wait, by place among the moves."""
    rest: list[int] = field(default_factory=list)
    """Places of other moves that wait."""
    unbilled: Spent = NOTHING
    """Spent since its last attempt; the next one carries it."""
    over: bool = False


def walkers(
    attack: Attack, label: str, config: Frozen, goals: Goals, cast: Cast, *, seed: int, repetitions: int
) -> Iterator[Walker]:
    """The walks of one attack: one a goal and repetition, or one a repetition over all goals."""
    groups = [tuple(goals)] if attack.together else [(goal,) for goal in goals]
    settings, whom = digest(config), cast.target.identity.digest
    drawn = digest(cast.sampling)
    others = [lm.identity.digest for lm in (cast.attacker, cast.surrogate) if lm is not None]
    for repetition in range(repetitions):
        for group in groups:
            what: list[Any] = [
                label,
                attack.name,
                settings,
                [_goal(goal) for goal in group],
                repetition,
                seed,
            ]
            # The target stays out of the seed, so that two targets meet the same draws of an attack.
            whole = hashlib.sha256(json.dumps(what).encode()).hexdigest()
            number = int(whole[:12], 16)
            key = hashlib.sha256(f"{whole}/{whom}/{drawn}/{others}".encode()).hexdigest()
            make = partial(_walk, attack, group, config, cast, number)
            ids = tuple(goal.id for goal in group)
            yield Walker(attack, label, ids, repetition, key, make)


def _walk(attack: Attack, goals: Sequence[Goal], config: Frozen, cast: Cast, seed: int) -> Walk:
    tools = Tools(
        seed=seed,
        rng=random.Random(seed),
        target=cast.target.identity,
        sampling=cast.sampling,
        surrogate=cast.surrogate,
        attacker=cast.attacker,
    )
    return attack.walk(goals, config, tools)


def key_of(walk: str, kind: str, number: int) -> str:
    """Digest of a walk's move: its id in the store, and the attempt's where it is one."""
    return hashlib.sha256(f"{walk}/{kind}/{number}".encode()).hexdigest()


def _goal(goal: Goal) -> str:
    return hashlib.sha256(goal.model_dump_json().encode()).hexdigest()
