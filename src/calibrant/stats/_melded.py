"""The interval behind ``rogan_gladen``: the corrected rate over Clopper-Pearson draws of p, Se and Sp.

Bayer, Fay & Graubard 2022 (arXiv 2205.13494), integrated over the judge's two rates by quadrature instead of
drawn, so that one judge needs no seed.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betainc, betaincinv

from calibrant.core import InputError, JudgeErrors
from calibrant.stats._confidence import End
from calibrant.stats._sample import Floats

HARDLY = 0.01
"""Share of possible draws below which data and calibration contradict each other."""
ASIDE = (
    "the judge's answers hardly fit its calibration, so the interval sets the error that does not fit aside"
)

_LEGENDRE, _WEIGHTS = np.polynomial.legendre.leggauss(40)
# Probabilities at which the judge's rates are taken, dense at both ends, where the tails are.
_NODES, _WEIGHTS = (
    (1 + np.sin(np.pi / 2 * _LEGENDRE)) / 2,
    _WEIGHTS * np.pi / 4 * np.cos(np.pi / 2 * _LEGENDRE),
)


def _check(errors: JudgeErrors) -> None:
    if not (0 <= errors.found <= errors.positives and 0 <= errors.cleared <= errors.negatives):
        raise InputError(
            f"errors of a judge that cannot be: {errors!r}",
            hint="found counts some of the positives, cleared some of the negatives",
        )


def rates_of(errors: JudgeErrors, end: End) -> tuple[tuple[float, float], tuple[float, float]]:
    """Beta parameters of the false-positive rate and the sensitivity: high ones make the rate low."""
    wrong = errors.negatives - errors.cleared
    up = end == "low"
    return (
        (wrong + up, errors.negatives - wrong + (not up)),
        (errors.found + up, errors.positives - errors.found + (not up)),
    )


def _quantiles(a: float, b: float) -> Floats:
    """Beta(a, b) at the nodes; a point where a parameter is 0."""
    if a == 0 or b == 0:
        return np.full_like(_NODES, float(a > 0))
    return np.asarray(betaincinv(a, b, _NODES))


def why_blind(errors: JudgeErrors | None, tail: float) -> str:
    """Why the judge cannot be corrected, or ""."""
    if errors is None:
        return "this judge's errors are not measured here"
    _check(errors)
    # The unfavourable sides: the upper false-positive rate against the lower sensitivity.
    wrong, _ = rates_of(errors, "low")
    _, right = rates_of(errors, "high")
    line = _quantiles(*wrong)
    useless = 1.0 if right[0] == 0 else float(_WEIGHTS @ betainc(*right, line))
    if useless <= tail:
        return ""
    return (
        f"the judge found {errors.found} of {errors.positives} positives and cleared {errors.cleared} of "
        f"{errors.negatives} negatives: not credibly better than chance"
    )


def below(rate: float, counts: tuple[float, float], sides: tuple[Floats, Floats], end: End) -> float:
    """Share of the melded draws of one end that lie at or below ``rate`` in [0, 1].

    ``counts`` are yes and n; ``sides`` the judge's two rates at the nodes (``sides_of``).
    """
    line, top = sides[0][:, None], sides[1][None, :]
    at = np.where(top > line, line + rate * (top - line), 0.0)
    yes, no = counts[0] + (end == "high"), counts[1] - counts[0] + (end == "low")
    if yes == 0:
        share = np.ones_like(at)
    elif no == 0:
        share = (at >= 1).astype(np.float64)
    else:
        share = betainc(yes, no, at)
    # A draw in which the judge is no better than chance allows every rate.
    return float(_WEIGHTS @ np.where(top > line, share, float(end == "low")) @ _WEIGHTS)


def sides_of(
    counts: tuple[float, float], errors: JudgeErrors, end: End
) -> tuple[tuple[Floats, Floats], float, bool]:
    """The judge's two rates at the nodes, the share of draws that are possible, and if errors were set aside.

    A draw is impossible where the judge says yes less often than its false positives alone would (high
    end), or more often than its sensitivity allows (low end). See point 4 of ``rogan_gladen``.
    """
    wrong, right = rates_of(errors, end)
    sides = (_quantiles(*wrong), _quantiles(*right))
    possible = 1 - below(0.0, counts, sides, end) if end == "high" else below(1.0, counts, sides, end)
    if possible >= HARDLY:
        return sides, possible, False
    sides = (np.zeros_like(_NODES), sides[1]) if end == "high" else (sides[0], np.ones_like(_NODES))
    return sides, 1.0, True


def melded_end(counts: tuple[float, float], errors: JudgeErrors, end: End, tail: float) -> tuple[float, bool]:
    """One end of the interval, and whether the calibration had to be set aside for it."""
    sides, possible, aside = sides_of(counts, errors, end)
    goal = tail * possible if end == "low" else 1 - tail * possible
    if below(0.0, counts, sides, end) >= goal:
        return 0.0, aside
    if below(1.0, counts, sides, end) <= goal:
        return 1.0, aside
    left, right = 0.0, 1.0
    for _ in range(36):  # to 1e-11
        middle = (left + right) / 2
        left, right = (left, middle) if below(middle, counts, sides, end) > goal else (middle, right)
    return (left + right) / 2, aside
