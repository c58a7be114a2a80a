"""Estimates from runs that share their items and differ in their seeds: items x seeds, crossed.

The mean over both varies with the items that were drawn and with the seeds. The two parts are estimated
apart and added in quadrature, each end for itself (Zou & Donner 2008, Statistics in Medicine 27, 1693-1702):
the items' part is the interval of the items' means over seeds, the seeds' part Student's t over the seeds'
means. What items and seeds share is counted in both, so the sum is a little wide, never narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from calibrant.core import Estimate, InputError, unknown
from calibrant.stats._sample import (
    Better,
    Codes,
    Floats,
    check_level,
    cluster_codes,
    cluster_count,
    sentence,
)
from calibrant.stats.bootstrap import RESAMPLES, Bounds, check_resamples, mean
from calibrant.stats.gap import ratio_ends, unresolved
from calibrant.stats.paired import difference

_OVER_SEEDS = "student-t over seeds"


def seeded_mean(
    table: Floats,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better,
    unit: str,
    null_value: float | None = None,
) -> Estimate:
    """Mean of yes-or-no scores (S, N) over S seeds and N items; NaN where an item is not of a seed's set.

    An item counts with its mean over the seeds that have it; items that no seed has are left out. ``n`` is
    the number of items. Where there are none the estimate is unknown.

    Raises:
        InputError: fewer than two seeds, or a bad level.
    """
    known = ~np.isnan(_checked(table, level))
    counts = known.sum(0)
    kept = counts > 0
    if not kept.any():
        return unknown("no item is of the set that this is asked of", n=table.shape[1], unit=unit)
    filled = np.where(known, table, 0.0)
    values = filled[:, kept].sum(0) / counts[kept]
    groups = None if clusters is None else [c for c, here in zip(clusters, kept, strict=True) if here]
    found = mean(
        values.tolist(),
        clusters=groups,
        level=level,
        better=better,
        unit=unit,
        null_value=null_value,
        bounds=(0.0, 1.0),
    )
    some = known.any(1)
    means = filled[some].sum(1) / known[some].sum(1)
    return _widened(found, means, level, (0.0, 1.0))


def seeded_difference(
    before: Floats,
    after: Floats,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better,
    unit: str,
) -> Estimate:
    """Mean of ``after - before``, both (S, N) yes-or-no scores of the same items and seeds; paired in both.

    Raises:
        InputError: fewer than two seeds, shapes that differ, or a bad level.
    """
    if before.shape != after.shape:
        raise InputError(f"scores of shape {before.shape} and {after.shape}", hint="pair them")
    _checked(before, level)
    one, two = (table.mean(0).tolist() for table in (before, after))
    found = difference(one, two, clusters=clusters, level=level, better=better, unit=unit)
    return _widened(found, (after - before).mean(1), level, (-1.0, 1.0))


def gap_recovered(
    floor: Floats,
    between: Floats,
    ceiling: Floats,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    unit: str,
) -> Estimate:
    """(between - floor) / (ceiling - floor) of mean scores, each (S, N): the share of a gap that is closed.

    Unknown unless the gap below the line is resolved: see ``stats.gap``, and above 0 in all but
    (1 - level) / 2 of the draws.

    The interval is the percentile interval of the ratio in joint draws: items (clusters, where named) are
    drawn with replacement, the same for all three, and the seeds' part is drawn from a multivariate t with
    S - 1 degrees of freedom whose covariance is that of the seeds' means, since two to five seeds are too few
    to be resampled. A draw whose gap is not above 0 counts at both ends. Where ``between`` is the floor or
    the ceiling in every score, no draw varies; the ends are then those of the paired difference over the gap.

    Raises:
        InputError: fewer than two seeds, shapes that differ, a bad level, fewer than 100 resamples.
    """
    check_resamples(resamples)
    if not floor.shape == between.shape == ceiling.shape:
        raise InputError("the three tables differ in shape", hint="give the same seeds and items")
    tables = np.stack([_checked(table, level) for table in (floor, between, ceiling)])
    _, seeds, n = tables.shape
    by_seed = tables.mean(2)
    means = by_seed.mean(1)
    gap = float(means[2] - means[0])
    if gap <= 0:
        return unknown(unresolved(gap, 0.0), n=n, unit=unit)
    codes = cluster_codes(clusters, n)
    rng = np.random.default_rng(seed)
    by_items = _drawn_items(tables.mean(1), codes, resamples, rng)
    apart = by_seed - means[:, None]
    gap_seeds = float(((apart[2] - apart[0]) ** 2).sum()) / (seeds * (seeds - 1))
    error = math.sqrt(float(np.var(by_items[2] - by_items[0])) + gap_seeds)
    whole = seeded_difference(floor, ceiling, clusters=clusters, level=level, better="higher", unit=unit)
    told = unresolved(gap, error, whole)
    if told:
        return unknown(told, n=n, unit=unit)
    scale = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, resamples)) / math.sqrt(seeds * (seeds - 1))
    drawn = by_items + (apart @ rng.standard_normal((seeds, resamples))) * scale
    drawn_ends = ratio_ends(drawn, level)
    if isinstance(drawn_ends, float):
        told = f"the gap of {gap:.3f} between floor and ceiling is not above 0 in {drawn_ends:.1%}"
        return unknown(f"{told} of the draws of items and seeds; run more seeds", n=n, unit=unit)
    low, high = drawn_ends
    value = float(means[1] - means[0]) / gap
    ends, remark = (min(low, value), max(high, value)), ""
    for place, name in ((0, "floor"), (2, "ceiling")):
        if np.array_equal(tables[1], tables[place]):  # no draw can show what is not in the sample
            unseen = seeded_difference(
                tables[place], tables[1], clusters=clusters, level=level, better="none", unit=unit
            )
            ends = (value + (unseen.low or 0.0) / gap, value + (unseen.high or 0.0) / gap)
            remark = (
                f"the scores are those of the {name} throughout: the ends allow for items that differ unseen"
            )
    return Estimate(
        value=value,
        low=ends[0],
        high=ends[1],
        level=level,
        n=n,
        reason=remark,
        clusters=cluster_count(codes),
        method="joint draws of items and seeds",
        unit=unit,
        better="higher",
        null_value=0.0,
    )


def _checked(table: Floats, level: float) -> Floats:
    check_level(level)
    if table.ndim != 2 or len(table) < 2 or not table.shape[1]:
        raise InputError(f"scores of shape {table.shape}", hint="give (seeds, items), two seeds or more")
    return table


def _drawn_items(values: Floats, codes: Codes | None, resamples: int, rng: np.random.Generator) -> Floats:
    """(A, R) means of values (A, N) in each draw of items or clusters."""
    groups = np.arange(values.shape[1]) if codes is None else codes
    sizes = np.bincount(groups)
    sums = np.stack([np.bincount(groups, weights=row) for row in values])
    means = np.empty((len(values), resamples))
    for at in range(resamples):  # one draw at a time: no table of draws by items is held
        times = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        means[:, at] = sums @ times / (sizes @ times)
    return means


def _widened(found: Estimate, means: Floats, level: float, bounds: Bounds) -> Estimate:
    """``found``, an interval over items, with the spread of the seeds' ``means`` added to both ends."""
    if found.value is None or found.low is None or found.high is None:
        return found
    count = len(means)
    remark = ""
    if count < 2:
        remark = "only one seed has such items, so nothing shows how seeds differ"
        half = 0.0
    else:
        half = float(stdtrit(count - 1, (1 + level) / 2)) * float(np.std(means, ddof=1)) / math.sqrt(count)
    low = found.value - math.hypot(found.value - found.low, half)
    high = found.value + math.hypot(found.high - found.value, half)
    ends = {"low": max(low, bounds[0]), "high": min(high, bounds[1])}
    told = {"method": f"{found.method}, {_OVER_SEEDS}", "reason": sentence([found.reason, remark])}
    return found.model_copy(update={**ends, **told})
