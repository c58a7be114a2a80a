"""A judge's errors from double sampling: people saw its hits, and a random part of the rest.

Sensitivity among all attempts is not the share among those that people saw: hits are all looked at and
misses are not, so it is taken from the estimated totals (verification bias: Begg & Greenes 1983, Biometrics
39, 207-215):

    Se = H p / (H p + N q),        Sp = N (1 - q) / (N (1 - q) + H (1 - p))

for H hits of which people confirm a share p, and N others of which they call a share q a yes. Bounds put
exact intervals of p and q, each at level 1 - alpha / 2 (Bonferroni), at their worst corners.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import betainccinv, betaincinv

from calibrant.core import Estimate, unknown
from calibrant.stats.proportion import proportion_interval

MOST = 100_000
"""Largest equivalent count: beyond it nothing changes."""


class Counts(NamedTuple):
    """What people said, by the judge's answer. Every hit was to be looked at, of the rest some."""

    hits: int
    hits_yes: int
    hits_no: int
    rest: int
    rest_yes: int
    rest_no: int
    rest_open: int = 0
    """Of the rest, picked and without an answer; of the hits these are all but ``hits_yes`` and
    ``hits_no``."""


class Errors(NamedTuple):
    """Both, with their intervals."""

    sensitivity: Estimate
    specificity: Estimate


def errors(counts: Counts, level: float) -> Errors:
    """Sensitivity and specificity; unknown where nobody looked at one of the two sides."""
    hits, rest = counts.hits_yes + counts.hits_no, counts.rest_yes + counts.rest_no
    n = counts.hits + counts.rest
    lacking = "hits" if counts.hits and not hits else "failures" if counts.rest and not rest else ""
    if lacking or not n:
        why = f"nobody has labelled any of the judge's {lacking}" if n else "the judge decided nothing"
        lost = unknown(why, n=max(n, 1), unit="attempt")
        return Errors(lost, lost)
    inner = 1 - (1 - level) / 2
    left_open = counts.hits - hits
    p = _side(counts.hits_yes, counts.hits_no, left_open, inner)
    q = _side(counts.rest_yes, counts.rest_no, counts.rest_open, inner)
    missing = left_open + counts.rest_open
    return Errors(
        _ratio([_sensitivity(counts, p[i], q[j]) for i, j in ((1, 1), (0, 2), (2, 0))], n, missing, level),
        _ratio([_specificity(counts, p[i], q[j]) for i, j in ((1, 1), (0, 2), (2, 0))], n, missing, level),
    )


def equivalent(found: Errors, counts: Counts) -> tuple[int, int, int, int]:
    """Counts (found, positives, cleared, negatives) whose exact intervals are at least as wide as those
    found.

    A card holds counts; these stand for what was learnt from a weighted sample. 0 of 0 where nothing was.
    """
    most = min(MOST, counts.hits + counts.rest)
    return (*_whole(found.sensitivity, most), *_whole(found.specificity, most))


def _side(yes: int, no: int, left_open: int, level: float) -> tuple[float, float, float]:
    """Low end, value and high end of a share; what was left open is a no for the first, a yes for the
    last."""
    if yes + no == 0:
        return 0.0, 0.0, 0.0
    n = yes + no + left_open
    low, high = proportion_interval(yes, n, level)[0], proportion_interval(yes + left_open, n, level)[1]
    return low, yes / (yes + no), high


def _sensitivity(counts: Counts, p: float, q: float) -> float | None:
    found, missed = counts.hits * p, counts.rest * q
    return found / (found + missed) if found + missed > 0 else None


def _specificity(counts: Counts, p: float, q: float) -> float | None:
    cleared, wrong = counts.rest * (1 - q), counts.hits * (1 - p)
    return cleared / (cleared + wrong) if cleared + wrong > 0 else None


def _ratio(corners: list[float | None], n: int, missing: int, level: float) -> Estimate:
    """Value, low corner and high corner as an estimate."""
    value, low, high = corners
    if value is None:
        return unknown("people found no such reply", n=n, unit="attempt")
    return Estimate(
        value=value,
        low=0.0 if low is None else min(low, value),
        high=1.0 if high is None else max(high, value),
        level=level,
        n=n,
        missing=missing,
        method="two-phase (clopper-pearson, bonferroni)",
        unit="attempt",
        better="higher",
    )


def _whole(found: Estimate, most: int) -> tuple[int, int]:
    """The largest (yes, n) with yes / n near the value whose exact interval holds that of ``found``."""
    if found.value is None or found.low is None or found.high is None:
        return 0, 0
    n = np.arange(1, most + 1, dtype=np.float64)
    yes = np.round(found.value * n)
    tail = (1 - found.level) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(yes == 0, 0.0, betaincinv(yes, n - yes + 1, tail))
        high = np.where(yes == n, 1.0, betainccinv(yes + 1, n - yes, tail))
    wide = np.flatnonzero((low <= found.low + 1e-12) & (high >= found.high - 1e-12))
    if not wide.size:
        return 0, 0
    return int(yes[wide[-1]]), int(n[wide[-1]])
