"""The formula of independent errors against every outcome in turn, and audits against every set in turn."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from calibrant.maths.decomposition import (
    audited_accuracies,
    best_audits,
    enough,
    greedy_audits,
    node_accuracies,
)

CHAIN = [((), "all"), ((0,), "all"), ((1,), "all")]
LEAF = ((), "all")
MIXED = [LEAF, LEAF, LEAF, ((0, 1, 2), "majority"), LEAF, LEAF, ((4, 5), "any"), ((3, 6), "all")]
EVEN = [*[((), "all")] * 4, ((0, 1, 2, 3), "majority")]


def exhausted(tree, own):
    """P(right) of every node, by all ways in which steps can err."""
    total = np.zeros(len(tree))
    for fates in product((True, False), repeat=len(tree)):
        chance = np.prod([p if fate else 1 - p for p, fate in zip(own, fates, strict=True)])
        right = []
        for (parts, needs), fate in zip(tree, fates, strict=True):
            right.append(fate and enough(needs, [right[part] for part in parts]))
        total += chance * np.array(right)
    return total


@pytest.mark.parametrize("tree", [CHAIN, MIXED, EVEN])
def test_the_formula_is_the_sum_over_all_outcomes(tree):
    own = np.random.default_rng(1).uniform(0.3, 1.0, len(tree))
    assert node_accuracies(tree, own) == pytest.approx(exhausted(tree, own), abs=1e-12)
    both = np.stack([own, np.ones(len(tree))])
    assert node_accuracies(tree, both)[1] == pytest.approx(1.0)


def test_half_of_the_parts_are_no_majority():
    assert not enough("majority", [True, True, False, False])
    assert enough("majority", [True, True, False])
    assert enough("any", [False, True])
    assert not enough("all", [True, False])
    assert enough("majority", [])


@pytest.mark.parametrize("tree", [CHAIN, MIXED, EVEN])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_optimum_is_the_best_of_all_sets_and_greedy_is_no_better(tree, budget):
    rng = np.random.default_rng(budget)
    before = rng.uniform(0.5, 0.95, len(tree))
    after = np.minimum(before + rng.uniform(-0.1, 0.3, len(tree)), 1.0)

    def worth(chosen):
        flags = np.zeros((1, len(tree)), dtype=bool)
        flags[0, list(chosen)] = True
        return audited_accuracies(tree, before, after, flags)[0]

    sets = [one for size in range(budget + 1) for one in combinations(range(len(tree)), size)]
    best = best_audits(tree, before, after, budget, most=10_000)
    greedy = greedy_audits(tree, before, after, budget)
    assert worth(best) == pytest.approx(max(map(worth, sets)))
    assert worth(greedy) <= worth(best) + 1e-12
    assert worth(greedy) >= worth(()) and len(greedy) <= budget


def test_greedy_is_not_always_the_optimum():
    """Two parts that are nearly always wrong gain only together; greedy audits the other way first."""
    tree = [((), "all"), ((), "all"), ((0, 1), "all"), ((), "all"), ((2, 3), "any")]
    before, after = np.array([0.1, 0.1, 1.0, 0.5, 1.0]), np.array([1.0, 1.0, 1.0, 0.6, 1.0])
    assert greedy_audits(tree, before, after, 2) == [3, 0]
    assert best_audits(tree, before, after, 2, 100) == [0, 1]
    assert best_audits(tree, before, after, 2, most=15) is None  # there are 16 sets


def test_an_audit_that_loses_is_not_made():
    before, after = np.full(3, 0.9), np.full(3, 0.8)
    assert greedy_audits(CHAIN, before, after, 2) == []
    assert best_audits(CHAIN, before, after, 2, 100) == []
