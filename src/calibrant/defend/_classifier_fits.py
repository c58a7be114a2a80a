"""Logistic regressions of a classifier, and their cross-validation: penalties are chosen inside splits.

    minimise  sum_i c_i log(1 + exp(-s_i (b + w . x_i)))  +  l2 / 2 |w|^2        s_i = 1 or -1; b is free

over the texts that rows are read as (``_pieces.py``), with weights c that add up to 1 a row. A row's score is
the highest of its texts.

With hashed n-grams there are more features than texts by far, so the fit takes their products alone: rows L
of a Cholesky factor, L L' = X X', have the same products and so the same scores, and w = sum_i c_i (y_i -
p_i) x_i / l2 where the gradient is zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from calibrant.core import NumericalError
from calibrant.maths.probe import logistic_planes
from calibrant.stats.auroc import area
from calibrant.stats.chance import dealt_again
from calibrant.stats.folds import Cell, Floats, Folds, Held, Rows, apart

_JITTER = 1e-10
"""Added to the squared length of rows, which is 1: copies of a text leave a product matrix singular."""


class Plane(NamedTuple):
    """One regression."""

    mean: Floats
    std: Floats
    weight: Floats
    bias: float


class Table(NamedTuple):
    """All texts of all rows."""

    x: Any
    """(P, D), dense or sparse, those of one row together."""
    starts: Rows
    """(N,) where each row's texts begin."""
    taught: NDArray[np.bool_]
    """(P,) whether a text is one to train on; each row has one."""
    labels: NDArray[np.bool_]
    """(N,)."""

    @property
    def rows(self) -> Rows:
        """(P,) the row of each text."""
        return np.repeat(np.arange(len(self.starts)), np.diff([*self.starts, len(self.taught)]))

    def highest(self, scores: Floats) -> Floats:
        """(N,) from (P,)."""
        found: Floats = np.maximum.reduceat(scores, self.starts)
        return found

    def training(self, inside: Rows) -> tuple[Rows, NDArray[np.bool_], Floats]:
        """Texts to train on of some rows: their places, labels and weights."""
        of = self.rows
        places = np.flatnonzero(self.taught & np.isin(of, inside))
        weights: Floats = np.reciprocal(np.bincount(of[places])[of[places]].astype(np.float64))
        return places, self.labels[of[places]], weights


class Fits(Protocol):
    """Fits a plane to some rows of a table."""

    def scores(self, inside: Rows, l2: float) -> Floats:
        """(P,) log-odds of every text by a fit to these rows."""
        ...

    def plane(self, inside: Rows, l2: float) -> Plane:
        """The fit itself."""
        ...

    def relabelled(self, labels: NDArray[np.bool_]) -> Fits:
        """The same with other labels (N,)."""
        ...


class SparseFits:
    """On n-grams, as they are."""

    def __init__(self, table: Table) -> None:
        self._table, self._taught = table, np.flatnonzero(table.taught)
        known = table.x[self._taught]
        self._products: Floats = np.asarray((table.x @ known.T).todense(), np.float64)
        square = self._products[self._taught]
        factor = np.linalg.cholesky(square + _JITTER * np.eye(len(square)))
        self._factor: Floats = np.asarray(factor, np.float64)

    def scores(self, inside: Rows, l2: float) -> Floats:
        """See ``Fits``."""
        places, pulls, bias = self._fit(inside, l2)
        found: Floats = self._products[:, np.searchsorted(self._taught, places)] @ pulls + bias
        return found

    def plane(self, inside: Rows, l2: float) -> Plane:
        """See ``Fits``."""
        places, pulls, bias = self._fit(inside, l2)
        weight = np.asarray(self._table.x[places].T @ pulls, np.float64)
        return Plane(np.zeros(0), np.zeros(0), weight, bias)

    def relabelled(self, labels: NDArray[np.bool_]) -> Fits:
        """See ``Fits``; what does not depend on labels is shared."""
        other = copy.copy(self)
        other._table = self._table._replace(labels=labels)
        return other

    def _fit(self, inside: Rows, l2: float) -> tuple[Rows, Floats, float]:
        """Places of the texts, how much each pulls, and the bias."""
        places, labels, weights = self._table.training(inside)
        rows = self._factor[np.searchsorted(self._taught, places)]
        planes = logistic_planes(
            torch.from_numpy(rows)[None], torch.from_numpy(labels), l2, torch.from_numpy(weights)
        )
        bias = float(planes.bias[0])
        p = expit(rows @ planes.weight[0].numpy() + bias)
        return places, weights * (labels - p) / l2, bias


class DenseFits:
    """On vectors, standardised by the rows of the fit and divided by the root of their width."""

    def __init__(self, table: Table) -> None:
        if not np.isfinite(table.x).all():
            raise NumericalError("a vector is NaN or infinite", hint="load the model in float32")
        self._table = table

    def scores(self, inside: Rows, l2: float) -> Floats:
        """See ``Fits``."""
        mean, std, weight, bias = self.plane(inside, l2)
        found: Floats = ((self._table.x - mean) / std) @ weight + bias
        return found

    def plane(self, inside: Rows, l2: float) -> Plane:
        """See ``Fits``; a constant feature counts for nothing."""
        places, labels, weights = self._table.training(inside)
        rows: Floats = self._table.x[places]
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        std = np.where(std > 1e-12 * (1 + np.abs(mean)), std, 1.0) * rows.shape[1] ** 0.5
        spread = torch.from_numpy(mean)[None], torch.from_numpy(std)[None]
        planes = logistic_planes(
            torch.from_numpy(rows)[None],
            torch.from_numpy(labels),
            l2,
            torch.from_numpy(weights),
            spread=spread,
        )
        return Plane(mean, std, planes.weight[0].numpy(), float(planes.bias[0]))

    def relabelled(self, labels: NDArray[np.bool_]) -> Fits:
        """See ``Fits``."""
        return DenseFits(self._table._replace(labels=labels))


def cross_validated(fits: Fits, table: Table, folds: Folds, penalties: Sequence[float]) -> tuple[Held, int]:
    """Held-out scores of rows for each penalty, and the number of the one that does best on all of them.

    ``Held.picked`` is the one that does best without a row's fold.
    """
    known: dict[frozenset[Cell], Floats] = {}

    def said(*left_out: Cell) -> Floats:
        """(L, N) row scores by fits without these folds."""
        key = frozenset(left_out)
        if key not in known:
            inside = folds.apart(*left_out)
            known[key] = np.stack([table.highest(fits.scores(inside, l2)) for l2 in penalties])
        return known[key]

    scores, picked = np.zeros((len(penalties), len(table.labels))), np.zeros(len(table.labels), np.intp)
    inner: dict[Cell, tuple[Rows, Floats]] = {}
    for cell in folds.filled:
        rows = folds.inside(cell)
        scores[:, rows] = said(cell)[:, rows]
        others = [folds.inside(other) for other in folds.filled if apart(cell, other)]
        found = [said(cell, o)[:, folds.inside(o)] for o in folds.filled if apart(cell, o)]
        inner[cell] = np.concatenate(others), np.concatenate(found, axis=1)
        picked[rows] = _best(inner[cell][1], table.labels[inner[cell][0]])
    return Held(scores, picked, inner), _best(scores, table.labels)


def by_chance(fits: Fits, table: Table, folds: Folds, groups: Sequence[str], l2: float, seed: int) -> float:
    """Root mean square of AUROC - .5 where labels tell nothing, on the same splits: ``stats/chance.py``."""
    found = []
    for labels in dealt_again(table.labels, [groups], folds, seed)[0]:
        other, scores = fits.relabelled(labels), np.zeros(len(labels))
        for cell in folds.filled:
            inside, rest = folds.inside(cell), folds.apart(cell)
            if 0 < labels[rest].mean() < 1:
                scores[inside] = table.highest(other.scores(rest, l2))[inside]
        found.append(area(scores, labels, folds.blocks))
    known = np.array([one for one in found if one is not None] or [0.5])
    return float(np.sqrt(((known - 0.5) ** 2).mean()))


def _best(scores: Floats, labels: NDArray[np.bool_]) -> int:
    """The penalty (of L) with the least log-loss; the largest of equals, which stand first."""
    loss = np.logaddexp(0.0, np.where(labels, -scores, scores)).mean(axis=1)
    return int(np.flatnonzero(loss <= loss.min() + 1e-9)[0])
