"""Fits of all layers on folds in which no template and no task is on both sides of a split."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrant.stats.auroc import area
from calibrant.stats.folds import Cell, Floats, Folds, Held, Rows, apart

_AT_ONCE = 2**24  # numbers of a batch of layers


class Fitted(Protocol):
    """A fit of every layer."""

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds (L, M) of rows (L, M, D)."""
        ...


Fit = Callable[[Tensor, Tensor], Fitted]
"""Features (L, N, D) of the training rows and labels, (N,) or (L, N) -> a fit. One layer, (1, N, D), may have
labellings (L, N)."""


def held_out(fit: Fit, x: Tensor, labels: NDArray[np.bool_], folds: Folds, *, inner: bool = True) -> Held:
    """Scores of rows that a fit has not seen; with ``inner``, the choice of a layer inside each split."""
    step = max(1, _AT_ONCE // (x.shape[1] * x.shape[2]))
    chunks = [_scored(fit, x[at : at + step], labels, folds, inner) for at in range(0, len(x), step)]
    scores = np.concatenate([outer for outer, _ in chunks])
    picked = np.zeros(len(labels), np.intp)
    inside: dict[Cell, tuple[Rows, Floats]] = {}
    for cell in chunks[0][1]:
        parts = [folds.inside(other) for other in folds.filled if apart(cell, other)]
        inside[cell] = np.concatenate(parts), np.concatenate([chunk[1][cell] for chunk in chunks])
        where = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        picked[folds.inside(cell)] = best(inside[cell][1], labels[inside[cell][0]], where)
    return Held(scores, picked, inside)


def _scored(
    fit: Fit, x: Tensor, labels: NDArray[np.bool_], folds: Folds, inner: bool
) -> tuple[Floats, dict[Cell, Floats]]:
    """Scores of some layers: (L, N) held out, and for each block those of the rows apart from it."""
    scores, inside = np.zeros((len(x), len(labels))), dict[Cell, Floats]()
    known: dict[frozenset[Cell], Fitted] = {}

    def said(rows: Rows, *left_out: Cell) -> Floats:
        # Two blocks leave out what the two other corners of their rectangle leave out, too.
        key = frozenset(product(*map(frozenset, zip(*left_out, strict=True))))
        if key not in known:
            seen = folds.apart(*left_out)
            known[key] = fit(x[:, seen], torch.from_numpy(labels[seen]))
        found: Floats = known[key].scores(x[:, rows]).cpu().numpy()
        return found

    for cell in folds.filled:
        scores[:, folds.inside(cell)] = said(folds.inside(cell), cell)
        if inner:
            others = [other for other in folds.filled if apart(cell, other)]
            inside[cell] = np.concatenate([said(folds.inside(o), cell, o) for o in others], axis=1)
    return scores, inside


def best(scores: Floats, labels: NDArray[np.bool_], blocks: Rows) -> int:
    """The layer (of L) with the highest AUROC; the first of equals."""
    return int(np.argmax([area(one, labels, blocks) or 0.0 for one in scores]))
