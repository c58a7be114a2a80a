"""How far chance alone moves figures of decomposition where steps err independently.

A bootstrap of tasks cannot draw what it never saw: where few tasks have two errors it takes the excess over
the formula for surer than it is. So its spread is never taken for less than the one here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrant.data.task_tree import Needs
from calibrant.maths.decomposition import node_accuracies
from calibrant.stats._sample import Floats

DRAWS = 400
_CELLS = 4_000_000
Tree = list[tuple[tuple[int, ...], Needs]]
Bools = NDArray[np.bool_]


class Group:
    """Tasks of one shape."""

    def __init__(self, tree: Tree, kind_at: NDArray[np.int_], heights: Sequence[int], tasks: int) -> None:
        """``kind_at``: place of each node's kind; ``heights``: of each node, the root last."""
        self.tree, self.kind_at, self.heights, self.tasks = tree, kind_at, np.array(heights), tasks


def spreads(groups: Sequence[Group], rates: Floats, columns: int) -> tuple[Floats, float]:
    """Standard deviations, where steps err independently at ``rates`` (K,), of accuracy less the formula's by
    column (the root, then each height), and of the mean covariance of two steps' errors in a task.

    In each draw the rates are reckoned anew, as they are from what was measured.
    """
    rng = np.random.default_rng(1)
    k = len(rates)
    wrong, steps = np.zeros((DRAWS, k)), np.zeros(k)
    right, nodes = np.zeros((DRAWS, columns)), np.zeros(columns)
    square, first = np.zeros((len(groups), DRAWS)), np.zeros((len(groups), DRAWS))
    by_kind = np.zeros((len(groups), DRAWS, k))
    for at, group in enumerate(groups):
        size = len(group.tree)
        block = max(1, _CELLS // max(1, group.tasks * size))
        for start in range(0, DRAWS, block):
            rows = slice(start, min(start + block, DRAWS))
            shape = (rows.stop - start, group.tasks, size)
            erred = rng.random(shape) < rates[group.kind_at]
            held = played(group.tree, ~erred).sum(1)
            for kind in range(k):
                by_kind[at, rows, kind] = erred[:, :, group.kind_at == kind].sum((1, 2))
            count = erred.sum(2)
            square[at, rows], first[at, rows] = (count**2).sum(1), count.sum(1)
            right[rows, 0] += held[:, -1]
            for height in np.unique(group.heights):
                right[rows, 1 + height] += held[:, group.heights == height].sum(1)
        wrong += by_kind[at]
        steps += group.tasks * np.bincount(group.kind_at, minlength=k)
        nodes[0] += group.tasks
        nodes[1:] += group.tasks * np.bincount(group.heights, minlength=columns - 1)
    found = wrong / np.maximum(steps, 1)
    formula, joint, tasks = np.zeros((DRAWS, columns)), np.zeros(DRAWS), 0
    for at, group in enumerate(groups):
        chances = node_accuracies(group.tree, 1.0 - found[:, group.kind_at])
        formula[:, 0] += group.tasks * chances[:, -1]
        for place, height in enumerate(group.heights):
            formula[:, 1 + height] += group.tasks * chances[:, place]
        size = len(group.tree)
        if size > 1:
            each = found[:, group.kind_at]
            expected, tasks = each.sum(1), tasks + group.tasks
            off = square[at] - 2 * expected * first[at] + group.tasks * expected**2
            alone = group.tasks * (each**2).sum(1) + ((1 - 2 * found) * by_kind[at]).sum(1)
            joint += (off - alone) / (size * (size - 1))
    excess = (right - formula) / np.maximum(nodes, 1)
    return excess.std(0), float((joint / max(tasks, 1)).std())


def played(tree: Tree, own: Bools) -> Bools:
    """(..., n) whether each node is right, from whether its own step is (..., n)."""
    found = own.copy()
    for at, (parts, needs) in enumerate(tree):
        if parts:
            held = found[..., list(parts)].sum(-1)
            least = {"all": len(parts), "any": 1, "majority": len(parts) // 2 + 1}[needs]
            found[..., at] &= held >= least
    return found
