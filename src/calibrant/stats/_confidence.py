"""Confidence distributions: the draws whose quantiles are the ends of an exact interval.

The Clopper-Pearson ends for x of n are quantiles of Beta(x, n - x + 1) and Beta(x + 1, n - x). Put into a
function that is monotone in several proportions, such draws give its "melded" ends (Fay, Proschan &
Brittain 2015, Biometrics 71, 146-156). For the mean of values in [0, 1] the same idea is Gaffke's: weigh
the values and one more, 1 for the upper end, by Dirichlet(1, ..., 1) (Gaffke 2005; Learned-Miller & Thomas
2020, arXiv 1905.06208). Both give back Clopper-Pearson for plain yes-or-no data, and never less than that
at the boundary. Their coverage is conjectured in general; here it is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from calibrant.core import InputError
from calibrant.stats._sample import Codes, Floats, agreeing_size, effective_size, numbers
from calibrant.stats.proportion import proportion_interval

End = Literal["low", "high"]

DRAWS = 20_000


def answers(values: Sequence[bool | None], name: str) -> Floats:
    """Yes, no and missing as 1, 0 and NaN (n,).

    Raises:
        InputError: a value is not True, False or None. NumericalError: it is NaN.
    """
    seen = numbers(values, name)
    if not np.isin(seen[~np.isnan(seen)], (0.0, 1.0)).all():
        raise InputError(
            f"'{name}' holds an answer that is neither True, False nor None",
            hint="give yes or no, and None where the answer is missing",
        )
    return seen


def beta_draws(rng: np.random.Generator, successes: Floats | float, n: Floats | float, end: End) -> Floats:
    """``DRAWS`` draws for one end of a proportion; counts are numbers or arrays (DRAWS,), fractions too."""
    yes = np.asarray(successes, np.float64) + (end == "high")
    no = np.asarray(n, np.float64) - successes + (end == "low")
    # A Beta with a parameter of 0 is a point: 0 of n has low end 0, n of n has high end 1.
    drawn = rng.beta(np.maximum(yes, 1e-12), np.maximum(no, 1e-12), size=DRAWS)
    return np.asarray(np.where(yes <= 1e-12, 0.0, np.where(no <= 1e-12, 1.0, drawn)))


def careful_size(values: Floats, codes: Codes | None, level: float) -> float:
    """Effective number of complete ``values`` (n,), n > 0; 0 where all are in one cluster.

    Korn & Graubard's where values differ. Where all agree nothing shows how clusters differ, and it is Kish's
    number of clusters: attempts on one goal that never succeeded are one observation, not many.
    """
    if codes is None:
        return float(values.size)
    if not codes.any():
        return 0.0
    return agreeing_size(codes) if np.ptp(values) == 0 else effective_size(values, codes, level)


def effective_counts(outcomes: Floats, codes: Codes | None, level: float) -> tuple[float, float]:
    """Successes and size of complete 0/1 ``outcomes`` (n,), as independent units."""
    if not outcomes.size:
        return 0.0, 0.0
    size = careful_size(outcomes, codes, level)
    share = float(outcomes.mean())
    return (size if share == 1 else size * share), size


def bounded_ends(worst: tuple[Floats, Floats], codes: Codes | None, level: float) -> tuple[float, float]:
    """Gaffke's interval for a mean: low end from ``worst[0]``, high end from ``worst[1]``, in [0, 1] (n,).

    Whole clusters are weighed where ``codes`` names them; the one more is then as large as the largest.
    """
    tail = (1 - level) / 2
    if not worst[0].size:
        return 0.0, 1.0
    return 1 - _high(1 - worst[0], codes, tail), _high(worst[1], codes, tail)


def _high(values: Floats, codes: Codes | None, tail: float) -> float:
    """Upper end for the mean of complete ``values`` (n,)."""
    if codes is None and np.isin(values, (0.0, 1.0)).all():
        return proportion_interval(float(values.sum()), values.size, 1 - 2 * tail)[1]
    groups = np.arange(values.size) if codes is None else codes
    sizes = np.bincount(groups).astype(np.float64)
    totals = np.round(np.bincount(groups, weights=values), 12)  # sums round alike in every order
    if np.ptp(totals / sizes) < 1e-12 and np.ptp(sizes) == 0:
        share = float(totals[0] / sizes[0])
        return 1 - (1 - share) * float(tail ** (1 / sizes.size))
    pairs, times = np.unique(np.stack([totals, sizes]), axis=1, return_counts=True)
    rng = np.random.default_rng(0)
    weights = rng.standard_gamma(times, size=(DRAWS, times.size))
    extra = rng.standard_gamma(1.0, size=DRAWS) * sizes.max()
    means = (weights @ pairs[0] + extra) / (weights @ pairs[1] + extra)
    return min(1.0, float(np.quantile(means, 1 - tail, method="higher")))
