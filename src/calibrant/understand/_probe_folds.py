"""Folds in which no template and no task is on both sides of a split, and choices made inside them.

With one kind of groups, a fold is a set of groups. With two, a block is one fold of either kind: its rows are
scored by a fit on the rows that share neither a template nor a task with any of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrant.core import InputError
from calibrant.stats.auroc import area

_AT_ONCE = 2**24  # numbers of a batch of layers
Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Cell = tuple[int, ...]
"""A fold of each kind of groups."""


class Fitted(Protocol):
    """A fit of every layer."""

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds (L, M) of rows (L, M, D)."""
        ...


Fit = Callable[[Tensor, Tensor], Fitted]
"""Features (L, N, D) of the training rows and labels, (N,) or (L, N) -> a fit. One layer, (1, N, D), may have
labellings (L, N)."""


class Folds(NamedTuple):
    """Which fold each row is in, by each kind of groups."""

    of: tuple[Rows, ...]
    """(N,) for each kind."""
    parts: int

    @property
    def cells(self) -> Iterator[Cell]:
        """Every block that rows can be in."""
        return product(range(self.parts), repeat=len(self.of))

    @property
    def filled(self) -> list[Cell]:
        """Those that rows are in."""
        return [cell for cell in self.cells if len(self.inside(cell))]

    @property
    def blocks(self) -> Rows:
        """(N,) the number of each row's block."""
        return np.ravel_multi_index(self.of, (self.parts,) * len(self.of)).astype(np.intp)

    def inside(self, cell: Cell) -> Rows:
        """Rows of a block."""
        return np.flatnonzero(np.all([fold == at for fold, at in zip(self.of, cell, strict=True)], axis=0))

    def apart(self, *cells: Cell) -> Rows:
        """Rows that share no fold with any of the blocks."""
        shared = [fold == at for cell in cells for fold, at in zip(self.of, cell, strict=True)]
        return np.flatnonzero(~np.any(shared, axis=0))


class Held(NamedTuple):
    """What fits said of rows that they had not seen."""

    scores: Floats
    """(L, N) each row by the fit that leaves out its block."""
    picked: Rows
    """(N,) the layer that is best in what such a fit was made on: chosen without the row's groups."""
    inner: dict[Cell, tuple[Rows, Floats]]
    """For each block, rows apart from it and their scores (L, n), by fits that leave out these rows' blocks,
    too."""

    @property
    def nested(self) -> Floats:
        """(N,) each row's score at the layer that was chosen for it."""
        return self.scores[self.picked, np.arange(len(self.picked))]


def dealt(groups: Sequence[str], labels: NDArray[np.bool_], count: int, seed: int) -> Rows:
    """The fold of each row (N,): rows of one group together, both labels spread over the folds."""
    members: dict[object, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(name or row, []).append(row)
    order = random.Random(seed).sample(list(members.values()), len(members))
    order.sort(key=lambda rows: float(labels[rows].mean()))
    folds = np.zeros(len(labels), np.intp)
    for turn, rows in enumerate(order):
        folds[rows] = turn % count
    return folds


def folds_of(
    kinds: Sequence[Sequence[str]], labels: NDArray[np.bool_], count: int, seed: int, *, inner: bool
) -> Folds:
    """Folds by each kind of groups; without a kind, of rows. ``inner``: choices will be made inside them.

    Raises:
        InputError: too few groups: some fit would see one label only, or no block holds both.
    """
    named = kinds or [[""] * len(labels)]
    folds = Folds(tuple(dealt(names, labels, count, seed + at) for at, names in enumerate(named)), count)
    cells = folds.filled
    if not any(0 < labels[folds.inside(cell)].mean() < 1 for cell in cells):
        raise InputError("no fold of groups holds both labels", hint="give more groups, or fewer folds")
    for cell in cells:
        others = [other for other in cells if _apart(cell, other)] if inner else []
        parts = [folds.apart(cell), *(folds.apart(cell, other) for other in others)]
        lone = inner and not others
        if lone or any(not len(rows) or not 0 < labels[rows].mean() < 1 for rows in parts):
            raise InputError(
                f"{count} folds leave a fit without one of the labels: too few groups",
                hint="give more templates or tasks of each label, set folds to 3, or leave one column out",
            )
    return folds


def held_out(fit: Fit, x: Tensor, labels: NDArray[np.bool_], folds: Folds, *, inner: bool = True) -> Held:
    """Scores of rows that a fit has not seen; with ``inner``, the choice of a layer inside each split."""
    step = max(1, _AT_ONCE // (x.shape[1] * x.shape[2]))
    chunks = [_scored(fit, x[at : at + step], labels, folds, inner) for at in range(0, len(x), step)]
    scores = np.concatenate([outer for outer, _ in chunks])
    picked = np.zeros(len(labels), np.intp)
    inside: dict[Cell, tuple[Rows, Floats]] = {}
    for cell in chunks[0][1]:
        parts = [folds.inside(other) for other in folds.filled if _apart(cell, other)]
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
            others = [other for other in folds.filled if _apart(cell, other)]
            inside[cell] = np.concatenate([said(folds.inside(o), cell, o) for o in others], axis=1)
    return scores, inside


def best(scores: Floats, labels: NDArray[np.bool_], blocks: Rows) -> int:
    """The layer (of L) with the highest AUROC; the first of equals."""
    return int(np.argmax([area(one, labels, blocks) or 0.0 for one in scores]))


def _apart(cell: Cell, other: Cell) -> bool:
    return all(one != two for one, two in zip(cell, other, strict=True))
