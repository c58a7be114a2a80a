"""One mean over another, such as a cost for each success, and sums of means of different units."""

from __future__ import annotations

import math

from calibrant.core import Estimate, unknown
from calibrant.stats._sample import Better


def per(top: Estimate, bottom: Estimate, *, level: float, better: Better, unit: str) -> Estimate:
    """``top`` over ``bottom``, which is a rate or another mean that is not below 0.

    Each interval covers its mean; the ratio lies between the corners of the two where both do. For coverage
    of ``level`` give both at ``(1 + level) / 2`` (Bonferroni): they may be of the same units, or of others.
    Over a ``bottom`` that may be 0 there is no interval, and ``reason`` says what end there is.
    """
    n = max(top.n, bottom.n)
    missing = min(n, max(top.missing, bottom.missing))
    ends = (top.low, top.high, bottom.low, bottom.high)
    for one in (top, bottom):
        if one.value is None:
            return unknown(one.reason, n=n, unit=unit)
    if not bottom.value or top.value is None:
        return unknown("it is over 0: there is nothing to share it out on", n=n, unit=unit)
    low, high = _corners(*ends)
    reason = ""
    if low is None or high is None:
        reason = "what it is over may be 0, or an end is not known"
        if low is not None or high is not None:
            reason = f"at least {low:.3g}: {reason}" if high is None else f"at most {high:.3g}: {reason}"
        low = high = None
    return Estimate(
        value=top.value / bottom.value,
        low=low,
        high=high,
        level=level,
        n=n,
        missing=missing,
        reason=reason,
        method="corners of two intervals",
        unit=unit,
        better=better,
    )


def _corners(
    low: float | None, high: float | None, least: float | None, most: float | None
) -> tuple[float | None, float | None]:
    """Ends of [low, high] / [least, most], least >= 0."""
    if least is None or most is None or most <= 0:
        return None, None
    below = least if low is not None and low < 0 else most
    above = most if high is not None and high < 0 else least
    return _over(low, below), _over(high, above)


def _over(end: float | None, bottom: float) -> float | None:
    if end is None or (bottom == 0 and end != 0):
        return None
    return end / bottom if bottom else 0.0


def added(first: Estimate, second: Estimate, times: float) -> Estimate:
    """``first + times * second``, means of different units: square-and-add of their intervals (Zou & Donner
    2008, Statistics in Medicine 27, 1693-1702). Unknown where one is; an end is None where one has none."""
    n, missing = first.n + second.n, first.missing + second.missing
    for one in (first, second):
        if one.value is None:
            return unknown(one.reason, n=n, unit=one.unit)
    a, b = first.value or 0.0, times * (second.value or 0.0)
    value = a + b

    def reach(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else math.hypot(one - a, times * other - b)

    below, above = reach(first.low, second.low), reach(first.high, second.high)
    return Estimate(
        value=value,
        low=None if below is None else value - below,
        high=None if above is None else value + above,
        level=first.level,
        n=n,
        missing=missing,
        reason=first.reason or second.reason,
        method="square-and-add",
        unit=first.unit,
        better=first.better,
    )


def scaled(one: Estimate, times: float) -> Estimate:
    """``times`` as much, ``times >= 0``."""
    value, low, high = (None if end is None else times * end for end in (one.value, one.low, one.high))
    return one.model_copy(update={"value": value, "low": low, "high": high})
