"""Items x seeds: by hand, by a slow route, what must not be divided, and coverage on a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibrant.core import InputError
from calibrant.stats import difference, mean
from calibrant.stats.seeded import gap_recovered, seeded_difference, seeded_mean

PLAIN = {"better": "higher", "unit": "item"}


def arms(seed, items=300, seeds=3, rates=(0.7, 0.82, 0.94), between_seeds=0.0):
    """Right or wrong (S, N) for three arms: items of their own difficulty, and seeds that shift an arm."""
    rng = np.random.default_rng(seed)
    hard = rng.random(items)
    tables = []
    for rate in rates:
        shift = rng.normal(0, between_seeds, (seeds, 1))
        noise = rng.normal(0, 0.05, (seeds, items))
        tables.append((hard + noise < rate + shift).astype(float))
    return tables


def test_seeds_that_agree_add_nothing():
    row = np.array([1.0] * 30 + [0.0] * 10)
    found, alone = seeded_mean(np.stack([row, row]), **PLAIN), mean(row.tolist(), bounds=(0.0, 1.0), **PLAIN)
    assert (found.value, found.low, found.high, found.n) == (alone.value, alone.low, alone.high, 40)
    gone = np.zeros(40)
    change, paired = (
        seeded_difference(np.stack([row, row]), np.stack([gone, gone]), **PLAIN),
        difference(row.tolist(), gone.tolist(), **PLAIN),
    )
    assert (change.value, change.low, change.high) == (paired.value, paired.low, paired.high)


def test_seeds_that_differ_widen_by_hand():
    """Seeds' means .5 and .7 of the same items: Student's half width is 12.706 x .1."""
    one = np.array([1.0] * 50 + [0.0] * 50)
    two = np.array([1.0] * 70 + [0.0] * 30)
    found = seeded_mean(np.stack([one, two]), **PLAIN)
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.high) == (0.0, 1.0)  # 1.27 either way
    found = seeded_mean(np.stack([one, two] * 3), **PLAIN)
    items = mean(((one + two) / 2).tolist(), bounds=(0.0, 1.0), **PLAIN)
    half = 2.570582 * np.std([0.5, 0.7] * 3, ddof=1) / math.sqrt(6)
    assert found.low == pytest.approx(0.6 - math.hypot(0.6 - items.low, half), abs=1e-6)
    assert found.high == pytest.approx(0.6 + math.hypot(items.high - 0.6, half), abs=1e-6)


def test_items_that_a_seed_does_not_have_are_left_out():
    table = np.array([[1.0, np.nan, 0.0, np.nan], [np.nan, np.nan, 1.0, 1.0]])
    found = seeded_mean(table, **PLAIN)
    assert (found.value, found.n) == (pytest.approx((1 + 0.5 + 1) / 3), 3)
    none = seeded_mean(np.full((2, 5), np.nan), **PLAIN)
    assert (none.value, none.n, none.missing) == (None, 5, 5)
    alone = seeded_mean(np.array([[1.0, 0.0, 1.0], [np.nan] * 3]), **PLAIN)
    assert "only one seed" in alone.reason


def test_the_ratio_by_hand():
    floor, between, ceiling = (np.array([[1.0] * k + [0.0] * (200 - k)] * 2) for k in (100, 140, 180))
    found = gap_recovered(floor, between, ceiling, unit="")
    assert found.value == pytest.approx(0.5)
    assert 0.35 < found.low < 0.5 < found.high < 0.65
    # The same items decide in all draws: of 80 that differ, 40 +- 4.5 are closed.
    slow = np.array([np.random.default_rng(i).binomial(80, 0.5) / 80 for i in range(4000)])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.03)


def test_scores_that_never_differ_still_have_an_interval():
    """Tango's interval of 0 of n pairs, over the gap: z^2 / (n + z^2) / .4 = .047 with n = 200."""
    floor, ceiling = (np.array([[1.0] * k + [0.0] * (200 - k)] * 2) for k in (100, 180))
    half = 1.959964**2 / (200 + 1.959964**2) / 0.4
    for between, value in ((floor, 0.0), (ceiling, 1.0)):
        found = gap_recovered(floor, between, ceiling, unit="")
        assert found.value == pytest.approx(value)
        assert (found.low, found.high) == pytest.approx((value - half, value + half), abs=1e-4)
        assert "differ unseen" in found.reason


@pytest.mark.parametrize("rates", [(0.8, 0.8, 0.8), (0.9, 0.8, 0.7), (0.8, 0.5, 0.82)])
def test_a_gap_that_is_not_resolved_is_not_divided_by(rates):
    for seed in range(10):
        found = gap_recovered(*arms(seed, items=150, rates=rates), unit="")
        assert found.value is None
        assert found.n == 150
        assert "gap" in found.reason


def test_few_seeds_that_differ_much_do_not_resolve_a_gap():
    floor = np.array([[1.0] * 60 + [0.0] * 40] * 2)
    ceiling = np.array([[1.0] * 99 + [0.0], [1.0] * 70 + [0.0] * 30])
    found = gap_recovered(floor, ceiling, ceiling, unit="")
    assert found.value is None


def test_clusters_widen():
    tables = [np.repeat(t, 5, axis=1) for t in arms(1, items=60)]
    names = [str(i // 5) for i in range(300)]
    alone, grouped = (gap_recovered(*tables, clusters=c, unit="") for c in (None, names))
    assert grouped.clusters == 60
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("table", [np.ones((1, 5)), np.ones(5), np.ones((3, 0))])
def test_what_has_no_seeds_or_items_is_refused(table):
    with pytest.raises(InputError, match="shape"):
        seeded_mean(table, **PLAIN)


def test_tables_must_pair():
    with pytest.raises(InputError, match="shape"):
        gap_recovered(np.ones((2, 5)), np.ones((2, 5)), np.ones((2, 6)), unit="")
    with pytest.raises(InputError, match="shape"):
        seeded_difference(np.ones((2, 5)), np.ones((3, 5)), **PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "between"), [(2, 0.02), (3, 0.0), (3, 0.02), (5, 0.02)])
def test_coverage_of_the_ratio(seeds, between):
    """Truth .5. Of 400 runs an interval at 95 % misses 20; more than 34 (8.5 %) is 3 deviations more."""
    missed = known = 0
    for run in range(400):
        found = gap_recovered(*arms(run, seeds=seeds, between_seeds=between), resamples=400, unit="")
        if found.value is not None:
            known += 1
            missed += not found.low <= 0.5 <= found.high
    assert known > 50
    assert missed <= 0.05 * known + 3 * math.sqrt(0.05 * 0.95 * known)


@pytest.mark.parametrize("clusters", [["a"] * 200, ["a"] * 100 + ["b"] * 100])
def test_one_or_two_clusters_resolve_no_gap(clusters):
    """Drawn whole they hardly vary, which is no sign of certainty."""
    rng = np.random.default_rng(0)
    floor, between, ceiling = ((rng.random((4, 200)) < p).astype(float) for p in (0.5, 0.7, 0.95))
    assert gap_recovered(floor, between, ceiling, unit="x").value is not None
    found = gap_recovered(floor, between, ceiling, clusters=clusters, unit="x")
    assert found.value is None and "holds 0" in found.reason
