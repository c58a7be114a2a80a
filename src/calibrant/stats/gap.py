"""The share of a gap that is recovered, (between - floor) / (ceiling - floor): when it says anything, and its
interval.

One rule for weak-to-strong training (PGR) and for sandwiching: a ratio over a gap that is not resolved says
nothing. With .998 and 1.000 a change of one item in a thousand moves it by a half.
"""

from __future__ import annotations

import math

import numpy as np

from calibrant.core import Estimate
from calibrant.stats._sample import Floats

RESOLVED = 3.0
"""Standard errors that a gap must have before anything is divided by it."""


def unresolved(gap: float, error: float, whole: Estimate | None = None) -> str:
    """Why nothing may be divided by a gap with this standard error, or "".

    It must be above 0, more than ``RESOLVED`` of its standard errors, and its own interval, ``whole``, above
    0, where that is known by now: one cluster varies in no draw, and shows nothing of others.
    """
    if gap <= 0:
        return f"the ceiling is not above the floor: the gap is {gap:.3f}"
    if gap <= RESOLVED * error:
        told = f"the gap of {gap:.3f} between floor and ceiling is {gap / error:.1f} of its standard errors"
        return f"{told}; a ratio over it needs more than {RESOLVED:g}"
    if whole is not None and (whole.low is None or whole.low <= 0):
        told = f"the interval of the gap of {gap:.3f} between floor and ceiling holds 0"
        return told + (f": {whole.reason}" if whole.reason else "")
    return ""


def ratio_ends(drawn: Floats, level: float) -> tuple[float, float] | float:
    """Percentile ends of the ratio in joint draws (3, R) of floor, between and ceiling.

    A draw whose gap is not above 0 counts at both ends. Where an end is then infinite: the share of such
    draws, and no ends.
    """
    below = drawn[2] - drawn[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (drawn[1] - drawn[0]) / below
    tail = (1 - level) / 2
    low = float(np.quantile(np.where(below > 0, ratio, -np.inf), tail, method="lower"))
    high = float(np.quantile(np.where(below > 0, ratio, np.inf), 1 - tail, method="higher"))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else float(np.mean(below <= 0))
