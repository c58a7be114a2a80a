"""Paired comparison of the ASR of two targets under the same attacks on the same goals.

Paired by goal: an exact sign-flip test that swaps clusters whole for a p-value (McNemar's exact test, 1947,
where every goal is its own cluster), Tango's score interval (1998) or a clustered one for the difference,
Holm (1979) over attacks and hazards.

1. A goal counts as reached when any of its attempts succeeded; without a success and with an undetermined
   attempt, or one cut off by a cap, it is open: bounds count it at its worst, and there is no value where
   open goals could move it more than sampling error.
2. By attack, only attacks run on both sides are compared; the others are named in the caveats.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.compare"`` and inputs before, after, goals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from calibrant.core import Attempt, Estimate, Frozen, InputError, Quiet, Result, Run, technique
from calibrant.core.attempt import reached
from calibrant.data.rows import Attempts, Goals
from calibrant.formats.findings import by_goal, technique_of
from calibrant.stats import difference_so_far, holm, sign_flip


class Compare(Frozen):
    """Settings of the comparison."""

    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of every interval."""


class CompareResult(Result):
    """``attack_success_change`` (after - before), also by attack and hazard; p-values are in ``reason``."""


@technique(version=3)
def compare(
    before: Attempts, after: Attempts, goals: Goals, config: Compare = Compare(), run: Run = Quiet()
) -> CompareResult:
    """Paired change of goal-level success.

    Raises:
        InputError: the two sides share no goal of ``goals``.
    """
    ids = {goal.id for goal in goals}
    sides = [[a for a in side if a.goal_id in ids] for side in (before, after)]
    both = set.intersection(*({a.goal_id for a in side} for side in sides))
    if not both:
        raise InputError(
            "before and after have no goal in common", hint="run the same campaign against both targets"
        )
    shared = [goal for goal in goals if goal.id in both]

    def paired(includes: Callable[[Attempt], bool]) -> tuple[Estimate, float] | None:
        hits = [_reached([a for a in side if includes(a)]) for side in sides]
        rows = [goal for goal in shared if goal.id in hits[0] and goal.id in hits[1]]
        if not rows:
            return None
        old, new = ([side[goal.id] for goal in rows] for side in hits)
        clusters = [goal.cluster for goal in rows]
        estimate = difference_so_far(
            old, new, clusters=clusters, level=config.level, better="lower", unit="goal"
        )
        return estimate, sign_flip(old, new, clusters=clusters)

    whole = paired(lambda _: True)
    assert whole is not None
    metrics = {"attack_success_change": whole[0]}
    attacks = dict.fromkeys(technique_of(a) for side in sides for a in side)
    groups = {attack.removeprefix("attack."): _by(technique_of, attack) for attack in attacks}
    groups |= {name: _by(_hazard, name) for name in sorted({a.category for side in sides for a in side})}
    pairs = {name: paired(includes) for name, includes in groups.items()}
    compared = {name: pair for name, pair in pairs.items() if pair is not None}
    for (name, pair), p in zip(compared.items(), holm([pair[1] for pair in compared.values()]), strict=True):
        note = f"sign-flip p = {pair[1]:.3g}, Holm over {len(compared)}: {p:.3g}"
        reason = f"{pair[0].reason}; {note}" if pair[0].reason else note
        metrics[f"attack_success_change/{name}"] = pair[0].model_copy(update={"reason": reason})
    lost = [name for name, pair in pairs.items() if pair is None]
    caveats = ["goals are paired; that both sides met the same attacks with equal budgets is taken on trust"]
    if lost:
        caveats.append(f"only one side holds attempts of {', '.join(lost)}: not compared one by one")
    if len(shared) < len(goals):
        caveats.append(
            f"{len(goals) - len(shared)} of {len(goals)} goals were not tried on both sides: left out"
        )
    return CompareResult(metrics=metrics, caveats=tuple(caveats))


def _reached(attempts: Sequence[Attempt]) -> dict[str, bool | None]:
    """Goal id -> whether any attempt reached it; None where that is open."""
    return {goal: reached(of) for goal, of in by_goal(attempts).items()}


def _by(key: Callable[[Attempt], str], value: str) -> Callable[[Attempt], bool]:
    return lambda attempt: key(attempt) == value


def _hazard(attempt: Attempt) -> str:
    return attempt.category
