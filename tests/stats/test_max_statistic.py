"""The largest of many sign-flipped statistics: against brute force, false alarms, power, and bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibrant.core import InputError
from calibrant.stats import proportion_interval
from calibrant.stats.max_statistic import least_p, max_norm_flip, max_sign_flip


def brute(effects):
    """All sign patterns, Student's t."""
    count = effects.shape[1]

    def largest(table):
        return np.abs(table.mean(1)) / (table.std(1, ddof=1) / np.sqrt(count))

    observed = largest(effects)
    tops = [largest(effects * signs).max() for signs in itertools.product((-1, 1), repeat=count)]
    return np.array([np.mean([top >= one * (1 - 1e-9) for top in tops]) for one in observed])


def test_it_is_what_all_sign_patterns_give():
    effects = np.random.default_rng(0).normal(size=(4, 10)) + np.array([[0.9], [0.0], [0.3], [0.0]])
    exact, drawn = brute(effects), max_sign_flip(effects, draws=20_000)
    assert np.abs(exact - drawn).max() < 0.015


def nulls(rng, cells, count):
    """Cells that hang together, as neighbouring layers do: skewed in size, symmetric in sign."""
    shared = rng.standard_t(3, size=count)
    return np.stack([shared * rng.uniform(0.5, 2) + rng.normal(size=count) for _ in range(cells)])


def test_false_alarms_over_all_cells_stay_at_five_percent():
    """400 tables: at a true 5 %, 31 or more come up once in 100 runs of this test; at 9 %, in 84."""
    rng = np.random.default_rng(1)
    alarms = sum(max_sign_flip(nulls(rng, 30, 20), draws=399, seed=i).min() <= 0.05 for i in range(400))
    assert alarms <= 30
    assert proportion_interval(alarms, 400)[1] > 0.03  # and it is no test that never speaks


def test_one_effect_among_many_is_found():
    rng, found = np.random.default_rng(2), 0
    for i in range(50):
        table = nulls(rng, 30, 24)
        table[7] += 1.2 * table[7].std()
        found += max_sign_flip(table, draws=399, seed=i)[7] <= 0.05
    assert found >= 40


def test_clusters_flip_together():
    rng = np.random.default_rng(3)
    block = rng.normal(size=(2, 6)) + 0.8
    copied = np.repeat(block, 10, axis=1)  # six independent values, ten times each
    names = [f"c{i // 10}" for i in range(60)]
    assert max_sign_flip(copied, draws=9999).min() < 0.01
    assert max_sign_flip(copied, clusters=names, draws=9999).min() >= 2 / 2**6 - 0.01


def test_an_effect_that_is_always_0_is_never_found():
    table = np.vstack([np.zeros(12), np.ones(12)])
    assert max_sign_flip(table, draws=999).tolist()[0] == 1.0 and max_sign_flip(table, draws=999)[1] < 0.01


@pytest.mark.parametrize("table", [[], [1.0, 2.0], [[1.0, np.nan]], [[]]])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(InputError, match="table of finite numbers"):
        max_sign_flip(table)


def test_too_few_draws_are_refused():
    with pytest.raises(InputError, match="too few"):
        max_sign_flip([[1.0, 2.0]], draws=10)


def test_few_units_are_enumerated_and_have_a_least_p():
    table = np.array([[1.0, 1.0, 1.0, 1.0, 1.0]])
    assert {float(max_sign_flip(table, seed=i)[0]) for i in range(20)} == {2 / 2**5} == {least_p(5)}
    assert least_p(40, draws=1999) == 1 / 2000


def brute_norms(effects):
    """All sign patterns, the length of the mean over its root mean square."""
    scale = np.sqrt((effects**2).sum((1, 2)))

    def lengths(signs):
        return np.linalg.norm((effects * np.array(signs)[None, :, None]).sum(1), axis=1) / scale

    observed = lengths((1,) * effects.shape[1])
    tops = [lengths(signs).max() for signs in itertools.product((1, -1), repeat=effects.shape[1])]
    return np.array([np.mean([top >= one * (1 - 1e-9) for top in tops]) for one in observed])


def test_lengths_are_what_all_sign_patterns_give():
    rng = np.random.default_rng(1)
    effects = rng.normal(size=(3, 9, 5)) + np.array([0.8, 0.0, 0.3])[:, None, None]
    assert max_norm_flip(effects, draws=600) == pytest.approx(brute_norms(effects))
    assert np.abs(max_norm_flip(effects, draws=500, seed=3) - brute_norms(effects)).max() < 0.06


def test_of_numbers_lengths_give_what_the_largest_mean_gives():
    effects = np.random.default_rng(2).normal(size=(4, 9)) + 0.3
    assert max_norm_flip(effects[:, :, None]) == pytest.approx(max_sign_flip(effects))


def test_vectors_of_nothing_are_no_find_and_bad_ones_are_refused():
    effects = np.zeros((2, 12, 3))
    assert max_norm_flip(effects).tolist() == [1, 1]
    effects[0] = np.random.default_rng(0).normal(size=(12, 3)) + 3
    assert max_norm_flip(effects)[0] < 0.001 and max_norm_flip(effects)[1] == 1
    for wrong in (effects[0], effects * np.nan, np.zeros((0, 2, 2))):
        with pytest.raises(InputError, match="finite vectors"):
            max_norm_flip(wrong)
    with pytest.raises(InputError, match="too few"):
        max_norm_flip(effects, draws=10)
