"""The disagreement beyond noise: 0 for a reader against itself, exact under exchangeability, found where
planted."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from calibrant.core import InputError
from calibrant.stats.excess import apart, excess, excess_p, excesses, opposed, unequal


def looks(rng, truth, error, bias):
    """Two looks a case: by lot, or the first side, or the truth."""

    def one(side, swapped):
        draw = rng.random()
        if draw < error:
            return rng.choice((-1.0, 1.0))
        if draw < error + bias:
            return -1.0 if swapped else 1.0
        return side

    return [(one(side, False), one(side, True)) for side in truth]


@pytest.mark.parametrize("differ", [unequal, opposed, apart])
def test_swapping_the_second_looks_turns_every_case_round(differ):
    sides = (-1.0, 0.0, 1.0)
    for a1, a2, b1, b2 in product(sides, repeat=4):
        (here,) = excesses([(a1, a2)], [(b1, b2)], differ)
        (there,) = excesses([(a1, b2)], [(b1, a2)], differ)
        assert here == -there
        assert -1 <= here <= 1


def test_by_hand():
    assert excesses([(1, 1)], [(-1, -1)], opposed) == [1.0]
    assert excesses([(1, 1)], [(0, 0)], opposed) == [0.0]
    assert excesses([(1, 1)], [(0, 0)], unequal) == [1.0]
    assert excesses([(1, -1)], [(1, -1)], unequal) == [0.0]  # both follow the place: no conflict
    assert excesses([(1, -1)], [(1, 1)], unequal) == [0.0]
    assert excesses([(1, None)], [(1, 1)], unequal) == [None]
    with pytest.raises(InputError, match="2 and 1 cases"):
        excesses([(1, 1)] * 2, [(1, 1)], unequal)


def test_null_noise_and_position_bias_are_no_excess():
    """400 audits of two readers alike; 5 % of p-values below 5 %, within the binomial's 99.9 % interval."""
    hits, total = 0, 0.0
    for seed in range(400):
        rng = random.Random(seed)
        truth = [rng.choice((-1.0, 0.0, 1.0)) for _ in range(40)]
        values = excesses(looks(rng, truth, 0.3, 0.3), looks(rng, truth, 0.3, 0.3), unequal)
        names = [str(at) for at in range(40)]
        hits += excess_p(values, clusters=names) < 0.05
        total += sum(values) / 40
    assert hits <= 34  # the 99.9 % quantile of Binomial(400, .05) is 34
    assert abs(total / 400) < 0.02


def test_planted_opposition_is_found_through_the_noise():
    found = 0
    for seed in range(30):
        rng = random.Random(seed)
        truth = [rng.choice((-1.0, 1.0)) for _ in range(60)]
        turned = [-side for side in truth]
        values = excesses(looks(rng, truth, 0.2, 0.2), looks(rng, turned, 0.2, 0.2), opposed)
        names = [str(at) for at in range(60)]
        estimate = excess(values, clusters=names, unit="pair")
        found += excess_p(values, clusters=names) < 0.05 and estimate.low > 0
    assert found >= 27


def test_missing_readings_widen_both_ends_and_never_count_as_none():
    names = [str(at) for at in range(20)]
    whole = excess([1.0] * 20, clusters=names, unit="pair")
    holed = excess([1.0] * 10 + [None] * 10, clusters=names, unit="pair")
    assert holed.missing == 10
    assert holed.low < 0 < whole.low
    assert excess_p([None] * 20, clusters=names) == 1.0


def test_cases_of_one_prompt_are_one():
    values = [1.0] * 20
    assert excess_p(values, clusters=[str(at) for at in range(20)]) < 0.01
    assert excess_p(values, clusters=["one"] * 10 + ["two"] * 10) >= 0.5


def test_null_the_interval_of_few_cases_holds_zero():
    """Two readers of one rule who err in a fifth; bootstrap-t alone leaves 0 out in one of six."""
    rng, missed = np.random.default_rng(1), 0
    for _ in range(100):
        meant = rng.choice([-1.0, 1.0], 40)
        looks = [
            [tuple(row) for row in np.where(rng.random((40, 2)) < 0.8, meant[:, None], -meant[:, None])]
            for _ in range(2)
        ]
        one = excess(excesses(*looks, opposed), clusters=[""] * 40, unit="pair")
        missed += not one.low <= 0 <= one.high
    assert missed <= 6  # more than 6 of 100 at .02: one in 2,000
