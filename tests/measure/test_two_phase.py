"""A judge's errors from a sample that follows its own answers: no verification bias, and honest bounds."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.measure._two_phase import Counts, equivalent, errors
from calibrant.stats.proportion import proportion_interval


def test_point_estimates_by_hand():
    """40 hits, 30 confirmed; 5 of 100 seen of 1,000 others are hits: 50 missed, so Se = 30 / 80.

    950 were cleared rightly and 10 flagged wrongly: Sp = 950 / 960.
    """
    found = errors(Counts(hits=40, hits_yes=30, hits_no=10, rest=1000, rest_yes=5, rest_no=95), 0.95)
    assert found.sensitivity.value == pytest.approx(30 / 80)
    assert found.specificity.value == pytest.approx(950 / 960)
    assert found.sensitivity.low < 0.25 < 0.6 < found.sensitivity.high, "five misses are few"


def test_the_naive_share_among_the_seen_would_be_far_off():
    """Among those that people saw, 30 of 35 hits were found: .86 where the truth is near .38."""
    found = errors(Counts(40, 30, 10, 1000, 5, 95), 0.95)
    assert found.sensitivity.high < 30 / 35


def test_unseen_failures_leave_both_unknown():
    found = errors(Counts(hits=40, hits_yes=30, hits_no=10, rest=1000, rest_yes=0, rest_no=0), 0.95)
    assert found.sensitivity.value is None
    assert "judge's failures" in found.sensitivity.reason
    assert equivalent(found, Counts(40, 30, 10, 1000, 0, 0)) == (0, 0, 0, 0)


def test_open_answers_widen_both_bounds():
    sure = errors(Counts(40, 30, 10, 1000, 5, 95), 0.95)
    unsure = errors(Counts(40, 20, 5, 1000, 5, 95, rest_open=20), 0.95)
    assert unsure.sensitivity.low < sure.sensitivity.low
    assert unsure.sensitivity.high > sure.sensitivity.high
    assert unsure.sensitivity.missing == 35


def test_no_miss_in_the_sample_is_no_perfect_judge():
    """0 of 100 seen: the upper bound of what 1,000 hide is 43 (97.5 % level), against 30 found."""
    found = errors(Counts(40, 30, 10, 1000, 0, 100), 0.95)
    assert found.sensitivity.value == 1
    assert found.sensitivity.low < 0.5
    yes, n, *_ = equivalent(found, Counts(40, 30, 10, 1000, 0, 100))
    assert yes == n
    assert proportion_interval(yes, n)[0] <= found.sensitivity.low


@pytest.mark.parametrize("counts", [Counts(40, 30, 10, 1000, 5, 95), Counts(200, 190, 10, 300, 10, 290)])
def test_equivalent_counts_promise_no_more(counts):
    found = errors(counts, 0.95)
    yes, n, cleared, m = equivalent(found, counts)
    for one, k, size in ((found.sensitivity, yes, n), (found.specificity, cleared, m)):
        low, high = proportion_interval(k, size)
        assert low <= one.low + 1e-9
        assert high >= one.high - 1e-9
        assert k / size == pytest.approx(one.value, abs=0.5 / size + 1e-9)
        assert 0 < size <= counts.hits + counts.rest


def coverage(base, se, sp, m, runs, seed=0):
    """How often the intervals hold Se and Sp: 1,500 attempts, ``m`` of the judge's failures seen."""
    rng = np.random.default_rng(seed)
    held = np.zeros(2)
    for _ in range(runs):
        truth = rng.random(1500) < base
        said = np.where(truth, rng.random(1500) < se, rng.random(1500) > sp)
        seen = rng.permutation(np.flatnonzero(~said))[:m]
        found = errors(
            Counts(
                hits=int(said.sum()),
                hits_yes=int((said & truth).sum()),
                hits_no=int((said & ~truth).sum()),
                rest=int((~said).sum()),
                rest_yes=int(truth[seen].sum()),
                rest_no=int((~truth[seen]).sum()),
            ),
            0.95,
        )
        held += [one.low <= true <= one.high for one, true in zip(found, (se, sp), strict=True)]
    return held / runs


def test_bounds_cover_the_truth():
    """A tenth positive, Se .7, Sp .95, 150 failures seen."""
    runs = 60
    assert (coverage(0.1, 0.7, 0.95, 150, runs) >= 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("base", "se", "sp", "m"),
    [
        (0.1, 0.7, 0.95, 150),
        (0.1, 0.7, 0.95, 300),
        (0.3, 0.5, 0.9, 100),
        (0.05, 0.9, 0.99, 200),
        (0.5, 0.95, 0.6, 50),
        (0.1, 0.9, 0.8, 1350),
    ],
)
def test_bounds_cover_the_truth_in_many_settings(base, se, sp, m):
    """The last one: everything is seen, and the number of hits is still chance."""
    runs = 2000
    assert (coverage(base, se, sp, m, runs) >= 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5).all()
