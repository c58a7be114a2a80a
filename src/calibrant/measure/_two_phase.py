"""A judge's sensitivity and specificity from two-phase sampling: people labelled its hits and a sample of the
rest.

Sensitivity over all attempts is not the share among labelled ones: all hits are labelled and most misses are
not, so it is computed from the estimated totals (verification bias: Begg & Greenes 1983, Biometrics 39,
207-215):

    Se = h p / (h p + (1 - h) q),        Sp = (1 - h) (1 - q) / ((1 - h) (1 - q) + h (1 - p))

where the judge says yes to a share h, of which people confirm a share p, and people say yes to a share q of
the rest. Both rise with p and fall with q; the first rises with h and the second falls. So each end of an
interval is a quantile over Clopper-Pearson draws of the three, every one from its less favourable side
(melding: Fay, Proschan & Brittain 2015, Biometrics 71, 146-156; as in ``stats.rogan_gladen``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainccinv, betaincinv

from calibrant.core import Estimate, unknown

Floats = NDArray[np.float64]
_DRAWS = 20_000
_MOST = 100_000  # largest equivalent count: beyond it nothing changes


class Counts(NamedTuple):
    """Human labels by the judge's answer, for all hits and a sample of the rest."""

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
    """Sensitivity and specificity; unknown where one of the two sides has no labels."""
    hits, rest = counts.hits_yes + counts.hits_no, counts.rest_yes + counts.rest_no
    n = counts.hits + counts.rest
    lacking = "hits" if counts.hits and not hits else "failures" if counts.rest and not rest else ""
    if lacking or not n:
        why = f"there are no human labels of the judge's {lacking}" if n else "the judge decided nothing"
        lost = unknown(why, n=max(n, 1), unit="attempt")
        return Errors(lost, lost)
    share, p = counts.hits / n, counts.hits_yes / max(hits, 1)
    q = counts.rest_yes / max(rest, 1)
    less, more = _Drawn(counts, "low", "high", seed=0), _Drawn(counts, "high", "low", seed=1)
    estimates = []
    for formula, ends in (
        (_sensitivity, ((less.low_share, less), (more.high_share, more))),
        (_specificity, ((less.high_share, less), (more.low_share, more))),
    ):
        value = formula(*(np.array([x]) for x in (share, p, q)))[0]
        low, high = (formula(h, side.p, side.q) for h, side in ends)
        estimates.append(_estimate(float(value), low, high, counts, level))
    return Errors(*estimates)


def equivalent(rates: Errors, counts: Counts) -> tuple[int, int, int, int]:
    """Counts (found, positives, cleared, negatives) whose exact intervals are at least as wide as those
    found.

    A card holds counts; these are equivalent to the weighted sample. 0 of 0 where there is none.
    """
    most = min(_MOST, counts.hits + counts.rest)
    return (*_whole(rates.sensitivity, most), *_whole(rates.specificity, most))


class _Drawn:
    """Draws of the three shares, ``p`` from one side and ``q`` from the other; what was left open goes with
    them."""

    def __init__(self, counts: Counts, p_side: str, q_side: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        left_open = counts.hits - counts.hits_yes - counts.hits_no
        self.p = _beta(rng, counts.hits_yes, counts.hits_no, left_open, p_side)
        self.q = _beta(rng, counts.rest_yes, counts.rest_no, counts.rest_open, q_side)
        self.low_share = _beta(rng, counts.hits, counts.rest, 0, "low")
        self.high_share = _beta(rng, counts.hits, counts.rest, 0, "high")


def _beta(rng: np.random.Generator, yes: int, no: int, left_open: int, side: str) -> Floats:
    """Draws whose tail quantile is the Clopper-Pearson bound on one side; open answers stand against it."""
    if side == "low":
        yes, no = yes, no + left_open + 1
    else:
        yes, no = yes + left_open + 1, no
    # A Beta with a parameter of 0 is a point: 0 of n has its low end at 0, n of n its high end at 1.
    if yes == 0 or no == 0:
        return np.full(_DRAWS, float(no == 0))
    return rng.beta(yes, no, size=_DRAWS)


def _sensitivity(share: Floats, p: Floats, q: Floats) -> Floats:
    return _part(share * p, (1 - share) * q)


def _specificity(share: Floats, p: Floats, q: Floats) -> Floats:
    return _part((1 - share) * (1 - q), share * (1 - p))


def _part(right: Floats, wrong: Floats) -> Floats:
    """right / (right + wrong); NaN where there is neither."""
    whole = right + wrong
    return np.divide(right, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _estimate(value: float, low: Floats, high: Floats, counts: Counts, level: float) -> Estimate:
    n, tail = counts.hits + counts.rest, (1 - level) / 2
    if np.isnan(value):
        return unknown("people found no such reply", n=n, unit="attempt")
    # A draw in which nothing of the kind happened allows every value.
    low_end = float(np.quantile(np.nan_to_num(low, nan=0.0), tail, method="lower"))
    high_end = float(np.quantile(np.nan_to_num(high, nan=1.0), 1 - tail, method="higher"))
    return Estimate(
        value=value,
        low=min(low_end, value),
        high=max(high_end, value),
        level=level,
        n=n,
        missing=counts.hits - counts.hits_yes - counts.hits_no + counts.rest_open,
        method="two-phase (melded clopper-pearson)",
        unit="attempt",
        better="higher",
    )


def _whole(estimate: Estimate, most: int) -> tuple[int, int]:
    """The largest (yes, n) with yes / n near the value whose exact interval holds that of ``estimate``."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return 0, 0
    n = np.arange(1, most + 1, dtype=np.float64)
    yes = np.round(estimate.value * n)
    tail = (1 - estimate.level) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(yes == 0, 0.0, betaincinv(yes, n - yes + 1, tail))
        high = np.where(yes == n, 1.0, betainccinv(yes + 1, n - yes, tail))
    wide = np.flatnonzero((low <= estimate.low + 1e-12) & (high >= estimate.high - 1e-12))
    if not wide.size:
        return 0, 0
    return int(yes[wide[-1]]), int(n[wide[-1]])
