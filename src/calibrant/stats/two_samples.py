"""The difference between the means of two groups of different units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from calibrant.core import Estimate, InputError
from calibrant.stats._sample import Better, Codes, Floats, agreeing_size, check_level, cluster_codes, numbers


def mean_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    clusters: tuple[Sequence[str], Sequence[str]] | None = None,
    level: float = 0.95,
    better: Better = "none",
    unit: str,
) -> Estimate:
    """Mean of ``first`` (n,) less mean of ``second`` (m,), by Welch's t (1947, Biometrika 34, 28-35).

    ``clusters`` names the group of each unit of either. The variance of a mean is then the jackknife's, a
    cluster left out at a time, with Kish's number of clusters for Welch and Satterthwaite's degrees of
    freedom; a cluster that has units in both is taken as two, which errs towards wide. Without clusters it
    is the interval of ``scipy.stats.ttest_ind(equal_var=False)``. ``null_value`` is 0.

    Raises:
        InputError: fewer than two units or clusters in a group, lengths that differ, a bad level.
        NumericalError: a value is NaN or infinite.
    """
    check_level(level)
    groups = [numbers(first, "first"), numbers(second, "second")]
    codes = [cluster_codes(clusters[i] if clusters else None, group.size) for i, group in enumerate(groups)]
    parts = [_of_mean(group, code) for group, code in zip(groups, codes, strict=True)]
    value = math.fsum(groups[0]) / groups[0].size - math.fsum(groups[1]) / groups[1].size
    variance = sum(v for v, _ in parts)
    low = high = None
    reason = "all values of a group are alike, so there is no interval"
    if variance > 0:
        freedom = variance**2 / sum(v**2 / f for v, f in parts)
        reach = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
        low, high, reason = value - reach, value + reach, ""
    known = [
        int(code.max()) + 1 if code is not None else g.size for code, g in zip(codes, groups, strict=True)
    ]
    clustered = any(code is not None for code in codes)
    return Estimate(
        value=value,
        low=low,
        high=high,
        level=level,
        n=sum(group.size for group in groups),
        clusters=sum(known) if clustered else None,
        reason=reason,
        method="welch, jackknife of clusters" if clustered else "welch",
        unit=unit,
        better=better,
        null_value=0.0,
    )


def _of_mean(values: Floats, codes: Codes | None) -> tuple[float, float]:
    """Variance of the mean of one group, and its degrees of freedom."""
    if np.isnan(values).any():
        raise InputError("a value is missing", hint="leave the unit out, and say so")
    groups = np.arange(values.size) if codes is None else codes
    count = int(groups.max()) + 1 if values.size else 0
    if count < 2:
        raise InputError(
            f"a group has {values.size} values in {count} clusters: two are the least",
            hint="give more units, of several clusters",
        )
    sizes = np.bincount(groups)
    left_out = np.bincount(groups, weights=values - values.mean()) / (values.size - sizes)
    variance = float((left_out**2).sum()) * (count - 1) / count
    return variance, max(1.0, agreeing_size(groups) - 1)
