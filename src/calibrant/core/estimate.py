"""Estimate (contract C7): a number with its interval, or the reason why there is none."""

from __future__ import annotations

import math
from typing import Literal

from calibrant.core.config import Frozen

_LARGEST = 2**53
"""More units than any real measurement: such a count is not credible."""
_SLACK = 1e-9
"""Rounding moves a bound by this much at most."""
_RATES = ("rate", "share", "accuracy", "sensitivity", "specificity")
"""Last words of the names of metrics that are shares of their units, before the first '/'."""
_SHARES = ("clopper-pearson", "wilson", "korn-graubard", "rogan-gladen", "two-phase")
_CHANGES = ("tango", "newcombe")
"""Methods whose bounds are shares, and differences of two shares."""
_INVERTED = ", inverted"
"""End of a method that finds what it costs to reach a share: its bounds are costs."""


class Estimate(Frozen):
    """A measured quantity. A training loss is ``method = "point"`` without bounds; no release gate accepts
    it."""

    value: float | None
    """The point estimate; None when it could not be measured (see ``reason``)."""
    low: float | None = None
    """Lower bound of the interval, missing data at its worst case."""
    high: float | None = None
    """Upper bound of the interval, missing data at its worst case."""
    level: float = 0.95
    """Nominal two-sided coverage of the interval."""
    n: int = 0
    """Units asked, the missing ones included."""
    clusters: int | None = None
    """Independent groups among the units; None when units are independent."""
    missing: int = 0
    """Units without an answer: errors, unknown verdicts."""
    reason: str = ""
    """Why the value or a bound is None, or what the reader must know about it."""
    method: str = "point"
    """How the interval was made: 'clopper-pearson', 'wilson', 'cluster-bootstrap', ..."""
    unit: str = ""
    """What one unit is: 'goal', 'pair', 'item'; or the unit of the value."""
    better: Literal["higher", "lower", "none"] = "none"
    """Which direction is good."""
    null_value: float | None = None
    """The value that means 'no effect' (0 for a difference, .5 for a pairwise accuracy)."""

    def __str__(self) -> str:
        if self.value is None:
            span = "" if self.low is None or self.high is None else f", [{self.low:.3f}, {self.high:.3f}]"
            return f"unknown{span} ({self.reason or 'no reason given'})"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        numbers = (self.value, self.low, self.high)
        tiny = any(numbers) and max(map(abs, numbers)) < 5e-4  # all would read 0.000
        value, low, high = (f"{number:{'.1g' if tiny else '.3f'}}" for number in numbers)
        return f"{value} [{low}, {high}]"


def point(value: float, *, unit: str = "", n: int = 0, reason: str = "") -> Estimate:
    """A point value, such as a training loss: no interval, so no release gate accepts it."""
    return Estimate(value=value, unit=unit, n=n, reason=reason)


def unknown(reason: str, *, n: int = 0, unit: str = "") -> Estimate:
    """A measurement without a result; ``reason`` says why."""
    return Estimate(value=None, reason=reason, n=n, missing=n, unit=unit, method="none")


def impossible(name: str, estimate: Estimate) -> list[str]:
    """Why a metric called ``name`` cannot have these figures, one sentence each; [] where it can.

    That the value is between its bounds is checked by the gate.
    """
    ends = [end for end in (estimate.value, estimate.low, estimate.high) if end is not None]
    faults = []
    if not all(map(math.isfinite, ends)):
        faults.append("a figure is not finite")
        ends = []
    if estimate.low is not None and estimate.high is not None and estimate.low > estimate.high + _SLACK:
        faults.append(f"the lower bound {estimate.low:.6g} is above the upper one {estimate.high:.6g}")
    if not 0.0 < estimate.level < 1.0:
        faults.append(f"a level of {estimate.level:.6g} is no coverage: it lies between 0 and 1")
    if not 0 <= estimate.n < _LARGEST:
        faults.append(f"n = {estimate.n:.6g} cannot be counted")
    if not 0 <= estimate.missing <= max(estimate.n, 0):
        faults.append(f"{estimate.missing:.6g} of {estimate.n:.6g} units are missing")
    if estimate.clusters is not None and not 0 <= estimate.clusters <= max(estimate.n, 0):
        faults.append(f"{estimate.clusters:.6g} clusters of {estimate.n:.6g} units")
    least, most = span(name, estimate.method)
    if any(not least - _SLACK <= end <= most + _SLACK for end in ends):
        told = " to ".join(f"{end:.6g}" for end in (min(ends), max(ends)))
        faults.append(f"{told} reaches beyond {least:g} to {most:g}, where such a share lies")
    return [f"metric '{name}' is impossible: {fault}" for fault in faults]


def span(name: str, method: str) -> tuple[float, float]:
    """The range of possible values of a metric with this name and method."""
    if method.startswith(_CHANGES):
        return -1.0, 1.0
    last = name.partition("/")[0].rpartition("_")[2]
    if last in _RATES or (not method.endswith(_INVERTED) and any(share in method for share in _SHARES)):
        return 0.0, 1.0
    return -math.inf, math.inf
