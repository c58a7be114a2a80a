"""The accuracy of a tree of sub-tasks under independent errors, exactly; and which nodes to audit by it.

Every node has a chance of its own to be right, where what it needs of its parts is right; else it is wrong.
Nodes err independently of each other. Then a part is right independently of its siblings, and

    P(node) = own(node) * P(enough of its parts are right),

where 'all' is a product, 'any' one less the product of the complements, and 'majority' (more than half) the
tail of a Poisson-binomial. A tree is a tuple of (places of its parts, what it needs) with every part before
what it is a part of; its last node is the root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tree = Sequence[tuple[tuple[int, ...], Literal["all", "majority", "any"]]]
_ALIKE = 1e-12
"""Gains closer than this are equal: sums round."""


def node_accuracies(tree: Tree, own: Floats) -> Floats:
    """(..., n) chance of each node to be right, from its own chance (..., n)."""
    found = np.empty_like(own, dtype=np.float64)
    for at, (parts, needs) in enumerate(tree):
        found[..., at] = own[..., at] * _enough(needs, [found[..., part] for part in parts])
    return found


def _enough(needs: str, parts: Sequence[Floats]) -> Floats | float:
    if not parts:
        return 1.0
    if needs == "all":
        return np.prod(parts, axis=0)  # type: ignore[no-any-return]
    if needs == "any":
        return 1.0 - np.prod([1.0 - part for part in parts], axis=0)  # type: ignore[no-any-return]
    none = np.zeros_like(parts[0])
    right = [np.ones_like(parts[0])]  # chance that so many of the parts seen are right
    for part in parts:
        more, fewer = [none, *right], [*right, none]
        right = [one * part + other * (1.0 - part) for one, other in zip(more, fewer, strict=True)]
    return np.sum(right[len(parts) // 2 + 1 :], axis=0)  # type: ignore[no-any-return]


def enough(needs: str, right: Sequence[bool]) -> bool:
    """Whether so many parts are right that the node can be."""
    if not right or needs == "all":
        return all(right)
    return any(right) if needs == "any" else sum(right) > len(right) / 2


def audited_accuracies(tree: Tree, before: Floats, after: Floats, sets: NDArray[np.bool_]) -> Floats:
    """(s,) accuracy of the root where each of ``sets`` (s, n) is audited: own chance (n,) before, after."""
    return node_accuracies(tree, np.where(sets, after, before))[:, -1]


def greedy_audits(tree: Tree, before: Floats, after: Floats, budget: int) -> list[int]:
    """Places to audit, each the one that then gains most; equal gains go to the earlier node.

    Stops where no further audit gains: an audit that loses is not made.
    """
    n, chosen = before.size, np.zeros(before.size, dtype=bool)
    found: list[int] = []
    while len(found) < min(budget, n):
        tries = np.array([chosen | (np.arange(n) == at) for at in range(n)] + [chosen])
        values = audited_accuracies(tree, before, after, tries)
        gains = np.where(chosen, -np.inf, values[:-1] - values[-1])
        if gains.max() <= _ALIKE:
            break
        best = int(np.flatnonzero(gains >= gains.max() - _ALIKE)[0])
        chosen[best] = True
        found.append(best)
    return found


def best_audits(tree: Tree, before: Floats, after: Floats, budget: int, most: int) -> list[int] | None:
    """The best places of all sets of up to ``budget``, by trying every one; None where there are over
    ``most``.

    Of equally good sets the smallest, then the first.
    """
    n = before.size
    sizes = range(min(budget, n) + 1)
    if sum(math.comb(n, size) for size in sizes) > most:
        return None
    sets = [chosen for size in sizes for chosen in combinations(range(n), size)]
    table = np.zeros((len(sets), n), dtype=bool)
    for row, chosen in enumerate(sets):
        table[row, list(chosen)] = True
    values = audited_accuracies(tree, before, after, table)
    return list(sets[int(np.flatnonzero(values >= values.max() - _ALIKE)[0])])
