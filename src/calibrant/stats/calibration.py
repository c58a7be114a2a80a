"""Is a reward model right, and as sure as it should be? Every answer with its interval, from margins alone.

A margin is the log-odds that a model gives to the reply that people chose: r(chosen) - r(rejected) for a
Bradley-Terry model, so P(chosen wins) = sigma(margin). Pairs that share a cluster (a prompt) are not
independent, and intervals allow for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, stdtrit

from calibrant.core import Estimate, InputError, unknown
from calibrant.stats._sample import (
    Codes,
    Floats,
    check_level,
    cluster_codes,
    cluster_count,
    effective_size,
    numbers,
)
from calibrant.stats.bootstrap import mean

BINS = 10
"""Most bins of ``calibration_error``."""
_PER_BIN = 20  # fewer pairs than this say next to nothing about a bin
_DRAWS = 4000


def pair_accuracy(
    margins: Sequence[float], *, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Estimate:
    """Share of pairs with a margin above 0, ties 1/2; interval as in ``mean``. Chance is .5.

    Raises:
        NumericalError: a margin is NaN or infinite. InputError: lists of different length, a bad level.
    """
    wins = _wins(numbers(margins, "margins")).tolist()
    return mean(
        wins, clusters=clusters, level=level, better="higher", unit="pair", null_value=0.5, bounds=(0.0, 1.0)
    )


def brier(
    margins: Sequence[float], *, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Estimate:
    """Mean of (1 - P(chosen wins))^2 by a (cluster) bootstrap-t: 0 is perfect, .25 is no opinion.

    Brier 1950, Monthly Weather Review 78, 1-3. Raises as ``pair_accuracy``.
    """
    losses = (expit(-numbers(margins, "margins")) ** 2).tolist()
    return mean(
        losses,
        clusters=clusters,
        level=level,
        better="lower",
        unit="pair",
        null_value=0.25,
        bounds=(0.0, 1.0),
    )


def calibration_error(
    margins: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    bins: int = BINS,
    seed: int = 0,
) -> Estimate:
    """Expected calibration error: mean over bins of |share won - mean confidence|, weighted by size.

    The confidence of a pair is sigma(|margin|), .5 to 1; it is won when the margin is above 0, ties 1/2. Bins
    hold equally many pairs, at least 20 (Naeini et al. 2015, AAAI, with equal mass as in Nixon et al. 2019).

    The estimate is biased upwards: noise in a bin looks like error. The interval is not: by the triangle
    inequality the error lies within sum_b w_b |noise_b| of its estimate, and the ``level`` quantile of that
    sum, drawn from normal noise of each bin, is its half width. It speaks of the error of these bins. At 95%
    it covered 98% on average in 19 cells of 40 to 400 pairs and T from .7 to 2 (worst cell 93%).

    Raises as ``pair_accuracy``, and InputError for less than one bin.
    """
    check_level(level)
    if bins < 1:
        raise InputError(f"{bins} bins hold nothing", hint="give 1 or more; 10 is usual")
    seen = numbers(margins, "margins")
    codes = cluster_codes(clusters, seen.size)
    if not seen.size:
        return unknown("no pairs were given", unit="probability")
    wins, sure = _wins(seen), expit(np.abs(seen))
    cells = np.array_split(np.argsort(sure, kind="stable"), max(1, min(bins, seen.size // _PER_BIN)))
    sizes = np.array([cell.size for cell in cells], dtype=np.float64)
    won = np.array([wins[cell].sum() for cell in cells])
    claimed = np.array([sure[cell].mean() for cell in cells])
    gaps = won / sizes - claimed
    weights = sizes / seen.size
    value = float(weights @ np.abs(gaps))
    share = (won + 0.5) / (sizes + 1)
    # Few pairs may look less noisy than they are; a calibrated model is as noisy as it claims.
    variance = np.maximum(share * (1 - share), claimed * (1 - claimed))
    spread = np.sqrt(variance / sizes / _independent(wins - sure, codes, level))
    noise = np.abs(np.random.default_rng(seed).standard_normal((_DRAWS, sizes.size)) * spread) @ weights
    reach = float(np.quantile(noise, level))
    return Estimate(
        value=value,
        low=max(0.0, value - reach),
        high=min(1.0, value + reach),
        level=level,
        n=seen.size,
        clusters=cluster_count(codes),
        method=f"triangle bound, {sizes.size} bins",
        unit="probability",
        better="lower",
        null_value=0.0,
        reason="the value is biased upwards by noise; the interval is not",
    )


def temperature(
    margins: Sequence[float], *, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Estimate:
    """T that makes P(chosen wins) = sigma(margin / T) likeliest: 1 is calibrated, above 1 too sure.

    Guo et al. 2017 (arXiv 1706.04599), section 4.2, for two classes. The interval is that of 1 / T, with a
    (cluster-robust) sandwich error and Student's t, turned round; where that leaves no upper end there is no
    interval, and the reason has the lower end. Unknown where every margin is on one side (T would
    be 0), or margins point the wrong way (T is infinite).

    Raises as ``pair_accuracy``.
    """
    check_level(level)
    seen = numbers(margins, "margins")
    codes = cluster_codes(clusters, seen.size)
    if seen.sum() <= 0:
        return unknown("the margins do not favour the chosen replies: no temperature fits", n=seen.size)
    if (seen >= 0).all():
        return unknown("no pair is lost, so nothing says how sure is too sure", n=seen.size)
    scale = float(np.abs(seen).max())
    slope = _root(seen / scale) / scale
    odds = expit(-slope * seen)
    error, freedom = _sandwich(seen * odds, float((seen**2 * odds * (1 - odds)).sum()), codes)
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error if freedom >= 1 else float("inf")
    bounded = slope > reach
    return Estimate(
        value=1 / slope,
        low=1 / (slope + reach) if bounded else None,
        high=1 / (slope - reach) if bounded else None,
        level=level,
        n=seen.size,
        clusters=cluster_count(codes),
        method="sandwich on 1/T",
        unit="temperature",
        better="none",
        null_value=1.0,
        reason="" if bounded else f"too few pairs for an upper end; at least {1 / (slope + reach):.3g}",
    )


def length_slope(
    margins: Sequence[float],
    lengths: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
) -> Estimate:
    """How much accuracy a model gains where the chosen reply is longer, per standard deviation of that.

    Slope of the least-squares line of won (1, ties 1/2, 0) against length(chosen) - length(rejected), with a
    (cluster-robust) sandwich error and Student's t. A model that reads length in place of quality wins where
    the chosen reply is longer and loses where it is shorter, so its slope is above 0; one that is right about
    as often either way has 0, however long the chosen replies are.

    Raises as ``pair_accuracy``.
    """
    check_level(level)
    seen, gaps = numbers(margins, "margins"), numbers(lengths, "lengths")
    if seen.size != gaps.size:
        raise InputError(f"{seen.size} margins came with {gaps.size} lengths", hint="give one length a pair")
    codes = cluster_codes(clusters, seen.size)
    if seen.size < 3 or not gaps.std() > 0:
        return unknown("the lengths of chosen and rejected replies do not vary", n=seen.size)
    x, wins = (gaps - gaps.mean()) / gaps.std(), _wins(seen)
    slope = float(x @ (wins - wins.mean()) / (x @ x))
    leverage = 1 / seen.size + x**2 / (x @ x)
    rest = (wins - wins.mean() - slope * x) / (1 - leverage)  # HC3: a far point hides its own error
    error, freedom = _sandwich(x * rest, float(x @ x), codes)
    shown = freedom >= 1 and error > 1e-12
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error if shown else 0.0
    return Estimate(
        value=slope,
        low=slope - reach if shown else None,
        high=slope + reach if shown else None,
        level=level,
        n=seen.size,
        clusters=cluster_count(codes),
        method="least squares, sandwich",
        unit="accuracy per standard deviation of the length difference",
        better="none",
        null_value=0.0,
        reason="" if shown else _no_noise(wins),
    )


def _wins(margins: Floats) -> Floats:
    """1 where the chosen reply wins, 1/2 for a tie, else 0."""
    return (np.sign(margins) + 1) / 2


def _no_noise(wins: Floats) -> str:
    """Why a line without residuals has no interval."""
    if np.ptp(wins) == 0:
        return "all pairs end alike, so nothing shows what length does"
    return "length alone says how every pair ends, so there is no noise to make an interval of"


def _root(margins: Floats) -> float:
    """The a > 0 at which sum m sigma(-a m) = 0: it falls in a, from above 0 at a = 0; by bisection."""
    low, high = 0.0, 1.0
    while float(margins @ expit(-high * margins)) > 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if float(margins @ expit(-middle * margins)) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _sandwich(scores: Floats, bread: float, codes: Codes | None) -> tuple[float, int]:
    """Standard error of an estimating equation with ``scores`` (n,) that add up to 0, and its freedom.

    Liang & Zeger 1986, Biometrika 73, 13-22, with the factor k / (k - 1) for k independent units.
    """
    sums = scores if codes is None else np.bincount(codes, weights=scores)
    k = sums.size
    if k < 2:
        return 0.0, 0
    return float(np.sqrt((sums**2).sum() * k / (k - 1))) / bread, k - 1


def _independent(residuals: Floats, codes: Codes | None, level: float) -> float:
    """Independent units per unit: 1 when units are independent, less within clusters."""
    if codes is None:
        return 1.0
    if cluster_count(codes) == 1:
        return 1.0 / residuals.size
    return max(1.0, effective_size(residuals, codes, level)) / residuals.size
