"""The mean: bounds, gaps, clusters, agreement with a slow loop and with the t interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from calibrant.core import InputError, NumericalError
from calibrant.stats import mean, proportion_interval, rate
from calibrant.stats.bootstrap import UNBOUNDED, bootstrap_t

LABEL = {"better": "higher", "unit": "item"}


def test_bounds_come_from_a_slow_bootstrap_of_whole_clusters():
    """Draw clusters one by one and studentise each mean by the cluster-robust formula."""
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(9), [2, 3, 1, 4, 2, 5, 3, 2, 1])
    values = rng.gamma(2.0, size=codes.size) + codes / 5
    groups = [values[codes == j] for j in range(9)]

    def robust(drawn):
        n = sum(g.size for g in drawn)
        centre = sum(float(g.sum()) for g in drawn) / n
        squares = sum(float((g - centre).sum()) ** 2 for g in drawn)
        return centre, (squares * len(drawn) / (len(drawn) - 1)) ** 0.5 / n

    centre, error = robust(groups)
    ratios = []
    for _ in range(8000):
        m, e = robust([groups[j] for j in rng.integers(9, size=9)])
        ratios.append((m - centre) / e)
    below, above = np.quantile(ratios, [0.05, 0.95])
    low, high, remark = bootstrap_t(values, codes, 0.9, UNBOUNDED, 8000, 0)
    assert (low, high) == pytest.approx((centre - above * error, centre - below * error), abs=0.12 * error)
    assert remark == ""


def test_many_normal_values_give_the_t_interval():
    values = np.random.default_rng(1).standard_normal(400)
    found = mean(values.tolist(), resamples=20000, **LABEL)
    half = student.ppf(0.975, 399) * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=half / 20
    )


def test_skew_moves_the_interval_towards_the_tail():
    """The mean of a few exponential values is more often far too low than far too high."""
    values = (-np.log1p(-(np.arange(20) + 0.5) / 20)).tolist()
    found = mean(values, **LABEL)
    assert found.high - found.value > 1.2 * (found.value - found.low)


def test_missing_values_stand_at_the_bounds():
    values = [0.2, 0.4, 0.3, 0.6, 0.5, 0.1, 0.45, 0.35]
    found = mean([*values, None], bounds=(0.0, 1.0), **LABEL)
    assert found.value == pytest.approx(sum(values) / 8)
    assert found.low == mean([*values, 0.0], bounds=(0.0, 1.0), **LABEL).low
    assert found.high == mean([*values, 1.0], bounds=(0.0, 1.0), **LABEL).high
    assert (found.n, found.missing) == (9, 1)


def test_without_bounds_dropped_values_are_counted_aloud():
    values = [0.2, 0.4, 0.3, 0.6, 0.5, 0.1]
    found = mean([*values, None, None], **LABEL)
    whole = mean(values, **LABEL)
    assert (found.value, found.low, found.high) == (whole.value, whole.low, whole.high)
    assert "2 of 8 were missing and dropped" in found.reason
    assert (found.n, found.missing) == (8, 2)


def test_a_cluster_that_is_missing_altogether_is_dropped_whole():
    names = ["a", "a", "b", "c", "c", "d", "e", "f"]
    values = [1.0, 1.5, 2.0, None, None, 0.5, 1.1, 1.9]
    kept = [i for i, v in enumerate(values) if v is not None]
    found = mean(values, clusters=names, **LABEL)
    whole = mean([values[i] for i in kept], clusters=[names[i] for i in kept], **LABEL)
    assert (found.low, found.high) == (whole.low, whole.high)
    assert found.clusters == 6


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_known_is_said_aloud(values):
    bounded = mean(values, bounds=(-1.0, 2.0), **LABEL)
    open_ended = mean(values, **LABEL)
    assert bounded.value is None and open_ended.value is None
    assert bounded.reason and open_ended.reason
    assert (open_ended.low, open_ended.high) == (None, None)
    if not values:
        assert (bounded.low, bounded.high) == (-1.0, 2.0)
    else:
        assert bounded.low == -1.0 and bounded.high == 2.0


def test_no_spread_keeps_a_width():
    """100 zeros in [0, 1] leave room up to 1 - .025^(1/100) = 3.6%, as for a rate; 10 clusters up to 31%."""
    found = mean([0.0] * 100, bounds=(0.0, 1.0), **LABEL)
    exact = rate([False] * 100, **LABEL)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    grouped = mean([0.0] * 100, clusters=[str(i // 10) for i in range(100)], bounds=(0.0, 1.0), **LABEL)
    assert grouped.high == pytest.approx(1 - 0.025**0.1)
    middle = mean([0.5] * 30, bounds=(0.0, 1.0), **LABEL)
    assert middle.low < 0.5 < middle.high
    assert found.reason == middle.reason and found.reason.startswith(
        "all independent units have the same value: "
    )
    unbounded = mean([0.5] * 30, **LABEL)
    assert (unbounded.value, unbounded.low, unbounded.high) == (0.5, None, None)
    assert unbounded.reason.endswith("may differ by any amount, so there is no interval")


def test_one_or_two_units_bound_nothing():
    assert mean([0.3], **LABEL).low is None
    pair = mean([0.3, 0.5], **LABEL)
    assert (pair.value, pair.low, pair.high) == (0.4, None, None)
    assert pair.reason
    one = mean([0.3, 0.5, 0.4], clusters=["a"] * 3, bounds=(0.0, 1.0), **LABEL)
    assert (one.low, one.high) == (0.0, 1.0)
    assert one.reason


def test_one_odd_value_widens_rather_than_vanishes():
    """One 1 among fifty 0: a third of resamples lack it, which may not read as certainty."""
    found = mean([0.0] * 49 + [1.0], bounds=(0.0, 1.0), **LABEL)
    assert found.high >= rate([False] * 49 + [True], **LABEL).high


def test_yes_or_no_scores_get_the_exact_interval():
    """448 of 450: Clopper-Pearson says [.984, .9995], the bootstrap [0, .9998]."""
    values = [1.0] * 448 + [0.0] * 2
    found = mean(values, bounds=(0.0, 1.0), **LABEL)
    assert (found.low, found.high) == proportion_interval(448, 450)
    assert found.low == pytest.approx(0.98404, abs=1e-5)
    assert (found.method, found.reason) == ("clopper-pearson", "")
    scaled = mean([-1 + 3 * v for v in values], bounds=(-1.0, 2.0), **LABEL)
    assert (scaled.low, scaled.high) == pytest.approx((-1 + 3 * found.low, -1 + 3 * found.high))
    open_ = mean([*values, None], bounds=(0.0, 1.0), **LABEL)
    assert (open_.low, open_.high) == (proportion_interval(448, 451)[0], proportion_interval(449, 451)[1])
    assert mean([*values, None], bounds=(0.0, 1.0), **LABEL).missing == 1


def test_yes_or_no_scores_in_clusters_get_gaffkes():
    """Two of 90 clusters deviate, wholly or in one of five: no end is open, and a whole one may be unseen."""
    names = [str(i // 5) for i in range(450)]
    whole = mean([1.0] * 440 + [0.0] * 10, clusters=names, bounds=(0.0, 1.0), **LABEL)
    assert (whole.low, whole.high) == pytest.approx(proportion_interval(88, 90), abs=2e-3)
    assert (whole.method, whole.clusters) == ("gaffke", 90)
    spread = [1.0] * 444 + [0.0] + [1.0] * 4 + [0.0]
    part = mean(spread, clusters=names, bounds=(0.0, 1.0), **LABEL)
    assert 0.95 < part.low < 0.025 ** (1 / 90) < 448 / 450 < part.high < 1


def test_a_few_ties_among_many_wins_leave_no_end_open():
    """Scores of three values, all but two at the top: the bootstrap's low end would be 0."""
    found = mean([1.0] * 448 + [0.5] * 2, bounds=(0.0, 1.0), **LABEL)
    assert 0.98 < found.low < found.value < found.high <= 1
    assert found.method == "bootstrap-t"


def test_three_unequal_units_leave_both_ends_open():
    """A ninth of resamples repeat one unit: without bounds no 95% end exists, not a huge one."""
    found = mean([0.1, 0.7, 0.3], **LABEL)
    assert (found.low, found.high) == (None, None)
    assert "too little spread" in found.reason


@settings(max_examples=30)
@given(
    rows=st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abcdef")), min_size=1, max_size=25),
    shuffle=st.randoms(use_true_random=False),
)
def test_order_and_names_never_matter(rows, shuffle):
    mixed = list(rows)
    shuffle.shuffle(mixed)
    a = mean([r[0] for r in rows], clusters=[r[1] for r in rows], resamples=200, bounds=(-5, 5), **LABEL)
    b = mean(
        [r[0] for r in mixed], clusters=["x" + r[1] for r in mixed], resamples=200, bounds=(-5, 5), **LABEL
    )
    assert a == b


@settings(max_examples=30)
@given(values=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=25))
def test_singletons_are_the_unclustered_case(values):
    names = [str(i) for i in range(len(values))]
    plain = mean(values, resamples=200, bounds=(0, 1), **LABEL)
    assert mean(values, clusters=names, resamples=200, bounds=(0, 1), **LABEL) == plain


def test_a_shift_and_a_scale_carry_over():
    values = np.random.default_rng(2).gamma(1.0, size=30)
    a = mean(values.tolist(), **LABEL)
    b = mean((1e3 + 10 * values).tolist(), **LABEL)
    assert (b.low, b.high) == pytest.approx((1e3 + 10 * a.low, 1e3 + 10 * a.high), rel=1e-9)


def test_seed_and_memory_chunks(monkeypatch):
    values = np.random.default_rng(3).gamma(1.0, size=25).tolist()
    a = mean(values, seed=1, **LABEL)
    assert a == mean(values, seed=1, **LABEL)
    assert a != mean(values, seed=2, **LABEL)
    monkeypatch.setattr("calibrant.stats.bootstrap._CELLS", 1000)
    b = mean(values, seed=1, **LABEL)
    assert (b.low, b.high) == pytest.approx((a.low, a.high), rel=0.2)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: mean([1.0, float("nan")], **LABEL), NumericalError),
        (lambda: mean([1.0, float("inf")], **LABEL), NumericalError),
        (lambda: mean([1.0, "2"], **LABEL), InputError),
        (lambda: mean([1.0, 2.0], clusters=["a"], **LABEL), InputError),
        (lambda: mean([1.0, 2.0], bounds=(0, 1), **LABEL), InputError),
        (lambda: mean([0.5], bounds=(1, 0), **LABEL), InputError),
        (lambda: mean([0.5], bounds=(0, float("inf")), **LABEL), InputError),
        (lambda: mean([0.5], level=1.0, **LABEL), InputError),
        (lambda: mean([0.5], resamples=10, **LABEL), InputError),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.hint


def test_one_huge_cluster_widens_the_interval_by_what_nothing_shows():
    """Resamples hardly ever lack 91 units of 100, or have nothing else, so they agree on a wrong mean."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1.0, 0.3, 91), rng.normal(0.0, 0.3, 9)]).tolist()
    found = mean(values, clusters=["huge"] * 91 + [str(i) for i in range(9)], better="none", unit="item")
    assert found.low < 0 < 1 < found.high
    alike = mean(values, clusters=[str(i // 5) for i in range(100)], better="none", unit="item")
    assert alike.high - alike.low < 0.6  # clusters of one size have the bootstrap's own ends
