"""Episodes of a campaign: one attack on one goal (or on all of them), once or several times over."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from calibrant.attack.engine.budget import NOTHING, Spent
from calibrant.attack.engine.protocol import AskTarget, Attack, Episode, Move, Tools
from calibrant.core import LM, CapabilityError, Frozen, Goal, Judge, OpenLM, Sampling, digest
from calibrant.data.rows import Goals


class Participants(NamedTuple):
    """Target, judge and helper models of an attack."""

    target: LM
    """The attacked model."""
    judge: Judge
    """Decides whether a goal was reached."""
    sampling: Sampling
    """How the target's replies are sampled."""
    attacker: LM | None = None
    """The attacker model, which writes prompts."""
    surrogate: OpenLM | None = None
    """The model whose weights (log-probs, gradients) are used."""


@dataclass
class RunningEpisode:
    """One episode with its state."""

    attack: Attack
    label: str
    """Name of its attempts: the attack's name unless the campaign gives another."""
    goals: tuple[str, ...]
    """Ids of its goals."""
    repetition: int
    key: str
    """Digest of attack, config, goals, repetition, target, sampling and seed."""
    make: Callable[[], Episode]
    place: int = 0
    """Its number in the campaign."""
    generator: Episode | None = None
    begun: bool = False
    moves: Sequence[Move] = ()
    answers: dict[int, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    """Of the moves that it waits for."""
    numbers: list[int] = field(default_factory=list)
    """Of those that are asks; -1 for others."""
    asked: int = 0
    moved: int = 0
    asks: list[tuple[int, AskTarget]] = field(default_factory=list)
    """Questions to the target that wait, by place among the moves."""
    rest: list[int] = field(default_factory=list)
    """Places of other moves that wait."""
    unbilled: Spent = NOTHING
    """Spent since its last attempt; the next one carries it."""
    over: bool = False


def episodes(
    attack: Attack,
    label: str,
    config: Frozen,
    goals: Goals,
    participants: Participants,
    *,
    seed: int,
    repetitions: int,
) -> Iterator[RunningEpisode]:
    """The episodes of one attack: one a goal and repetition, or one a repetition over all goals."""
    groups = [tuple(goals)] if attack.together else [(goal,) for goal in goals]
    settings, whom = digest(config), participants.target.identity.digest
    sampling = digest(participants.sampling)
    others = [lm.identity.digest for lm in (participants.attacker, participants.surrogate) if lm is not None]
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
            key = hashlib.sha256(f"{whole}/{whom}/{sampling}/{others}".encode()).hexdigest()
            make = partial(_episode, attack, group, config, participants, number)
            ids = tuple(goal.id for goal in group)
            yield RunningEpisode(attack, label, ids, repetition, key, make)


def _episode(
    attack: Attack, goals: Sequence[Goal], config: Frozen, participants: Participants, seed: int
) -> Episode:
    tools = Tools(
        seed=seed,
        rng=random.Random(seed),
        target=participants.target.identity,
        sampling=participants.sampling,
        surrogate=participants.surrogate,
        attacker=participants.attacker,
    )
    return attack.episode(goals, config, tools)


def surrogate_for(attack: Attack, who: Participants) -> OpenLM:
    """The surrogate model of ``attack``. Raises CapabilityError where none was given."""
    if who.surrogate is None:
        raise CapabilityError(
            f"{attack.name} needs {attack.access}, and no model to read them from was given",
            hint="give the input 'surrogate': local weights, the target's own or another model's",
        )
    return who.surrogate


def key_of(episode: str, kind: str, number: int) -> str:
    """Digest of an episode's move: its id in the store, and the attempt's where it is one."""
    return hashlib.sha256(f"{episode}/{kind}/{number}".encode()).hexdigest()


def _goal(goal: Goal) -> str:
    return hashlib.sha256(goal.model_dump_json().encode()).hexdigest()
