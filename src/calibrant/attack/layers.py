"""Attack a stack of guards in every configuration: no layer, each alone, all but one, all of them.

Source: adaptive evaluation of defences as in Tramèr et al. 2020 (arXiv 2002.08347) and Nasr et al. 2025,
"The attacker moves second" (arXiv 2510.09023); staged attacks on pipelines: STACK, McKenzie et al. 2025
(arXiv 2506.24068).

1. The same attacks run against each configuration under the same budget, and each time adapt to it.
2. Beside it stands the *replay*: what was sent to the model without guards, and its recorded replies, held
   against the configuration's layers. That is what a lab without an attacker reports (``defend.layers``).
3. ``adaptation`` is the paired difference of the two: how much a replay flatters a configuration.
4. ``marginal/LAYER`` is what the layer keeps from an attacker who adapts to the stack with it and without it.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.layers"`` and inputs system (``defended:...``),
goals, judge.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from pydantic import Field

from calibrant.attack.campaign import Chosen, planned
from calibrant.attack.engine.budget import Caps
from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.metrics import check_goals, reach_rate
from calibrant.attack.engine.run import check_participants, run_attacks
from calibrant.core import (
    LM,
    Attempt,
    Estimate,
    Frozen,
    InputError,
    Judge,
    LayeredLM,
    OpenLM,
    Quiet,
    Result,
    Run,
    Sampling,
    point,
    technique,
)
from calibrant.core.attempt import reached
from calibrant.core.digest import canonical
from calibrant.data.rows import Goals
from calibrant.models.arm_run import ArmRun
from calibrant.stats import difference_so_far


class AttackedLayers(Frozen):
    """Attacks, and their budget against each configuration."""

    attacks: tuple[Chosen, ...] = Field(
        default=(Chosen(use="attack.staged", config={"stop": False}),), min_length=1
    )
    """The attacks, each on every goal. One that stops at its first success leaves the replay less to show."""
    sampling: Sampling = Sampling()
    """How the target's replies are sampled."""
    caps: Caps = Caps()
    """Budget against each configuration; a cap leaves goals open."""
    batch: int = Field(default=256, ge=1)
    """Most concurrent queries to the target, and concurrent episodes."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of every interval of a difference."""


class AttackedLayersResult(Result):
    """``attack_success_rate/CONFIGURATION``, ``replayed_success_rate/...``, ``adaptation/...`` for
    ``none``, ``alone/LAYER``, ``without/LAYER``, ``all``; ``marginal/LAYER``; ``spent/queries``."""


class _Attacked(NamedTuple):
    """One configuration under attack."""

    attempts: tuple[Attempt, ...]
    """Every attempt of its own attack."""
    hits: list[bool | None]
    """By goal: whether any of them reached it."""
    replayed: list[bool | None]
    """By goal: whether any attempt on the model without guards did, and passes its layers."""
    queries: int
    capped: bool


@technique(version=1)
def layers(
    system: LM,
    goals: Goals,
    judge: Judge,
    attacker: LM | None = None,
    surrogate: OpenLM | None = None,
    config: AttackedLayers = AttackedLayers(),
    run: Run = Quiet(),
) -> AttackedLayersResult:
    """Attack ``system`` with each set of its layers.

    Raises:
        InputError: the system has no layers, or goals over which a rate would mean nothing.
        CapabilityError: an attack needs an attacker model or weights that were not given.
    """
    if not isinstance(system, LayeredLM) or not system.layer_names:
        raise InputError(
            "the system has no layers", hint="give defended:FILE.toml#MODEL, a model behind a stack of guards"
        )
    plans = [planned(chosen) for chosen in config.attacks]
    check_goals(goals, ())
    bare = system.with_layers(())
    check_participants(plans, Participants(bare, judge, config.sampling, attacker, surrogate))
    names = system.layer_names
    wanted = configurations(names)
    kinds = list(dict.fromkeys(wanted.values()))
    steps = sum(p.repetitions * (1 if p.attack.together else len(goals)) for p in plans)
    attacked: dict[tuple[str, ...], _Attacked] = {}
    for number, kept in enumerate(kinds):
        arm = ArmRun(run, f"configuration{number}", number, number * steps, len(kinds) * steps)
        target = system.with_layers(kept)
        who = Participants(target, judge, config.sampling, attacker, surrogate)
        scheduler, stored = run_attacks(plans, goals, who, arm, caps=config.caps, batch=config.batch)
        attempts = tuple(stored)
        first = attacked[()].attempts if kept else attempts
        attacked[kept] = _Attacked(
            attempts,
            _by_goal(goals, attempts),
            _by_goal(goals, _behind(target, first) if kept else first),
            int(scheduler.tracker.spent["queries"]),
            bool(scheduler.capped),
        )
        if kept in ((), names):
            name = "attempts.jsonl" if kept else "undefended.jsonl"
            shutil.copyfile(arm.artifact("attempts.jsonl"), run.artifact(name))
    _write_outcomes(goals, {name: attacked[kept] for name, kept in wanted.items()}, run)
    return AttackedLayersResult(
        metrics=_metrics(goals, names, wanted, attacked, config.level),
        caveats=_caveats(attacked.values(), judge),
    )


def configurations(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name of a configuration -> its layers, in the order of the stack; the first has none."""
    sets = {"none": (), **{f"alone/{name}": (name,) for name in names}} if len(names) > 1 else {"none": ()}
    if len(names) > 2:
        sets |= {f"without/{name}": tuple(one for one in names if one != name) for name in names}
    return sets | {"all": tuple(names)}


def _behind(system: LM, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts as they would have ended behind the system's layers: what those stop is no success."""
    assert isinstance(system, LayeredLM)
    open_ = [attempt for attempt in attempts if attempt.outcome != "failure"]
    passes = system.lets_pass([a.chat for a in open_], [a.completion for a in open_])
    stopped = {attempt.id for attempt, ok in zip(open_, passes, strict=True) if not ok}
    return [a.model_copy(update={"outcome": "failure"}) if a.id in stopped else a for a in attempts]


def _by_goal(goals: Goals, attempts: Sequence[Attempt]) -> list[bool | None]:
    """Whether any attempt reached each goal; None where that is open, or the goal was never attacked."""
    found: dict[str, list[Attempt]] = {goal.id: [] for goal in goals}
    for attempt in attempts:
        found[attempt.goal_id].append(attempt)
    return [reached(rows) if rows else None for rows in found.values()]


def _metrics(
    goals: Goals,
    names: Sequence[str],
    wanted: dict[str, tuple[str, ...]],
    attacked: dict[tuple[str, ...], _Attacked],
    level: float,
) -> dict[str, Estimate]:
    clusters = [goal.cluster for goal in goals]

    change = partial(difference_so_far, clusters=clusters, level=level, unit="goal")
    metrics = {}
    for name, kept in wanted.items():
        one = attacked[kept]
        metrics[f"attack_success_rate/{name}"] = reach_rate(one.hits, clusters)
        if kept:
            metrics[f"replayed_success_rate/{name}"] = reach_rate(one.replayed, clusters)
            metrics[f"adaptation/{name}"] = change(one.replayed, one.hits, better="none")
    whole = attacked[tuple(names)].hits
    for name in names:
        rest = attacked[tuple(one for one in names if one != name)].hits
        metrics[f"marginal/{name}"] = change(whole, rest, better="higher")
    queries = sum(one.queries for one in attacked.values())
    return metrics | {"spent/queries": point(queries, unit="queries")}


def _write_outcomes(goals: Goals, attacked: dict[str, _Attacked], run: Run) -> None:
    """A line for each configuration and goal: whether its own attack reached it, and whether the replay."""
    lines = [
        canonical({"configuration": name, "goal": goal.id, "reached": hit, "replayed": again})
        for name, one in attacked.items()
        for goal, hit, again in zip(goals, one.hits, one.replayed, strict=True)
    ]
    run.artifact("outcomes.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def _caveats(attacked: Collection[_Attacked], judge: Judge) -> tuple[str, ...]:
    notes = [
        "an attacker with more tries, other attacks or another attacker model may reach more: "
        "success here is a lower bound of what can be reached",
        "a replay stops at what was tried on the model without guards; adaptation is the difference",
    ]
    capped = sum(one.capped for one in attacked)
    if capped:
        notes.append(f"a cap cut off the attack on {capped} of {len(attacked)} configurations")
    if judge.calibration != "exact":
        notes.append(f"judged by '{judge.identity.name}', which is {judge.calibration}")
    return tuple(notes)
