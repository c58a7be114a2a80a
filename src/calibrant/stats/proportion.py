"""Rates with exact or score intervals, missing answers at their worst case, clusters accounted for.

Clopper & Pearson 1934, Biometrika 26, 404-413 (exact); Wilson 1927, JASA 22, 209-212 (score);
Korn & Graubard 1998, Survey Methodology 24(2), 193-201 (clusters, by an effective sample size).
No bootstrap here: near 0 and 1, where safety rates live, it collapses to a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import betainccinv, betaincinv, ndtri

from calibrant.core import Estimate, InputError
from calibrant.stats._sample import (
    Better,
    Codes,
    Floats,
    agreeing_size,
    check_level,
    cluster_codes,
    cluster_count,
    least_size,
    none_answered,
    numbers,
    sentence,
    so_far,
)

Method: TypeAlias = Literal["clopper-pearson", "wilson"]


def proportion_interval(
    successes: float, n: float, level: float = 0.95, method: Method = "clopper-pearson"
) -> tuple[float, float]:
    """Two-sided interval for a proportion, each tail (1 - level) / 2.

    ``successes`` and ``n`` may be fractional (an effective sample size). Clopper-Pearson covers at
    least ``level`` whatever the truth; Wilson covers ``level`` on average. Without data: (0, 1).

    Raises:
        InputError: not 0 <= successes <= n, a level outside (0, 1), or an unknown method.
    """
    check_level(level)
    if not 0 <= successes <= n < float("inf"):
        raise InputError(
            f"a proportion needs 0 <= successes <= n, got successes={successes!r}, n={n!r}",
            hint="count the answered units in n, and the successes among them",
        )
    if method not in ("clopper-pearson", "wilson"):
        raise InputError(f"unknown method {method!r}", hint="use 'clopper-pearson' or 'wilson'")
    if n == 0:
        return 0.0, 1.0
    interval = _clopper_pearson if method == "clopper-pearson" else _wilson
    low, high = interval(float(successes), float(n), (1 - level) / 2)
    # At the ends the formulas give 0/0 or 1e-18; the bounds there are known exactly.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def rate(
    outcomes: Sequence[bool | None],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    method: Method = "clopper-pearson",
    better: Better,
    unit: str,
    null_value: float | None = None,
) -> Estimate:
    """Share of True among ``outcomes`` (n,), with an interval that covers every completion of the missing
    ones.

    ``value`` is the share among the answered. ``low`` counts every missing outcome (None) as False,
    ``high`` counts every one as True; with none answered, ``value`` is None and the interval (0, 1).

    ``clusters`` names the group of each outcome (goal, template); "" is its own cluster. The interval then
    uses Korn & Graubard's effective n. Where all outcomes agree the design effect cannot be seen and
    is taken as 1; ``reason`` then says how wide the interval would be if clusters always agreed.
    Coverage in 18 cells (10 to 30 clusters, rate .1 to .5, correlation 0 or .3): 96.4%, worst 95.0%; with
    very unequal ones (24 cells: one cluster of 20, 50 or 91 beside small ones, sizes that double): 98.8%. It
    fails for rare events in clusters that nearly always agree (rate .02, correlation .9, 30 clusters:
    68%); there ask one question per cluster, such as "did any attempt on this goal succeed?".
    With missing outcomes in clusters each bound is exact in its count, and takes the largest design effect
    of six ways to complete the sample (``least_size``), so that it holds the interval of every completion:
    of 447 random tables of up to 60 outcomes it did in all but one (by .009), of 222 of up to 10 in 95%.

    Raises:
        InputError: an outcome that is not True, False or None; lengths differ; a bad level or method.
        NumericalError: an outcome is NaN.
    """
    check_level(level)
    seen = _binary(outcomes)
    n, gaps = seen.size, np.isnan(seen)
    codes = cluster_codes(clusters, n)
    low, high = _interval(seen, codes, level, method)
    answered = n - int(gaps.sum())
    return Estimate(
        value=float(np.nanmean(seen)) if answered else None,
        low=low,
        high=high,
        level=level,
        n=n,
        clusters=cluster_count(codes),
        missing=n - answered,
        reason=sentence([none_answered(n, answered, "outcome"), _remark(seen, codes, level, method)]),
        method=method if codes is None else f"korn-graubard ({method})",
        unit=unit,
        better=better,
        null_value=null_value,
    )


def rate_so_far(
    outcomes: Sequence[bool | None],
    *,
    clusters: Sequence[str] | None = None,
    done: str,
    better: Better,
    unit: str,
) -> Estimate:
    """``rate``, without a point value where the open outcomes (None) could move it more than sampling error.

    The resolved outcomes are not representative of the open ones: an attack that stops at its first success
    resolves successes first, so when a cap ends it the share among the resolved is 1, whatever the truth.
    ``value`` is None where counting all open ones as False, or all as True, moves that share by more than
    half the width of the resolved ones' own interval. ``reason`` begins "30 of 100 goals reached, 70 open"
    (``done`` = "reached").

    Raises:
        InputError, NumericalError: see ``rate``.
    """
    estimate = rate(outcomes, clusters=clusters, better=better, unit=unit)
    settled = [place for place, outcome in enumerate(outcomes) if outcome is not None]
    if len(settled) == len(outcomes):
        return estimate
    groups = None if clusters is None else [clusters[place] for place in settled]
    alone = rate([outcomes[place] for place in settled], clusters=groups, better=better, unit=unit)
    hits = sum(bool(outcomes[place]) for place in settled)
    reach = (hits / estimate.n, (hits + estimate.missing) / estimate.n)
    return so_far(
        estimate, alone, reach, f"{hits} of {estimate.n} {unit}s {done}, {estimate.missing} open", "share"
    )


def _clopper_pearson(x: float, n: float, tail: float) -> tuple[float, float]:
    """Beta quantiles; real-valued x and n are allowed (Korn & Graubard 1998)."""
    return float(betaincinv(x, n - x + 1, tail)), float(betainccinv(x + 1, n - x, tail))


def _wilson(x: float, n: float, tail: float) -> tuple[float, float]:
    """Invert the score test: the p at which |x/n - p| = z sqrt(p (1 - p) / n)."""
    z = -float(ndtri(tail))
    centre = (x + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * float(np.sqrt(x * (n - x) / n + z * z / 4))
    return centre - half, centre + half


def _interval(seen: Floats, codes: Codes | None, level: float, method: Method) -> tuple[float, float]:
    """Interval for the mean of 0/1 outcomes ``seen`` (n,), NaN where missing, whatever is missing."""
    if seen.size == 0 or cluster_count(codes) == 1:
        return proportion_interval(0, 0, level, method)
    worst = [np.where(np.isnan(seen), fill, seen) for fill in (0.0, 1.0)]
    size = least_size(worst[0], worst[1], codes, level)
    shares = [float(side.mean()) for side in worst]
    ends = [proportion_interval(size if x == 1 else size * x, size, level, method) for x in shares]
    return ends[0][0], ends[1][1]


def _binary(outcomes: Sequence[bool | None]) -> Floats:
    """Outcomes as 0, 1 and NaN for missing."""
    seen = numbers(outcomes, "outcomes")
    odd = np.flatnonzero(~np.isnan(seen) & (seen != 0) & (seen != 1))
    if odd.size:
        raise InputError(
            f"outcomes[{odd[0]}] is {outcomes[int(odd[0])]!r}, neither True, False nor None",
            hint="use calibrant.stats.mean for scores that are not yes or no",
        )
    return seen


def _remark(seen: Floats, codes: Codes | None, level: float, method: Method) -> str:
    """What the clusters leave open."""
    if codes is None:
        return ""
    if cluster_count(codes) == 1:
        return "all units are in one cluster, so nothing shows how clusters differ"
    if np.isnan(seen).any() or np.ptp(seen) > 0:
        return ""
    size = agreeing_size(codes)
    low, high = proportion_interval(size * float(seen[0]), size, level, method)
    return (
        "all outcomes agree, so the design effect was taken as 1; "
        f"if units of a cluster always agreed the interval would be [{low:.3f}, {high:.3f}]"
    )
