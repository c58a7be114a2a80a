"""Evidence of drift: its formula, false alarms over whole streams, delays; mutants ring too often."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import binom

from calibrant.core import InputError
from calibrant.stats import proportion_interval
from calibrant.stats.drift import (
    SHIFTS,
    began,
    evidence,
    evidence_as_defined,
    reference_of,
    waiting,
)

ALPHA = 0.05
RATES = (0.01, 0.05, 0.3, 0.5)
BASELINE = 300
SMALL, WHOLE = (1000, 1000), (10_000, 5000)


def draws(rate, streams, steps, seed=0):
    return (np.random.default_rng(seed).random((streams, steps)) < rate).astype(float)


def ever(values, low, high, alpha, direction="both", block=500):
    """Which streams ever reach 1 / alpha."""
    parts = [values[at : at + block] for at in range(0, len(values), block)]
    return np.concatenate([(evidence(one, low, high, direction) >= 1 / alpha).any(1) for one in parts])


def ever_from_baseline(rate, streams, steps, reference, seed=0):
    """The same with a baseline of each stream's own; streams with one count share their reference."""
    way = np.random.default_rng([seed, 1])
    groups = defaultdict(list)
    for place, count in enumerate(way.binomial(BASELINE, rate, streams).tolist()):
        groups[count].append(place)
    rung = 0
    for count, places in groups.items():
        low, high = reference(count)
        values = draws(rate, len(places), steps, [seed, 2, count])
        rung += int(ever(values, low, high, ALPHA / 2).sum())
    return rung


def by_interval(count):
    return reference_of(count, BASELINE, ALPHA / 2)


def by_share(count):
    """A mutant: the baseline's share is taken for the truth."""
    share = min(max(count, 1), BASELINE - 1) / BASELINE
    return share, share


def repeated_z(values, rate, alpha):
    """A mutant: a z-test after every value from the 30th on, uncorrected."""
    n = np.arange(1, values.shape[1] + 1)
    z = (np.cumsum(values, 1) - n * rate) / np.sqrt(n * rate * (1 - rate))
    return (np.abs(z[:, 29:]) > 1.96).any(1)


def upper(hits, n):
    return proportion_interval(int(hits), n, 0.95)[1]


def lower(hits, n):
    return proportion_interval(int(hits), n, 0.95)[0]


@pytest.mark.parametrize("direction", ["both", "up", "down"])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.3), (0.05, 0.2)])
def test_the_recursion_is_the_formula(low, high, direction):
    for seed in range(2):
        values = draws(0.35, 1, 40, seed)[0]
        slow = evidence_as_defined(values, low, high, direction)
        np.testing.assert_allclose(evidence(values, low, high, direction), slow, rtol=1e-12)


def test_values_between_0_and_1_follow_the_formula_too():
    values = np.random.default_rng(3).random(50)
    np.testing.assert_allclose(
        evidence(values, 0.4, 0.45), evidence_as_defined(values, 0.4, 0.45), rtol=1e-12
    )


@pytest.mark.parametrize("rate", RATES)
def test_the_mean_of_the_evidence_is_one_under_the_null(rate):
    """Exactly, over every stream of 8 values with its probability: a martingale."""
    streams = np.array([[int(bit) for bit in f"{code:08b}"] for code in range(256)], float)
    chances = np.prod(np.where(streams == 1, rate, 1 - rate), axis=1)
    for step in range(8):
        assert chances @ evidence(streams, rate, rate)[:, step] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rate", [0.2, 0.25, 0.3])
def test_within_an_interval_of_references_the_mean_is_at_most_one(rate):
    streams = np.array([[int(bit) for bit in f"{code:08b}"] for code in range(256)], float)
    chances = np.prod(np.where(streams == 1, rate, 1 - rate), axis=1)
    assert chances @ evidence(streams, 0.2, 0.3)[:, -1] <= 1 + 1e-12


def test_the_weights_of_all_starts_sum_to_one():
    steps = np.arange(10**6)
    placed = waiting(steps) - waiting(steps + 1)
    assert waiting(0) == 1
    assert (placed > 0).all()
    assert placed.sum() + waiting(10**6) == pytest.approx(1)
    assert waiting(1e300) < 0.002


@pytest.mark.parametrize("rate", RATES)
def test_false_alarms_with_a_given_reference(rate):
    streams, steps = SMALL
    hits = ever(draws(rate, streams, steps), rate, rate, ALPHA).sum()
    assert upper(hits, streams) <= ALPHA


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_false_alarms_with_an_estimated_reference(rate):
    streams, steps = SMALL
    assert upper(ever_from_baseline(rate, streams, steps, by_interval), streams) <= ALPHA


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_test_repeated_after_every_value_rings_too_often_in_this_harness(rate):
    streams, steps = SMALL
    assert lower(repeated_z(draws(rate, streams, steps), rate, ALPHA).sum(), streams) > 2 * ALPHA


def test_a_baseline_taken_for_the_truth_rings_too_often_in_this_harness():
    streams, steps = 1000, 3000
    assert lower(ever_from_baseline(0.3, streams, steps, by_share), streams) > ALPHA


def test_starts_without_weights_bound_the_run_length_and_not_the_probability():
    """The e-detector's sum with one bet: false alarms are certain, and come after 20 values or more."""
    values, rate, q = draws(0.3, 500, 2000), 0.3, 0.4
    total, first = np.zeros(len(values)), np.full(len(values), np.inf)
    for step, value in enumerate(values.T, 1):
        total = (total + 1) * np.where(value == 1, q / rate, (1 - q) / (1 - rate))
        first = np.where((total >= 1 / ALPHA) & np.isinf(first), step, first)
    assert np.isfinite(first).mean() > 0.99
    assert first.mean() >= 1 / ALPHA


@pytest.mark.long
@pytest.mark.parametrize("rate", RATES)
def test_false_alarms_over_ten_thousand_streams(rate, capsys):
    streams, steps = WHOLE
    given = sum(int(ever(draws(rate, 1000, steps, [seed, 9]), rate, rate, ALPHA).sum()) for seed in range(10))
    estimated = ever_from_baseline(rate, streams, steps, by_interval)
    z = sum(int(repeated_z(draws(rate, 1000, steps, [seed, 9]), rate, ALPHA).sum()) for seed in range(10))
    with capsys.disabled():
        ends = [f"{upper(hits, streams):.4f}" for hits in (given, estimated)]
        print(f"\nrate {rate}: given {given}, estimated {estimated} of {streams}; upper {ends}; z {z}")
    assert upper(given, streams) <= ALPHA
    assert upper(estimated, streams) <= ALPHA
    assert lower(z, streams) > ALPHA


def floor(before, after, alpha, power=0.5):
    """Values that a test needs which knows when drift began, and looks once (exact binomial, two-sided)."""
    for n in range(5, 5000):
        low, high = binom.ppf(alpha / 2, n, before) - 1, binom.isf(alpha / 2, n, before)
        found = binom.cdf(low, n, after) + binom.sf(high, n, after)
        if found >= power:
            return n
    raise AssertionError("no such n")


def delays(before, after, start, streams, baseline=None, alpha=0.05, steps=6000):
    """Values from the drift to the alarm, of each stream; a stream that rings before is left out."""
    way = np.random.default_rng([start, streams])
    found = []
    for seed in range(streams):
        values = np.concatenate([draws(before, 1, start, [seed, 5])[0], draws(after, 1, steps, [seed, 6])[0]])
        low = high = before
        if baseline:
            low, high = reference_of(int(way.binomial(baseline, before)), baseline, alpha / 2)
        hit = np.flatnonzero(evidence(values, low, high) >= (2 if baseline else 1) / alpha)
        if not hit.size or hit[0] >= start:
            found.append(int(hit[0]) - start + 1 if hit.size else steps)
    return np.array(found)


TABLE = {
    (0.05, 0.10): (97, 349, 1003),
    (0.05, 0.20): (19, 63, 105),
    (0.30, 0.15): (36, 153, 244),
}
"""Before, after -> median delay of the page, drift after 1,000: floor, reference given, baseline of 1,000."""


@pytest.mark.slow
@pytest.mark.parametrize("shift", TABLE)
def test_delays_of_the_page(shift, capsys):
    before, after = shift
    rows = [floor(before, after, ALPHA)]
    told = []
    for baseline in (None, 1000):
        found = delays(before, after, 1000, 200, baseline)
        rows.append(int(np.median(found)))
        told.append([int(np.quantile(found, share)) for share in (0.1, 0.5, 0.9)])
    with capsys.disabled():
        print(f"\n{before} -> {after}: floor {rows[0]}, given {told[0]}, baseline of 1,000 {told[1]}")
    assert tuple(rows) == pytest.approx(TABLE[shift], rel=0.02)
    assert rows[0] <= rows[1] <= rows[2]


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.2), (0.3, 0.15), (0.5, 0.7)])
def test_a_planted_drift_is_found_soon_and_its_start_is_near(before, after):
    found = delays(before, after, 500, 20, steps=1500)
    assert len(found) >= 18
    assert np.median(found) < 300
    values = np.concatenate([draws(before, 1, 500, 1)[0], draws(after, 1, 400, 2)[0]])
    assert abs(began(values, before, before) - 500) < 80


def test_direction_is_what_was_asked_for():
    up, down = draws(0.6, 1, 800)[0], draws(0.1, 1, 800)[0]
    for values, rings, silent in ((up, "up", "down"), (down, "down", "up")):
        assert evidence(values, 0.3, 0.3, rings).max() > 1e6
        assert evidence(values, 0.3, 0.3, silent).max() < 20


def test_streams_do_not_touch_one_another():
    values = draws(0.2, 6, 300)
    together = evidence(values, 0.1, 0.1)
    for place in range(6):
        np.testing.assert_allclose(evidence(values[place], 0.1, 0.1), together[place], rtol=1e-12)
    np.testing.assert_allclose(evidence(values[::-1], 0.1, 0.1), together[::-1], rtol=1e-12)


def test_the_past_does_not_change_when_the_stream_goes_on():
    values = draws(0.2, 1, 500)[0]
    np.testing.assert_array_equal(evidence(values, 0.1, 0.1)[:200], evidence(values[:200], 0.1, 0.1))


def test_zeros_and_ones_swap():
    values = draws(0.2, 1, 400)[0]
    np.testing.assert_allclose(evidence(values, 0.1, 0.15), evidence(1 - values, 0.85, 0.9), rtol=1e-9)


def test_evidence_stays_finite_after_a_long_drift():
    found = evidence(np.ones(20_000), 0.01, 0.01)
    assert np.isfinite(found).all()
    assert found[-1] > 1e100


def test_an_end_without_a_rate_beyond_it_spends_nothing():
    ones = draws(0.3, 1, 50)[0]
    np.testing.assert_allclose(evidence(ones, 0.0, 0.1), evidence(ones, 0.0, 0.1, "up"))


def test_a_reference_covers_the_truth():
    """The share of baselines whose interval misses, exactly; one-sided, too."""
    for rate in RATES:
        counts = np.arange(BASELINE + 1)
        chances = binom.pmf(counts, BASELINE, rate)
        for direction in ("both", "up", "down"):
            ends = np.array([reference_of(int(k), BASELINE, 0.025, direction) for k in counts])
            misses = np.zeros(len(counts), bool)
            if direction != "down":
                misses |= ends[:, 1] < rate
            if direction != "up":
                misses |= ends[:, 0] > rate
            assert chances[misses].sum() <= 0.025


@pytest.mark.parametrize(
    ("values", "low", "high", "direction", "said"),
    [
        ([0.0, np.nan], 0.1, 0.1, "both", "not between 0 and 1"),
        ([0.0, 1.5], 0.1, 0.1, "both", "not between 0 and 1"),
        ([0.0], 0.3, 0.2, "both", "low <= high"),
        ([0.0], np.nan, 0.2, "both", "low <= high"),
        ([0.0], 0.0, 1.0, "both", "no rate"),
        ([0.0], 0.0, 0.5, "down", "no rate"),
        ([0.0], 0.1, 0.1, "left", "unknown direction"),
        (np.zeros((2, 2, 2)), 0.1, 0.1, "both", "dimensions"),
    ],
)
def test_bad_input_is_named(values, low, high, direction, said):
    with pytest.raises(InputError, match=said):
        evidence(values, low, high, direction)


def test_nothing_is_no_evidence():
    assert evidence([], 0.1, 0.1).shape == (0,)
    with pytest.raises(InputError, match="no value"):
        began([], 0.1, 0.1)
    with pytest.raises(InputError, match="miss"):
        reference_of(1, 10, 1.0)
    assert reference_of(0, 0, 0.05) == (0.0, 1.0)
    assert len(SHIFTS) == len(set(SHIFTS))
