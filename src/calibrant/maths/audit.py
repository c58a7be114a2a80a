"""Which outputs a monitor's scores send to an audit, at a budget that is a share of honest outputs.

The most powerful rule at that share (Neyman & Pearson 1933): above a threshold always, at it by chance.
Without that chance tied scores miss the budget: of 95 honest scores of 0 and 5 of 10, a percentile at 3 % is
10, and nothing lies above 10, so that nobody is audited. Here each of the five is audited with probability
3/5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SLACK = 1e-9
"""0.29 * 100 is no whole number in floating point."""


class Threshold(NamedTuple):
    """Audit above ``score``; at it with probability ``at_it``."""

    score: float
    """On the monitor's scale; infinite where nothing (budget 0) or everything (budget 1) is audited."""
    at_it: float
    """From 0 to 1."""


def audit_threshold(honest: Floats, budget: float) -> Threshold:
    """The threshold at which a share ``budget`` of ``honest`` scores (n,), n > 0, is audited in expectation.

    Without ties, and with ``budget * n`` = k whole, it is the k-th largest score, itself audited.
    """
    if budget <= 0 or budget >= 1:
        return Threshold(np.inf, 0.0) if budget <= 0 else Threshold(-np.inf, 1.0)
    values, counts = np.unique(honest, return_counts=True)
    values, counts = values[::-1], counts[::-1]
    above, k = np.cumsum(counts) - counts, budget * honest.size
    at = int(np.flatnonzero(above < k * (1 - _SLACK))[-1])
    return Threshold(float(values[at]), float(min(1.0, (k - above[at]) / counts[at])))


def audit_probability(scores: Floats, threshold: Threshold) -> Floats:
    """Probability (m,) that each of ``scores`` (m,) is audited."""
    found: Floats = np.where(
        scores == threshold.score, threshold.at_it, (scores > threshold.score).astype(float)
    )
    return found


def reweighted(scores: Floats, honest: Floats, budget: float, weights: Floats) -> Floats:
    """``audit_probability`` (r, m) where the honest scores (n,) count ``weights`` (r, n) times.

    For the bootstrap: the threshold moves with the sample that it is calibrated on. A row without weight is
    NaN.
    """
    if budget <= 0 or budget >= 1:
        return np.full((len(weights), scores.size), float(budget >= 1))
    values, group = np.unique(honest, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(values.size))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)[:, ::-1]
    above = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(counts, axis=1)], axis=1)
    falling = -values[::-1]
    place = np.searchsorted(falling, -scores, "left")
    tied = np.searchsorted(falling, -scores, "right") > place
    higher, total = above[:, place], above[:, -1:]
    k = budget * total
    ties = counts[:, np.minimum(place, values.size - 1)] * tied
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip((k - higher) / ties, 0.0, 1.0)
    found = np.where(ties > 0, share, (higher < k * (1 - _SLACK)).astype(float))
    return np.where(total > 0, found, np.nan)
