"""Estimate (contract C7): a number with its interval, or the reason why there is none."""

from __future__ import annotations

from typing import Literal

from calibrant.core.config import Frozen


class Estimate(Frozen):
    """A measured quantity. A training loss is ``method = "point"`` without bounds; no gate takes it."""

    value: float | None
    """The point estimate; None when it could not be measured (see ``reason``)."""
    low: float | None = None
    """Lower bound of the interval, missing data at its worst case."""
    high: float | None = None
    """Upper bound of the interval, missing data at its worst case."""
    level: float = 0.95
    """Two-sided coverage that the interval claims."""
    n: int = 0
    """Units asked, the missing ones included."""
    clusters: int | None = None
    """Independent groups among the units; None when every unit stands alone."""
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
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def point(value: float, *, unit: str = "", n: int = 0, reason: str = "") -> Estimate:
    """A bare number, such as a training loss: no interval, so no gate accepts it."""
    return Estimate(value=value, unit=unit, n=n, reason=reason)


def unknown(reason: str, *, n: int = 0, unit: str = "") -> Estimate:
    """A measurement that failed, said aloud."""
    return Estimate(value=None, reason=reason, n=n, missing=n, unit=unit, method="none")
