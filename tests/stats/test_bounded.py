"""Means of scores known only within bounds."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.stats import mean
from calibrant.stats.bounded import bounded_mean

NAMES = [f"{at}" for at in range(40)]
KIND = {"bounds": (0.0, 1.0), "better": "higher", "unit": "output"}


def scores(seed=0, n=40):
    return np.random.default_rng(seed).random(n)


def test_known_scores_have_the_interval_of_the_mean():
    found, plain = bounded_mean(scores(), scores(), clusters=NAMES, **KIND), mean(scores(), **KIND)
    assert (found.value, found.low, found.high) == (plain.value, plain.low, plain.high)
    assert found.missing == 0


def test_the_ends_hold_every_completion():
    low, high = scores(), scores()
    low[:3], high[:3] = 0.0, 1.0
    found = bounded_mean(low, high, clusters=NAMES, **KIND)
    assert found.missing == 3
    for fill in (0.0, 1.0):
        whole = scores()
        whole[:3] = fill
        other = bounded_mean(whole, whole, clusters=NAMES, **KIND)
        assert found.low <= other.low + 1e-9 and other.high - 1e-9 <= found.high


def test_what_could_move_the_value_too_far_leaves_none():
    low, high = scores(), scores()
    low[:20], high[:20] = 0.0, 1.0
    found = bounded_mean(low, high, clusters=NAMES, **KIND)
    assert found.value is None
    assert "they could move" in found.reason
    assert found.low < 0.4 < 0.6 < found.high


@pytest.mark.parametrize(("n", "names"), [(0, []), (1, ["a"]), (3, ["a"] * 3)])
def test_nothing_and_one_cluster_are_unknown(n, names):
    found = bounded_mean(scores(n=n), scores(n=n), clusters=names, **KIND)
    assert (found.value, found.low, found.n) == (None, None, n)
    assert found.reason


def test_resamples_of_the_calibration_only_widen():
    plain = bounded_mean(scores(), scores(), clusters=NAMES, **KIND)
    narrow, wide = np.full(100, plain.value), np.linspace(0.0, 1.0, 101)
    same = bounded_mean(scores(), scores(), clusters=NAMES, drawn=(narrow, narrow), **KIND)
    wider = bounded_mean(scores(), scores(), clusters=NAMES, drawn=(wide, wide), **KIND)
    assert (same.low, same.high) == (plain.low, plain.high)
    assert (wider.low, wider.high) == (pytest.approx(0.025), pytest.approx(0.975))
