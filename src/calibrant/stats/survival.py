"""Attack success against budget: Kaplan-Meier for the cost of the first success, with censoring.

A goal is reached at its first success, after so many queries (or tokens, seconds, FLOPs), or censored at what
was spent on it. ASR(budget) = 1 - S(budget), S by Kaplan & Meier 1958, JASA 53, 457-481: the product over
costs t of first successes up to the budget of (Y_t - d_t) / Y_t, with d_t goals reached of the Y_t still at
risk.

1. Pointwise intervals are the beta product ones (Fay, Brittain & Proschan 2013, Biostatistics 14, 723-736,
   by moments): a Beta(Y_t - d_t + 1, d_t) for each factor, and for the high end of ASR a Beta(Y, 1) more,
   with Y the goals known to hold out longer. Without censoring this is Clopper-Pearson, so no success among
   100 goals leaves 3.6%. Greenwood's variance with log-log ends says nothing there, and
   falls short where few goals are reached or remain.
2. Beyond the largest observed cost ASR is unknown: at least its last value, at most 1.
3. Censoring must be independent of how close a goal was to success. An attack that stops early on hopeless
   goals biases ASR upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from calibrant.core import Estimate, InputError
from calibrant.stats._confidence import answers
from calibrant.stats._sample import (
    Better,
    Codes,
    Floats,
    agreeing_size,
    check_level,
    cluster_codes,
    cluster_count,
    none_answered,
    numbers,
    sentence,
)

_OPPOSITE: dict[Better, Better] = {"higher": "lower", "lower": "higher", "none": "none"}
"""A high cost is good where a high rate is bad."""


@dataclass(frozen=True)
class SuccessCurve:
    """ASR against budget as a step function. Costs are in the unit that was given."""

    costs: Floats
    """Distinct costs (T,), rising: of first successes, of goals given up, of undetermined ones."""
    value: Floats
    """ASR (T,) at each cost, undetermined goals left out from there on."""
    low: Floats
    """Lower end (T,) at each cost."""
    high: Floats
    """Upper end (T,) at each cost, ..."""
    after: Floats
    """... and between it and the next (T,), where goals that were given up at it no longer count."""
    before: Estimate
    """ASR before the first cost; its sample sizes and labels hold for all."""
    watched: float
    """The largest cost of all; -inf where there are no goals."""

    def at(self, budget: float) -> Estimate:
        """ASR within ``budget``; ``value`` is None where no goal was watched so far."""
        i = int(np.searchsorted(self.costs, budget, side="right")) - 1
        if i < 0:
            return self.before
        exact = self.costs[i] == budget
        low, high = float(self.low[i]), float(self.high[i] if exact else self.after[i])
        value: float | None = float(self.value[i])
        reason = self.before.reason
        if budget > self.watched and value != 1.0:
            value = None
            reason = sentence([reason, f"no goal was watched beyond {self.watched:g}"])
        return self.before.model_copy(update={"value": value, "low": low, "high": high, "reason": reason})

    def budget_for(self, share: float = 0.5, unit: str = "query") -> Estimate:
        """The least cost by which ``share`` of the goals are reached; .5 is the median cost.

        ``low`` and ``high`` are where the upper and lower ends of the curve reach ``share`` (Brookmeyer &
        Crowley 1982, Biometrics 38, 29-41). Where the curve stays below it ``value`` is None and only
        ``low`` is known.

        Raises:
            InputError: a share outside (0, 1).
        """
        if not 0 < share < 1:
            raise InputError(
                f"a share of goals lies between 0 and 1, got {share!r}", hint="use 0.5 for the median"
            )
        # With clusters an end can dip: the high one counts from its first crossing, the low from its last.
        rising = np.minimum.accumulate(self.low[::-1])[::-1]
        value, high = self._first(self.value, share), self._first(rising, share)
        low = (
            0.0
            if (self.before.high or 0.0) >= share
            else self._first(np.maximum(self.high, self.after), share)
        )
        reached = float(self.value.max(initial=0.0))
        short = value is None and self.costs.size > 0
        why = f"the curve reaches {reached:.3f} at {self.watched:g}, not {share:g}" if short else ""
        if value is not None and high is None:
            why = f"the lower end of the curve stays below {share:g}, so nothing limits the cost from above"
        return self.before.model_copy(
            update={
                "value": value, "low": low, "high": high, "reason": sentence([self.before.reason, why]),
                "method": f"{self.before.method}, inverted", "unit": unit,
                "better": _OPPOSITE[self.before.better],
            }
        )  # fmt: skip

    def _first(self, curve: Floats, share: float) -> float | None:
        reached = np.flatnonzero(curve >= share - 1e-12)
        return float(self.costs[reached[0]]) if reached.size else None


def success_curve(
    costs: Sequence[float],
    reached: Sequence[bool | None],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better = "lower",
    unit: str = "goal",
) -> SuccessCurve:
    """ASR against budget from one row a goal (G,).

    ``reached`` True: the first success came at this cost. False: none came up to this cost, and the attack
    ended. None: the first undetermined attempt was at this cost. For ``high`` that is a success; for ``low``
    the goal is never reached; ``value`` censors it there. ``clusters`` names groups of goals (G,), "" is its
    own cluster; counts then shrink to Korn & Graubard's effective number, by the robust variance of S at each
    cost over the plain one.

    Coverage at 95%, 10,000 runs a cell, 18 cells (20 or 100 goals, chance .002 to .1 a query, within 2 to 40
    queries): 98.1% on average, worst 96.3%; of the median's interval 98.9%, worst 97.3%. Greenwood's with
    log-log ends covers 70.6% of the same runs: it is undefined where no goal was reached.
    With 25 clusters of 4 goals (correlation 0 or .4): 97.1%, worst 95.6%.

    Raises:
        InputError: lengths differ, a cost below 0, an answer that is not True, False or None, a bad level.
        NumericalError: a cost is NaN or infinite.
    """
    check_level(level)
    spent, happened = _read(costs, reached)
    codes = cluster_codes(clusters, spent.size)
    tail, gaps = (1 - level) / 2, np.isnan(happened)
    grid: Floats = np.unique(spent)
    # An undetermined goal counts as watched for ever in the low end: it is never reached.
    never = np.where(gaps, np.inf, spent)
    middle = _table(spent, happened == 1, grid)
    lower = _ends(_table(never, happened == 1, grid), _shrink(never, happened == 1, grid, codes, level), tail)
    risky = (happened == 1) | gaps
    upper = _ends(_table(spent, risky, grid), _shrink(spent, risky, grid, codes, level), tail)
    factors = np.where(middle.at_risk > 0, 1 - middle.events / np.maximum(middle.at_risk, 1), 1.0)
    alone = codes is None or bool(codes.any())
    size = float(spent.size) if codes is None else agreeing_size(codes)
    note = (
        ""
        if alone or not spent.size
        else "all goals are in one cluster, so nothing shows how clusters differ"
    )
    before = Estimate(
        value=0.0 if spent.size else None, low=0.0, high=1 - tail ** (1 / size) if size and alone else 1.0,
        level=level, n=spent.size, clusters=cluster_count(codes), missing=int(gaps.sum()),
        reason=sentence([none_answered(spent.size, int((~gaps).sum()), unit), note]),
        method="beta product" if codes is None else "beta product, korn-graubard effective n",
        unit=unit, better=better,
    )  # fmt: skip
    value = np.asarray(1 - np.cumprod(factors), np.float64)
    return SuccessCurve(grid, value, lower[0], upper[1], upper[2], before, float(spent.max(initial=-np.inf)))


@dataclass(frozen=True)
class _Risk:
    """Counts at each cost of the grid (T,)."""

    events: Floats
    at_risk: Floats
    """Still under attack when the cost is reached."""
    after: Floats
    """Still under attack beyond it."""


def _table(spent: Floats, happened: NDArray[np.bool_], grid: Floats) -> _Risk:
    """Goals reached and at risk at each cost."""
    events = np.bincount(np.searchsorted(grid, spent[happened]), minlength=grid.size).astype(np.float64)
    order = np.sort(spent)
    at_risk = spent.size - np.searchsorted(order, grid, side="left")
    after = spent.size - np.searchsorted(order, grid, side="right")
    return _Risk(events[: grid.size], at_risk.astype(np.float64), after.astype(np.float64))


def _ends(table: _Risk, shrink: Floats, tail: float) -> tuple[Floats, Floats, Floats]:
    """Low and high end of ASR at each cost, and the high end just after it; ``shrink`` (T,) scales counts."""
    moments = np.ones((2, shrink.size))
    for factor in np.unique(shrink[shrink > 0]):  # one factor holds for a whole product up to its cost
        d, y = table.events * factor, table.at_risk * factor
        here, some = shrink == factor, d > 0
        moments[0, here] = np.cumprod(np.where(some, (y - d + 1) / (y + 1), 1.0))[here]
        moments[1, here] = np.cumprod(np.where(some, (y - d + 1) * (y - d + 2) / ((y + 1) * (y + 2)), 1.0))[
            here
        ]
    first, second = moments
    low = 1 - _quantile(first, second, 1 - tail)
    high, after = (
        1 - _quantile(first * left / (left + 1), second * left / (left + 2), tail)
        for left in (shrink * (table.at_risk - table.events), shrink * table.after)
    )
    return low, high, after


def _quantile(first: Floats, second: Floats, q: float) -> Floats:
    """Quantile of the Beta with these moments; a point where there is no spread."""
    spread = second - first**2
    flat = (spread <= 1e-15) | (first <= 0) | (first >= 1)
    size = np.where(flat, 1.0, (first - second) / np.where(flat, 1.0, spread))
    mean = np.where(flat, 0.5, first)
    return np.asarray(np.where(flat, first, betaincinv(mean * size, (1 - mean) * size, q)))


def _shrink(
    spent: Floats, happened: NDArray[np.bool_], grid: Floats, codes: Codes | None, level: float
) -> Floats:
    """Effective over real number of goals (T,): the robust variance of S over the plain one.

    By the influence of each goal on log S (Williams 1995, Biometrics 51, 1235-1243): the sum over costs up
    to the budget of (d_gt - Y_gt d_t / Y_t) / Y_t, a cluster left out at a time and with the degrees of
    freedom of ``effective_size``. Before the first event it is Kish's number of clusters.
    """
    if codes is None:
        return np.ones(grid.size)
    if not codes.any():
        return np.zeros(grid.size)
    k, n = int(codes.max()) + 1, spent.size
    others = 1 - np.bincount(codes) / n  # the share of goals that is left without each cluster
    table = _table(spent, happened, grid)
    risk = np.maximum(table.at_risk, 1)
    paid = np.concatenate([[0.0], np.cumsum(table.events / risk**2)])
    # Goals of a cluster between two costs share what they have paid: totals per cluster suffice.
    last = np.searchsorted(grid, spent, side="right")
    deff = np.full(grid.size, n / agreeing_size(codes))  # where nothing happened yet, clusters may agree
    for t in range(grid.size):
        influence = -paid[np.minimum(last, t + 1)]
        hit = happened & (last <= t + 1)
        influence[hit] += 1 / risk[last[hit] - 1]
        alone = float((influence**2).sum()) * n / (n - 1)
        if alone > 0:
            left_out = np.bincount(codes, weights=influence) / others
            between = float((left_out**2).sum()) * (k - 1) / k
            deff[t] = between / alone
    upper, freedom = (1 + level) / 2, max(1.0, agreeing_size(codes) - 1)
    students = float(stdtrit(n - 1, upper) / stdtrit(freedom, upper)) ** 2
    return np.asarray(np.minimum(1.0, students / np.maximum(deff, 1e-12)))


def _read(costs: Sequence[float], reached: Sequence[bool | None]) -> tuple[Floats, Floats]:
    """Costs (G,), and what happened there: 1, 0, or NaN."""
    if len(costs) != len(reached):
        raise InputError(
            f"{len(costs)} costs came with {len(reached)} outcomes", hint="give one of each per goal"
        )
    spent, happened = numbers(costs, "costs"), answers(reached, "reached")
    if np.isnan(spent).any() or (spent < 0).any():
        raise InputError("a cost is missing or below 0", hint="give what was spent on each goal")
    return spent, happened
