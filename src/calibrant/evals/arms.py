"""Ask every goal in several arms, and compare the arms goal by goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from calibrant.core import LM, Attempt, Chat, Estimate, Goal, InputError, Judge, Run, Sampling
from calibrant.core.attempt import HIT
from calibrant.evals.attempts import Request, ask
from calibrant.stats import rate_so_far
from calibrant.stats._sample import Better
from calibrant.stats.bounded import bounded_mean

Arms = Mapping[str, Callable[[Goal], Chat]]
"""Name of an arm -> how a goal is asked in it."""
Outcomes = dict[str, list[bool | None]]
"""Name of an arm -> whether the behaviour happened, goal by goal; None: undetermined."""
Hits = Sequence[bool | None]
"""Whether something happened, row by row; None: undetermined."""


class Sides(NamedTuple):
    """What a number is made of: the mean of ``plus`` less that of ``minus``, each a list of arms."""

    plus: Sequence[Hits]
    minus: Sequence[Hits] = ()
    """Empty for a rate."""

    def ends(self, row: int) -> tuple[float, float]:
        """The least and the most that the row can be; an arm without an outcome is 0 or 1."""
        up, down = ([arm[row] for arm in side] for side in (self.plus, self.minus))
        return _mean(up, 0.0) - _mean(down, 1.0), _mean(up, 1.0) - _mean(down, 0.0)


def ask_arms(
    name: str, model: LM, goals: Sequence[Goal], arms: Arms, judge: Judge, sampling: Sampling, run: Run
) -> tuple[Outcomes, list[Attempt]]:
    """One attempt for each goal and arm; ``name`` and the arm stand in its ``attack``.

    Raises:
        InputError: two arms would ask the very same: their difference would be of one sample with another.
    """
    for goal in goals[:1]:
        asked: dict[Chat, str] = {}
        for arm, chat in arms.items():
            other = asked.setdefault(chat(goal), arm)
            if other != arm:
                raise InputError(
                    f"the arms '{other}' and '{arm}' ask the very same", hint="give the arms different words"
                )
    requests = [
        Request(goal=goal, chat=chat(goal), attack=f"{name}/{arm}")
        for arm, chat in arms.items()
        for goal in goals
    ]
    attempts = ask(model, requests, judge, sampling, run)
    outcomes = {
        arm: [HIT[one.outcome] for one in attempts[at * len(goals) : (at + 1) * len(goals)]]
        for at, arm in enumerate(arms)
    }
    return outcomes, attempts


def behaviour_rate(hits: Sequence[bool | None], clusters: Sequence[str], better: Better = "none") -> Estimate:
    """Share of goals on which the behaviour happened."""
    return rate_so_far(hits, clusters=clusters, done="with the behaviour", better=better, unit="goal")


def contrast(
    plus: Sequence[Hits],
    minus: Sequence[Hits],
    clusters: Sequence[str],
    *,
    better: Better = "none",
    unit: str = "goal",
) -> Estimate:
    """Mean over goals of the mean of ``plus`` less that of ``minus``, each a list of arms; paired on goals.

    An arm without an outcome stands at its worst case, 0 or 1. Where such goals could move the mean further
    than chance, there is no value.
    """
    return estimated(Sides(plus, minus), clusters, better=better, unit=unit)


def estimated(
    sides: Sides,
    clusters: Sequence[str],
    *,
    over: Sides | None = None,
    better: Better = "none",
    unit: str = "goal",
) -> Estimate:
    """Mean over rows of what ``sides`` is, less what ``over`` is on the same rows; see ``contrast``."""
    rows = range(len(clusters))
    found = [sides.ends(row) for row in rows]
    least, most = (-1.0 if sides.minus else 0.0), 1.0
    if over is not None:
        others = [over.ends(row) for row in rows]
        found = [(low - high, up - down) for (low, up), (down, high) in zip(found, others, strict=True)]
        least, most = least - 1.0, most - (-1.0 if over.minus else 0.0)
    return bounded_mean(
        [low for low, _ in found],
        [high for _, high in found],
        clusters=clusters,
        bounds=(least, most),
        better=better,
        unit=unit,
        null_value=0.0 if sides.minus or over is not None else None,
    )


def floor_caveat(gap: Estimate, sham: Estimate | None, name: str = "the gap") -> tuple[str, ...]:
    """What a sham cue of the same form says of a gap, whichever way the sham's own goes: its two sides are
    named by chance."""
    if sham is None:
        return ("no sham cue was asked: a gap may be that of any words at this place",)
    if gap.low is None or gap.high is None or gap.low <= 0.0 <= gap.high:
        return ()
    if sham.low is not None and sham.high is not None:
        floor = max(sham.high, -sham.low)
        if gap.low > floor or gap.high < -floor:
            return ()
    return (f"{name} {gap} is not clear of what a sham cue does, {sham}: it may be one of wording",)


def _mean(arms: Sequence[bool | None], unread: float) -> float:
    return sum(unread if one is None else float(one) for one in arms) / len(arms) if arms else 0.0
