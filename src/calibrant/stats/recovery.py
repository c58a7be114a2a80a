"""How well learned directions and features recover known ones: matched one to one by the Hungarian method.

The score of a known direction is its cosine with the learned one that it is matched to, under the matching
with the largest sum; MCC is their mean (Sharkey et al. 2022, "Taking features out of superposition"). A sign
counts: a feature that is on or off points one way. F1 of a known feature asks whether the matched one is on
in the same rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from calibrant.core import InputError, NumericalError

Floats = NDArray[np.float64]


class Matched(NamedTuple):
    """A matching of known directions to learned ones."""

    learned: NDArray[np.int64]
    """(m,) the learned direction of each known one; -1 where there were too few."""
    cosines: Floats
    """(m,) of each pair; 0 where there is none."""

    @property
    def mcc(self) -> float:
        """Mean cosine over the known directions."""
        return float(self.cosines.mean())


def match(known: ArrayLike, learned: ArrayLike) -> Matched:
    """Match rows of ``known`` (m, d) to rows of ``learned`` (w, d); rows of zeros match nothing.

    Raises:
        InputError: no rows, or another width. NumericalError: a value is NaN or infinite.
    """
    one, other = _unit(known, "known"), _unit(learned, "learned")
    if one.shape[1] != other.shape[1]:
        raise InputError(
            f"known directions have width {one.shape[1]}, learned ones {other.shape[1]}",
            hint="give one width",
        )
    cosines = one @ other.T
    rows, columns = linear_sum_assignment(-cosines)
    found, names = np.zeros(len(one)), np.full(len(one), -1, dtype=np.int64)
    found[rows], names[rows] = cosines[rows, columns], columns
    return Matched(names, found)


def f1_scores(known: ArrayLike, learned: ArrayLike, matched: Matched) -> Floats:
    """(m,) F1 of each known feature: 2 TP / (2 TP + FP + FN) over rows; NaN where neither is ever on.

    Args:
        known: (n, m) coefficients; above 0 is on.
        learned: (n, w) activations; above 0 is on.
        matched: of their directions.

    Raises:
        InputError: other numbers of rows or of features.
    """
    truth, seen = np.asarray(known) > 0, np.asarray(learned) > 0
    if truth.ndim != 2 or seen.ndim != 2 or len(truth) != len(seen) or truth.shape[1] != len(matched.learned):
        raise InputError(
            f"known features {truth.shape}, learned ones {seen.shape}, {len(matched.learned)} matched",
            hint="rows must be the same, and every known feature matched",
        )
    chosen = seen[:, np.maximum(matched.learned, 0)] & (matched.learned >= 0)
    both, all_ = (truth & chosen).sum(0), truth.sum(0) + chosen.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(all_ > 0, 2.0 * both / np.maximum(all_, 1), np.nan)


def _unit(given: ArrayLike, name: str) -> Floats:
    rows = np.asarray(given, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"{name} directions of shape {rows.shape}", hint="give a table (count, width)")
    if not np.isfinite(rows).all():
        raise NumericalError(f"a {name} direction is NaN or infinite", hint="check the training")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(norms > 0, norms, 1.0)
    return unit
