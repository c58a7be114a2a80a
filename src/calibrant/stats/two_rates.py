"""The difference of two rates over different units: Newcombe's square-and-add of their own intervals."""

from __future__ import annotations

import math

from calibrant.core import Estimate, unknown
from calibrant.stats._sample import Better


def rates_apart(first: Estimate, second: Estimate, *, better: Better, unit: str) -> Estimate:
    """``second`` less ``first``, each a rate with an interval over units that the other does not have.

    Low end: value - sqrt((p2 - l2)^2 + (u1 - p1)^2), and so above (Newcombe 1998, Statistics in Medicine 17,
    873-890; Zou & Donner 2008). Where the intervals are exact or clustered, so is what goes into it, and
    missing units are at their worst case in both. Without one of the rates it is unknown.
    """
    lost = [one.reason for one in (first, second) if None in (one.value, one.low, one.high)]
    n, missing = first.n + second.n, first.missing + second.missing
    if lost:
        return unknown(lost[0], n=max(n, 1), unit=unit)
    p, low, high = (
        [float(x or 0.0) for x in ends]
        for ends in ((first.value, second.value), (first.low, second.low), (first.high, second.high))
    )
    value = p[1] - p[0]
    return Estimate(
        value=value,
        low=max(-1.0, value - math.hypot(p[1] - low[1], high[0] - p[0])),
        high=min(1.0, value + math.hypot(high[1] - p[1], p[0] - low[0])),
        level=first.level,
        n=n,
        missing=missing,
        method=f"newcombe ({first.method})",
        unit=unit,
        better=better,
        null_value=0.0,
    )
