"""The difference of two means: against SciPy's Welch interval, and its coverage with clusters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from calibrant.core import InputError, NumericalError
from calibrant.stats import proportion_interval
from calibrant.stats.two_samples import mean_difference


@pytest.mark.parametrize("sizes", [(2, 2), (5, 40), (30, 30)])
def test_without_clusters_it_is_welchs(sizes):
    rng = np.random.default_rng(sum(sizes))
    one, two = rng.normal(size=sizes[0]), 3 + 5 * rng.normal(size=sizes[1])
    found = mean_difference(one.tolist(), two.tolist(), unit="x", level=0.9)
    ends = ttest_ind(one, two, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-10)
    assert found.value == pytest.approx(one.mean() - two.mean())
    assert (found.n, found.clusters, found.null_value) == (sum(sizes), None, 0.0)


def test_clusters_of_one_change_nothing_and_equal_ones_are_units():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=6), rng.normal(size=8)
    alone = mean_difference(one.tolist(), two.tolist(), unit="x")
    assert mean_difference(one.tolist(), two.tolist(), clusters=([""] * 6, [""] * 8), unit="x") == alone
    names = ([str(i // 3) for i in range(18)], [str(i // 3) for i in range(24)])
    copies = mean_difference(np.repeat(one, 3).tolist(), np.repeat(two, 3).tolist(), clusters=names, unit="x")
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), rel=1e-9)
    assert copies.clusters == 14 and copies.n == 42


def covered(seed):
    """Six clusters of 1 to 9 on one side, twenty single units on the other; no difference."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, size=6)
    names = [str(c) for c, size in enumerate(sizes) for _ in range(size)]
    one = np.repeat(rng.normal(size=6), sizes) + rng.normal(size=sizes.sum())
    found = mean_difference(one.tolist(), rng.normal(size=20).tolist(), clusters=(names, [""] * 20), unit="x")
    return found.low <= 0 <= found.high


def test_it_covers_with_few_unequal_clusters():
    """At a true 95 %, 1000 runs fall below .93 once in 400 tests; at 90 % always."""
    hits = sum(covered(seed) for seed in range(1000))
    assert hits / 1000 > 0.93
    assert proportion_interval(hits, 1000)[0] > 0.91


def test_what_cannot_be_told_is_refused():
    with pytest.raises(InputError, match="two are the least"):
        mean_difference([1.0], [1.0, 2.0], unit="x")
    with pytest.raises(InputError, match="in 1 clusters"):
        mean_difference([1.0, 2.0], [1.0, 2.0], clusters=(["a", "a"], ["b", "c"]), unit="x")
    with pytest.raises(InputError, match="two are the least"):
        mean_difference([], [1.0, 2.0], unit="x")
    with pytest.raises(NumericalError):
        mean_difference([1.0, float("nan")], [1.0, 2.0], unit="x")
    with pytest.raises(InputError, match="missing"):
        mean_difference([1.0, None], [1.0, 2.0], unit="x")
    alike = mean_difference([1.0, 1.0], [0.0, 0.0], unit="x")
    assert alike.value == 1 and alike.low is None and "no interval" in alike.reason
