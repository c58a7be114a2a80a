"""The share of a skill that is lost: by hand, at the ends, over simulations, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.core import InputError, point, unknown
from calibrant.stats.lost_share import lost_share, mean_of


def lost(before, after, chance=0.0):
    return lost_share(before, after, chance, better="lower", unit="item")


def test_by_hand():
    before, after = [True] * 90 + [False] * 10, [True] * 72 + [False] * 28
    assert lost(before, after).value == pytest.approx(0.2)  # 18 of 90
    found = lost(before, after, 0.25)
    assert found.value == pytest.approx(0.18 / 0.65)
    assert found.low < found.value < found.high


def test_nothing_lost_keeps_a_width():
    found = lost([True] * 40, [True] * 40)
    assert found.value == 0.0 and found.low < 0 < found.high < 0.3


def test_no_skill_has_no_tax():
    guess = [at % 4 == 0 for at in range(80)]
    found = lost(guess, [False] * 80, 0.25)
    assert found.value is None and "no skill to lose" in found.reason


def test_a_missing_answer_counts_at_its_worst():
    whole = lost([True] * 50, [True] * 50)
    holed = lost([True] * 50, [True] * 45 + [None] * 5)
    assert holed.value == 0.0 and holed.missing == 5
    assert holed.high > whole.high + 0.08


@pytest.mark.parametrize("chance", [-0.1, 1.0])
def test_chance_is_a_share(chance):
    with pytest.raises(InputError, match="accuracy of a guess"):
        lost([True, False], [True, False], chance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "p", "kept"), [(40, 0.9, 0.8), (100, 0.6, 0.95), (200, 0.95, 1.0), (60, 0.7, 0.5)]
)
def test_the_interval_holds_the_truth(n, p, kept):
    """2,000 draws: at least 94 % hold it (nominal 95; a shortfall to 94 would be seen with power .99)."""
    rng = np.random.default_rng(n)
    chance, held, told = 0.25, 0, 0
    truth = p * (1 - kept) / (p - chance)
    for _ in range(2000):
        before = rng.random(n) < p
        after = before & (rng.random(n) < kept)
        found = lost(before.tolist(), after.tolist(), chance)
        if found.low is not None and found.high is not None:
            told += 1
            held += found.low <= truth <= found.high
    assert told > 1500 and held / told >= 0.94


def test_the_mean_of_independent_parts():
    """MOVER: two parts with ends .1 away give a mean with ends sqrt(2) .1 / 2 away."""
    part = lost([True] * 90 + [False] * 10, [True] * 72 + [False] * 28)
    two = [part.model_copy(update={"value": v, "low": v - 0.1, "high": v + 0.2}) for v in (0.1, 0.3)]
    found = mean_of(two, better="lower", unit="item")
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 0.1 * 2**0.5 / 2)
    assert found.high == pytest.approx(0.2 + 0.2 * 2**0.5 / 2)


def test_a_mean_with_a_part_unknown_is_unknown():
    part = lost([True] * 20, [True] * 20)
    for other in (unknown("no skill", n=5, unit="item"), point(0.1, unit="item", n=3)):
        found = mean_of([part, other], better="lower", unit="item")
        assert found.value is None and "1 of 2 parts" in found.reason
