"""Folds in which no group is on both sides of a split, and choices made inside them.

With one kind of groups, a fold is a set of groups. With two (a template and a task, say), a block is one fold
of either kind: its rows are scored by a fit on the rows that share neither group with any of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.core import InputError

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Cell = tuple[int, ...]
"""A fold of each kind of groups."""


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
    """(L, N) each row by the fit that leaves out its block, for each of L candidates (layers, penalties)."""
    picked: Rows
    """(N,) the candidate that is best in what such a fit was made on: chosen without the row's groups."""
    inner: dict[Cell, tuple[Rows, Floats]]
    """For each block, rows apart from it and their scores (L, n), by fits that leave out these rows' blocks,
    too."""

    @property
    def nested(self) -> Floats:
        """(N,) each row's score by the candidate that was chosen for it."""
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
        others = [other for other in cells if apart(cell, other)] if inner else []
        parts = [folds.apart(cell), *(folds.apart(cell, other) for other in others)]
        lone = inner and not others
        if lone or any(not len(rows) or not 0 < labels[rows].mean() < 1 for rows in parts):
            raise InputError(
                f"{count} folds leave a fit without one of the labels: too few groups",
                hint="give more templates or tasks of each label, set folds to 3, or leave one column out",
            )
    return folds


def apart(cell: Cell, other: Cell) -> bool:
    """Whether two blocks share no fold."""
    return all(one != two for one, two in zip(cell, other, strict=True))
