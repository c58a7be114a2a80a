"""Logistic regression with an L2 penalty, by Newton's method (iteratively reweighted least squares), in
numpy.

    minimise  sum_i log(1 + exp(-s_i (b + w . x_i)))  +  l2 / 2 |w|^2        s_i = 1 or -1; b is free

Convex, so there is one answer; where features outnumber rows it is found in the rows' own span, which the
penalty never leaves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from calibrant.core.errors import NumericalError

Floats = NDArray[np.float64]
_STEPS = 100


def logistic(features: Floats, labels: NDArray[np.bool_], l2: float) -> tuple[Floats, float]:
    """Weights (D,) and bias for ``features`` (N, D) and ``labels`` (N,); ``l2`` above 0.

    Raises:
        NumericalError: a feature is not finite, or a hundred steps were not enough.
    """
    if not np.isfinite(features).all():
        raise NumericalError("a feature is NaN or infinite", hint="load the model in float32")
    n, d = features.shape
    turn = np.eye(d)
    if d > n:
        # w = V u for the right singular vectors V of the features: the penalty kills all else.
        turn = np.linalg.svd(features, full_matrices=False)[2].T
    x = np.column_stack([features @ turn, np.ones(n)])
    penalty = np.full(x.shape[1], l2)
    penalty[-1] = 0.0
    y = labels.astype(np.float64)
    # Starting at the base rate keeps the first step sane where one label is rare.
    solution = np.zeros(x.shape[1])
    share = min(max(y.mean(), 1e-6), 1 - 1e-6)
    solution[-1] = np.log(share / (1 - share))
    for _ in range(_STEPS):
        p = expit(x @ solution)
        slope = x.T @ (p - y) + penalty * solution
        curve = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curve, slope)
        size = _shorten(x, y, penalty, solution, step, slope)
        solution = solution - size * step
        if np.abs(size * step).max() < 1e-10 * (1 + np.abs(solution).max()):
            return turn @ solution[:-1], float(solution[-1])
    raise NumericalError(
        f"logistic regression on {n} rows of {d} features did not settle in {_STEPS} steps",
        hint="raise l2: labels of one kind only, or too small a penalty, have no finite answer",
    )


def loss(x: Floats, y: Floats, penalty: Floats, solution: Floats) -> float:
    """The penalised log-loss at ``solution``; ``x`` (N, K) holds a column of ones for the bias."""
    score = x @ solution
    return float(np.logaddexp(0.0, score).sum() - y @ score + 0.5 * (penalty * solution**2).sum())


def _shorten(x: Floats, y: Floats, penalty: Floats, at: Floats, step: Floats, slope: Floats) -> float:
    """Largest of 1, 1/2, 1/4, ... at which the loss falls enough (Armijo); Newton alone can overshoot."""
    before, gain = loss(x, y, penalty, at), float(slope @ step)
    size = 1.0
    while size > 1e-8 and loss(x, y, penalty, at - size * step) > before - 1e-4 * size * gain + 1e-12:
        size /= 2
    return size
