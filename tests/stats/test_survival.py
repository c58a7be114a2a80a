"""Success against budget: closed forms, parity with statsmodels, worst cases, coverage beside Greenwood's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from statsmodels.duration.survfunc import SurvfuncRight

from calibrant.core import InputError, NumericalError
from calibrant.stats import proportion_interval
from calibrant.stats import rate as counted
from calibrant.stats.survival import success_curve

LONG = 10_000
ROWS = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from([True, False, None]), st.sampled_from("abcd")),
    min_size=1,
    max_size=15,
)


def greenwood(costs, reached, budget, level=0.95):
    """Greenwood's interval for ASR at ``budget`` with log-log ends; None where undefined.

    Greenwood 1926; Kalbfleisch & Prentice 1980, "The Statistical Analysis of Failure Time Data", ch. 1.
    """
    spent, hit = np.asarray(costs, float), np.asarray(reached, bool)
    survival, variance = 1.0, 0.0
    for time in np.unique(spent[hit & (spent <= budget)]):
        events, at_risk = ((spent == time) & hit).sum(), (spent >= time).sum()
        survival *= 1 - events / at_risk
        variance += events / (at_risk * (at_risk - events)) if events < at_risk else 0
    if not 0 < survival < 1:
        return None
    spread = np.exp(ndtri((1 + level) / 2) * np.sqrt(variance) / abs(np.log(survival)))
    return 1 - survival ** (1 / spread), 1 - survival**spread


def watched(rng, n, rate, most):
    """First successes with a constant chance a query, goals given up at random or at ``most`` queries."""
    first = rng.geometric(rate, n)
    ended = np.minimum(rng.geometric(0.02, n), most)
    return np.minimum(first, ended), first <= ended


def coverage(repetitions, sizes=(20, 100)):
    """Ours, the median's and Greenwood's (undefined counts as a miss), at three budgets."""
    rng, ours, theirs, medians = np.random.default_rng(0), {}, {}, {}
    for n, rate in itertools.product(sizes, (0.002, 0.02, 0.1)):
        held = {budget: [0, 0] for budget in (2, 10, 40)}
        median = 0
        for _ in range(repetitions):
            spent, reached = (x.tolist() for x in watched(rng, n, rate, 40))
            curve = success_curve(spent, reached)
            for budget, counts in held.items():
                truth = 1 - (1 - rate) ** budget
                found, plain = curve.at(budget), greenwood(spent, reached, budget)
                counts[0] += found.low <= truth <= found.high
                counts[1] += plain is not None and plain[0] <= truth <= plain[1]
            found = curve.budget_for(0.5)
            truth = np.ceil(np.log(0.5) / np.log1p(-rate))
            median += (found.low or 0) <= truth <= (found.high or np.inf)
        for budget, counts in held.items():
            ours[n, rate, budget], theirs[n, rate, budget] = (c / repetitions for c in counts)
        medians[n, rate] = median / repetitions
    return ours, theirs, medians


def clustered(repetitions):
    """25 clusters of 4 goals whose first successes are alike (normal copula)."""
    rng, cells = np.random.default_rng(1), {}
    codes = np.repeat(np.arange(25), 4)
    names = [str(c) for c in codes]
    for rate, icc in itertools.product((0.005, 0.05), (0.0, 0.4)):
        held = np.zeros(2)
        for _ in range(repetitions):
            z = np.sqrt(icc) * rng.standard_normal(25)[codes] + np.sqrt(1 - icc) * rng.standard_normal(100)
            first = np.ceil(np.log(ndtr(z)) / np.log1p(-rate))
            spent, reached = np.minimum(first, 30).tolist(), (first <= 30).tolist()
            curve = success_curve(spent, reached, clusters=names)
            for i, budget in enumerate((10, 30)):
                found = curve.at(budget)
                held[i] += found.low <= 1 - (1 - rate) ** budget <= found.high
        cells[rate, icc, 10], cells[rate, icc, 30] = held / repetitions
    return cells


def report(name, cells):
    worst = min(cells, key=cells.get)
    average = float(np.mean(list(cells.values())))
    print(f"{name}: mean {average:.4f}, worst {cells[worst]:.4f} at {worst}, {len(cells)} cells")
    return average, cells[worst]


def test_by_hand():
    """Six goals: reached at 1, 3 and 3, given up at 2, 4 and 5.

    S(1) = 5/6; at 3 four are left and two are reached: S(3) = 5/6 * 2/4 = 5/12, ASR 7/12.
    """
    curve = success_curve([1, 3, 3, 2, 4, 5], [True, True, True, False, False, False])
    assert curve.at(0.5).value == 0.0
    assert curve.at(1).value == pytest.approx(1 / 6)
    assert curve.at(2.9).value == pytest.approx(1 / 6)
    assert curve.at(3).value == pytest.approx(7 / 12)
    assert curve.at(5).value == pytest.approx(7 / 12)
    assert curve.at(5.1).value is None
    assert (curve.at(5.1).low, curve.at(5.1).high) == (curve.at(5).low, 1.0)
    assert curve.budget_for(0.5).value == 3
    far = curve.budget_for(0.6)
    assert (far.value, far.high) == (None, None)
    assert "reaches 0.583" in far.reason


@pytest.mark.parametrize(("n", "hits"), [(10, 0), (10, 3), (10, 10), (100, 0), (100, 40)])
def test_without_censoring_it_is_clopper_pearson(n, hits):
    spent = list(range(1, hits + 1)) + [200] * (n - hits)
    curve = success_curve(spent, [True] * hits + [False] * (n - hits))
    found = curve.at(150)
    assert (found.low, found.high) == pytest.approx(proportion_interval(hits, n), abs=1e-9)
    first = curve.at(0.5)
    assert (first.value, first.low) == (0.0, 0.0)
    assert first.high == pytest.approx(proportion_interval(0, n)[1])


def test_parity_with_statsmodels():
    rng = np.random.default_rng(2)
    spent, reached = watched(rng, 80, 0.05, 40)
    peer = SurvfuncRight(spent, reached.astype(int))
    curve = success_curve(spent.tolist(), reached.tolist())
    for time, survival, error in zip(peer.surv_times, peer.surv_prob, peer.surv_prob_se, strict=True):
        assert curve.at(float(time)).value == pytest.approx(1 - survival)
        if 0 < survival < 1:
            spread = np.exp(1.959964 * error / (survival * abs(np.log(survival))))
            ends = greenwood(spent.tolist(), reached.tolist(), float(time))
            assert ends == pytest.approx((1 - survival ** (1 / spread), 1 - survival**spread), abs=1e-6)


def test_large_samples_agree_with_greenwood():
    rng = np.random.default_rng(3)
    spent, reached = (x.tolist() for x in watched(rng, 4000, 0.03, 60))
    curve = success_curve(spent, reached)
    for budget in (5, 20, 60):
        found = curve.at(budget)
        assert (found.low, found.high) == pytest.approx(greenwood(spent, reached, budget), abs=2e-3)


def test_nothing_reached():
    curve = success_curve([100] * 100, [False] * 100)
    assert curve.at(100).high == pytest.approx(0.0362, abs=1e-4)
    assert greenwood([100] * 100, [False] * 100, 100) is None
    median = curve.budget_for()
    assert (median.value, median.low, median.high) == (None, 100.0, None)
    assert median.better == "higher"
    nobody = success_curve([], [])
    assert nobody.at(1).value is None and (nobody.at(1).low, nobody.at(1).high) == (0.0, 1.0)
    assert nobody.budget_for().value is None


@given(rows=ROWS)
def test_no_completion_of_the_gaps_leaves_the_interval(rows):
    """An undetermined goal may have been reached there, or at no cost whatever."""
    spent, reached = [float(r[0]) for r in rows], [r[1] for r in rows]
    curve = success_curve(spent, reached)
    yes = success_curve(spent, [r is not False for r in reached])
    no = success_curve(
        [1e9 if r is None else c for c, r in zip(spent, reached, strict=True)], [r is True for r in reached]
    )
    for budget in range(1, 9):
        found = curve.at(budget)
        assert found.missing == reached.count(None)
        assert found.low <= no.at(budget).low + 1e-12
        assert found.high >= yes.at(budget).high - 1e-12
        assert found.value is None or found.low <= found.value <= found.high


@given(rows=ROWS, shuffle=st.randoms(use_true_random=False))
def test_order_and_singletons_never_matter(rows, shuffle):
    def read(chosen, names):
        return success_curve([r[0] for r in chosen], [r[1] for r in chosen], clusters=names)

    mixed = list(rows)
    shuffle.shuffle(mixed)
    plain, grouped = read(rows, None), read(rows, [r[2] for r in rows])
    alone, other = read(rows, [str(i) for i in range(len(rows))]), read(mixed, [r[2] for r in mixed])
    for budget in (0, 1, 3, 8):
        assert alone.at(budget) == plain.at(budget)
        a, b, c = grouped.at(budget), other.at(budget), plain.at(budget)
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-9)
        assert a.low <= c.low + 1e-9 and a.high >= c.high - 1e-9


def test_twins_count_once():
    """Each of 30 goals four times with one story: worth 30."""
    rng = np.random.default_rng(4)
    spent, reached = watched(rng, 30, 0.05, 40)
    names = [str(i) for i in range(30) for _ in range(4)]
    four = success_curve(np.repeat(spent, 4).tolist(), np.repeat(reached, 4).tolist(), clusters=names).at(20)
    one = success_curve(spent.tolist(), reached.tolist()).at(20)
    assert four.value == pytest.approx(one.value)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.12)
    single = success_curve(spent.tolist(), reached.tolist(), clusters=["all"] * 30).at(20)
    assert (single.low, single.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: success_curve([1], [True, False]), InputError),
        (lambda: success_curve([-1], [True]), InputError),
        (lambda: success_curve([None], [True]), InputError),
        (lambda: success_curve([float("inf")], [True]), NumericalError),
        (lambda: success_curve([1], [2]), InputError),
        (lambda: success_curve([1], [True]).budget_for(1.0), InputError),
    ],
)
def test_bad_input(call, error):
    with pytest.raises(error):
        call()


def test_quick_coverage():
    ours, theirs, medians = coverage(100, (50,))
    assert report("beta product, quick", ours)[1] >= 0.92
    assert report("median, quick", medians)[1] >= 0.92
    assert report("greenwood, quick", theirs)[1] < 0.7  # few events: undefined or too narrow
    assert report("clusters, quick", clustered(40))[0] >= 0.93


@pytest.mark.long
def test_coverage_in_the_long_run():
    ours, theirs, medians = coverage(LONG)
    assert report("beta product", ours)[1] >= 0.95 - 3 * (0.95 * 0.05 / LONG) ** 0.5
    assert report("median", medians)[1] >= 0.95 - 3 * (0.95 * 0.05 / LONG) ** 0.5
    report("greenwood, log-log", theirs)


@pytest.mark.long
def test_clusters_in_the_long_run():
    average, worst = report("beta product, clusters", clustered(LONG))
    assert average >= 0.95
    assert worst >= 0.93


def test_once_every_goal_is_reached_more_budget_changes_nothing():
    """All of four fell by 5: at 6, where no goal is watched, the rate is known to be 1."""
    curve = success_curve([1.0, 2.0, 3.0, 5.0], [True] * 4)
    for budget in (5, 6, 1e9):
        found = curve.at(budget)
        assert (found.value, found.high, found.reason) == (1.0, 1.0, "")
        assert found.low == pytest.approx(curve.at(5).low)
    one_left = success_curve([1.0, 2.0, 3.0, 5.0], [True] * 3 + [False])
    assert one_left.at(5).value == pytest.approx(0.75)
    assert (one_left.at(6).value, one_left.at(6).reason) == (None, "no goal was watched beyond 5")


def test_the_ends_of_the_median_are_where_the_ends_of_the_curve_reach_a_half():
    """One of 60 goals falls at each of the costs 1 to 60: at cost k, k of 60, and Clopper-Pearson's ends."""
    curve = success_curve(list(range(1, 61)), [True] * 60)
    ends = [proportion_interval(k, 60) for k in range(1, 61)]
    median = curve.budget_for(0.5)
    assert median.value == 30
    assert median.low == 1 + next(i for i, (_, high) in enumerate(ends) if high >= 0.5)
    assert median.high == 1 + next(i for i, (low, _) in enumerate(ends) if low >= 0.5)


def test_without_censoring_clusters_count_as_in_a_rate():
    """The robust variance of S over the plain one is then Korn & Graubard's design effect."""
    rng = np.random.default_rng(5)
    names = [f"c{c}" for c in rng.integers(0, 12, 60)]
    soft = {name: rng.random() for name in sorted(set(names))}
    hits = [bool(rng.random() < soft[name]) for name in names]
    found = success_curve([1.0 if hit else 2.0 for hit in hits], hits, clusters=names).at(2)
    whole = counted(hits, clusters=names, better="lower", unit="goal")
    assert found.value == pytest.approx(whole.value)
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), abs=1e-6)
