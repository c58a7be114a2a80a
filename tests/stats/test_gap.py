"""The rule of gaps: when a share of one says anything."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.core import Estimate
from calibrant.stats.gap import ratio_ends, unresolved


@pytest.mark.parametrize(
    ("gap", "error", "low", "says"),
    [
        (0.0, 0.01, None, "not above the floor"),
        (-0.1, 0.01, None, "not above the floor"),
        (0.03, 0.01, None, "3.0 of its standard errors"),
        (0.031, 0.01, None, ""),
        (0.1, 0.01, 0.0, "holds 0"),
        (0.1, 0.01, 0.01, ""),
        (0.1, 0.0, None, ""),
    ],
)
def test_a_gap_is_resolved_above_three_standard_errors(gap, error, low, says):
    whole = None if low is None else Estimate(value=gap, low=low, high=1.0)
    told = unresolved(gap, error, whole)
    assert says in told
    assert bool(told) == bool(says)


def test_ends_are_those_of_the_draws():
    between = np.linspace(0.0, 1.0, 1001)
    drawn = np.stack([np.zeros(1001), between, np.ones(1001)])
    low, high = ratio_ends(drawn, 0.95)
    assert (low, high) == pytest.approx((0.025, 0.975), abs=0.002)


def test_draws_without_a_gap_count_at_both_ends():
    drawn = np.stack([np.zeros(1000), np.full(1000, 0.5), np.ones(1000)])
    drawn[2, :20] = -1.0  # 2 %: below the tail of 2.5 %
    assert ratio_ends(drawn, 0.95) == (0.5, 0.5)
    drawn[2, :30] = -1.0
    assert ratio_ends(drawn, 0.95) == pytest.approx(0.03)
