"""Do layers fail together? The share that passes all of them, beside what independent layers would let pass.

    rho = P(all pass) / product of P(each passes)

1 for independent layers; above 1 they share their gaps, and a stack is worth less than its parts promise;
below 1 they complement each other. Interval: jackknife over clusters of log rho, with Student's t (Efron &
Stein 1981), whose coverage is simulated in ``tests/stats/test_together.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from calibrant.core import Estimate, InputError, unknown
from calibrant.stats._sample import Floats, check_level, cluster_codes

UNIT = "joint over independent"


def failing_together(passes: NDArray[np.bool_], *, clusters: Sequence[str], level: float = 0.95) -> Estimate:
    """rho of columns (n, k), k >= 2, a row an attempt; rows of one cluster are not independent.

    None where a layer lets nothing pass, where one stops nothing (rho is 1 then, whatever it is), or where
    nothing passes all: then layers complement each other fully, and no interval of a ratio can be read.

    Raises:
        InputError: fewer than two columns, lengths that differ, a bad level.
    """
    check_level(level)
    if passes.ndim != 2 or passes.shape[1] < 2:
        raise InputError(f"passes of shape {passes.shape}", hint="give a row an attempt, a column a layer")
    n = len(passes)
    if not n:
        return unknown("there is no attempt", n=0, unit=UNIT)
    each = passes.mean(0)
    if each.min() == 0:
        return unknown("a layer lets no attempt pass", n=n, unit=UNIT)
    if each.max() == 1:
        return unknown("a layer stops no attempt, so it cannot fail with another", n=n, unit=UNIT)
    if not passes.all(1).any():
        return unknown("no attempt passes all of them: nothing fails together here", n=n, unit=UNIT)
    codes = cluster_codes(clusters, n)
    codes = np.arange(n) if codes is None else np.unique(codes, return_inverse=True)[1]
    count = int(codes.max()) + 1
    value, spread = _log_rho(passes, np.ones(n)), math.nan
    if count > 1:
        parts = np.array([_log_rho(passes, (codes != left).astype(float)) for left in range(count)])
        if np.isfinite(parts).all():
            spread = math.sqrt((count - 1) / count * float(((parts - parts.mean()) ** 2).sum()))
    if not math.isfinite(spread) or spread == 0:
        return unknown("one goal decides it: without it nothing passes, or everything", n=n, unit=UNIT)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * spread
    return Estimate(
        value=math.exp(value), low=math.exp(value - half), high=math.exp(value + half), level=level, n=n,
        clusters=count, method="jackknife over clusters, log", unit=UNIT, better="lower", null_value=1.0,
    )  # fmt: skip


def _log_rho(passes: NDArray[np.bool_], weights: Floats) -> float:
    total = weights.sum()
    joint, each = (passes.all(1) @ weights) / total, (passes.T @ weights) / total
    if joint <= 0 or each.min() <= 0:
        return math.inf
    return float(np.log(joint) - np.log(each).sum())
