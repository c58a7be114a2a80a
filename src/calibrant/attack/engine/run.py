"""Run attacks: plan the episodes, run them, and compute the metrics.

``run_attack`` runs one attack, as its technique does; ``run_attacks`` runs any number, as a campaign does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from calibrant.attack.engine.budget import BudgetTracker, Caps, Prices
from calibrant.attack.engine.cache import AttemptCache
from calibrant.attack.engine.calls import silence
from calibrant.attack.engine.episodes import Participants, episodes
from calibrant.attack.engine.metrics import check_goals, findings, spent_metrics, variant_rates
from calibrant.attack.engine.protocol import Attack
from calibrant.attack.engine.scheduler import Scheduler
from calibrant.core import (
    Attempt,
    CapabilityError,
    ConfigError,
    Frozen,
    Result,
    Run,
)
from calibrant.data.rows import Goals
from calibrant.ledger.lines import replay


class Planned(NamedTuple):
    """An attack with its settings."""

    attack: Attack
    config: Frozen
    label: str
    """Name of its attempts; the attack's name unless two of them would share it."""
    repetitions: int = 1
    """Repetitions per goal, with other seeds."""


class Stored:
    """Attempts in a file, read lazily."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self._run = path, run  # a quiet run's folder lives as long as the run

    def __iter__(self) -> Iterator[Attempt]:
        return replay(self.path, Attempt.model_validate_json, "an attempt")


class AttackResult(Result):
    """Success rates with their intervals, and the cost; see ``calibrant.attack.engine.metrics``."""

    stored: Any = Field(default=None, exclude=True, repr=False)
    """Iterates over the attempts, one at a time; also the artefact ``attempts.jsonl``."""

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt."""
        return tuple(self.stored or ())


class Finished(NamedTuple):
    """The outcome of a run of the scheduler."""

    scheduler: Scheduler
    stored: Stored


def run_attack(
    attack: Attack,
    config: Frozen,
    goals: Goals,
    participants: Participants,
    run: Run,
    *,
    variants: tuple[str, ...] = (),
) -> AttackResult:
    """Run one attack on every goal. One episode a goal, without caps except those of the job.

    ``variants`` names the variants of an attack that sends every goal in each of them: no category may
    share a name with one, each has a rate even where it is the only one, and a caveat lists them.

    Raises:
        InputError: goals over which a rate would mean nothing, or a target that answers nothing but errors.
        BudgetError: the job's budget is used up; the replies so far are kept.
        CapabilityError: an attacker model or weights are needed and were not given.
    """
    check_goals(goals, (attack.name.removeprefix("attack."), "all", *variants))
    plan = Planned(attack, config, attack.name)
    scheduler, stored = run_attacks([plan], goals, participants, run)
    limits = caveats([plan], participants)
    if variants:
        limits += (
            f"the k = {len(variants)} variants ({', '.join(variants)}) are fixed, with one reply each at "
            f"temperature {participants.sampling.temperature:g}: an adaptive attacker may do better",
        )
    return AttackResult(
        metrics={
            **findings(goals, scheduler.all_counts, participants.judge),
            **variant_rates(goals, scheduler.all_counts, least=1 if variants else 2),
            **spent_metrics(scheduler.tracker),
        },
        caveats=limits,
        stored=stored,
    )


def run_attacks(
    plans: Sequence[Planned],
    goals: Goals,
    participants: Participants,
    run: Run,
    *,
    caps: Caps = Caps(),
    prices: Prices = Prices(),
    batch: int = 256,
) -> Finished:
    """Run all attacks on all goals and write the artefact ``attempts.jsonl``, in order of attack and goal.

    Raises:
        InputError: nothing but errors came back. BudgetError, CapabilityError: see ``run_attack``.
    """
    check_participants(plans, participants)
    queue = (
        episode
        for plan in plans
        for episode in episodes(
            plan.attack,
            plan.label,
            plan.config,
            goals,
            participants,
            seed=run.seed,
            repetitions=plan.repetitions,
        )
    )
    total = sum(p.repetitions * (1 if p.attack.together else len(goals)) for p in plans)
    cache = AttemptCache(run.work)
    try:
        scheduler = Scheduler(participants, cache, BudgetTracker(caps, prices, run), run, batch)
        scheduler.go(queue, total)
        all_counts = scheduler.all_counts.values()
        if any(t.attempts for t in all_counts) and all(t.broken == t.attempts for t in all_counts):
            raise silence(scheduler.last)
        path = run.artifact("attempts.jsonl")
        cache.copy(scheduler.visited, path, {counts.last[1] for counts in all_counts if counts.cut})
    finally:
        cache.close()
    return Finished(scheduler, Stored(path, run))


def check_participants(plans: Sequence[Planned], participants: Participants) -> None:
    """Check that all needed models are given, before anything is sent.

    Raises:
        CapabilityError: an attack needs an attacker model or weights that were not given.
        ConfigError: two attacks share a label.
    """
    labels = [plan.label for plan in plans]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(f"two attacks are called '{twice}'", hint="give one of them another 'name'")
    for plan in plans:
        if plan.attack.consults(plan.config) and participants.attacker is None:
            raise CapabilityError(
                f"{plan.attack.name} needs an attacker model, and none was given",
                hint="give the input 'attacker': an LM, such as testbed:attacker/ruled or api:URL#MODEL",
            )
        if plan.attack.access != "black box" and participants.surrogate is None:
            raise CapabilityError(
                f"{plan.attack.name} needs {plan.attack.access}, and no model to read them from was given",
                hint="give the input 'surrogate': local weights, the target's own or another model's",
            )


def caveats(plans: Sequence[Planned], participants: Participants) -> tuple[str, ...]:
    """What success rates of these attacks do not show."""
    names = ", ".join(plan.label.removeprefix("attack.") for plan in plans)
    notes = [
        f"attack_success_rate is the share of goals that any attempt of {names} reached; it grows with the "
        "number of attempts and is not a rate per attempt",
        "a goal that the target answers as a direct request counts as reached: compare with measure.refusal "
        "on the same goals",
    ]
    if any(plan.attack.access != "black box" for plan in plans):
        own = (
            participants.surrogate is not None
            and participants.surrogate.identity.digest == participants.target.identity.digest
        )
        notes.append(
            "gradient and log-prob attacks read the target's own weights, which an outsider may not have"
            if own
            else "gradient and log-prob attacks read a surrogate's weights: they reach the target by transfer"
        )
    if participants.judge.calibration != "exact":
        notes.append(
            f"judged by '{participants.judge.identity.name}', which is {participants.judge.calibration}"
        )
        notes.append("goal-level rates are not corrected: every attempt is one more chance for a false alarm")
    return tuple(notes)
