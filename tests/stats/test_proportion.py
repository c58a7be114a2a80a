"""Rates: closed forms, parity with scipy and statsmodels, worst cases, clusters."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from statsmodels.stats.proportion import proportion_confint

from calibrant.core import InputError, NumericalError
from calibrant.stats import difference, proportion_interval, rate, rate_so_far
from calibrant.stats._sample import effective_size

LABEL = {"better": "lower", "unit": "attempt"}
METHODS = ["clopper-pearson", "wilson"]


@pytest.mark.parametrize(("n", "upper"), [(100, 0.036), (300, 0.012), (1000, 0.0037), (3000, 0.0012)])
def test_no_success_has_the_closed_upper_bound(n, upper):
    """0 of n: (1 - high)^n = .025, so high = 1 - .025^(1/n): 3.6%, 1.2%, 0.37%, 0.12%."""
    low, high = proportion_interval(0, n)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / n), rel=1e-12)
    assert high == pytest.approx(upper, rel=0.03)
    assert proportion_interval(n, n) == pytest.approx((1 - high, 1.0))


def test_wilson_by_hand():
    """x = 5, n = 10, z = 1.959964: centre .5, half = z/(n+z^2) sqrt(n/4 + z^2/4) = .263411."""
    z = 1.959963984540054
    half = z / (10 + z * z) * math.sqrt(10 / 4 + z * z / 4)
    assert proportion_interval(5, 10, method="wilson") == pytest.approx((0.5 - half, 0.5 + half))
    assert proportion_interval(0, 10, method="wilson") == pytest.approx((0.0, z * z / (10 + z * z)))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 400])
def test_parity_with_scipy_and_statsmodels(n, level):
    for x in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        result = binomtest(x, n)
        exact = result.proportion_ci(level, "exact")
        wilson = result.proportion_ci(level, "wilson")
        assert proportion_interval(x, n, level) == pytest.approx((exact.low, exact.high), abs=1e-9)
        assert proportion_interval(x, n, level, "wilson") == pytest.approx(
            (wilson.low, wilson.high), abs=1e-9
        )
        for method, theirs in (("clopper-pearson", "beta"), ("wilson", "wilson")):
            peer = proportion_confint(x, n, 1 - level, theirs)
            assert proportion_interval(x, n, level, method) == pytest.approx(peer, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_missing_outcomes_stand_at_their_worst_case(method):
    """3 True, 4 False, 3 missing: value 3/7; low as 3 of 10, high as 6 of 10."""
    found = rate([True] * 3 + [False] * 4 + [None] * 3, method=method, **LABEL)
    assert found.value == pytest.approx(3 / 7)
    assert found.low == pytest.approx(proportion_interval(3, 10, 0.95, method)[0])
    assert found.high == pytest.approx(proportion_interval(6, 10, 0.95, method)[1])
    assert (found.n, found.missing, found.clusters) == (10, 3, None)
    assert (found.method, found.unit, found.better) == (method, "attempt", "lower")


@pytest.mark.parametrize("method", METHODS)
def test_no_completion_of_the_gaps_leaves_the_interval(method):
    outcomes = [True, None, False, None, False, None, False, True]
    found = rate(outcomes, method=method, **LABEL)
    for fill in itertools.product([False, True], repeat=3):
        fills = iter(fill)
        whole = rate([next(fills) if o is None else o for o in outcomes], method=method, **LABEL)
        assert found.low <= whole.low <= whole.high <= found.high


@pytest.mark.parametrize("outcomes", [[], [None] * 5])
@pytest.mark.parametrize("clusters", [None, ["a", "a", "b", "b", "b"]])
def test_nothing_known_is_said_aloud(outcomes, clusters):
    found = rate(outcomes, clusters=clusters and clusters[: len(outcomes)], **LABEL)
    assert found.value is None
    assert found.reason
    assert found.missing == len(outcomes)
    # Five gaps bound nothing by themselves: none counted True gives low 0, all counted True high 1.
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
@given(outcomes=st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=40))
def test_singletons_are_the_unclustered_case(method, outcomes):
    names = [f"goal {i}" for i in range(len(outcomes))]
    plain = rate(outcomes, method=method, **LABEL)
    assert rate(outcomes, clusters=names, method=method, **LABEL) == plain
    assert rate(outcomes, clusters=[""] * len(outcomes), method=method, **LABEL) == plain
    assert plain.value is None or plain.low <= plain.value <= plain.high


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([True, False, None]), st.sampled_from("abcd")), min_size=1, max_size=30
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_order_and_names_never_matter(rows, shuffle):
    mixed = list(rows)
    shuffle.shuffle(mixed)
    a = rate([r[0] for r in rows], clusters=[r[1] for r in rows], **LABEL)
    b = rate([r[0] for r in mixed], clusters=["group " + r[1] for r in mixed], **LABEL)
    assert (a.value, a.reason, a.clusters) == (b.value, b.reason, b.clusters)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-9)


def test_effective_size_against_a_slow_loop():
    """Four clusters of unequal size; the jackknife written out cluster by cluster, Kish's freedom."""
    x = [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    g = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    p, n, k = 0.4, 10, 4
    rest = [[xi for xi, gi in zip(x, g, strict=True) if gi != j] for j in range(k)]
    variance = (k - 1) / k * sum((sum(r) / len(r) - p) ** 2 for r in rest)
    deff = variance / (p * (1 - p) / (n - 1))
    kish = n**2 / sum(g.count(j) ** 2 for j in range(k))
    expected = n / deff * (t.ppf(0.975, n - 1) / t.ppf(0.975, kish - 1)) ** 2
    assert deff > 1
    assert effective_size(np.array(x, float), np.array(g), 0.95) == pytest.approx(expected)
    names = [str(j) for j in g]
    found = rate([bool(v) for v in x], clusters=names, **LABEL)
    assert (found.low, found.high) == pytest.approx(proportion_interval(expected * p, expected))
    assert found.clusters == 4
    assert "korn-graubard" in found.method


def test_gaps_in_clusters_hold_the_interval_of_every_completion():
    """A gap filled so that its cluster agrees with itself costs more than the share that it adds."""
    rng = np.random.default_rng(0)
    tables = [([True, True, None, False, False, None], ["a", "a", "a", "b", "b", "b"])]
    for _ in range(12):
        hits = rng.random(24) < 0.5
        gone = rng.choice(24, 4, replace=False)
        outcomes = [None if i in gone else bool(hit) for i, hit in enumerate(hits)]
        tables.append((outcomes, [str(x) for x in rng.integers(0, 6, 24)]))
    for outcomes, names in tables:
        found = rate(outcomes, clusters=names, **LABEL)
        for fill in itertools.product([False, True], repeat=outcomes.count(None)):
            rest = iter(fill)
            whole = [next(rest) if x is None else x for x in outcomes]
            one = rate(whole, clusters=names, **LABEL)
            assert found.low <= one.low + 1e-9
            assert found.high >= one.high - 1e-9


def test_clusters_of_one_size_have_korn_and_graubards_effective_size():
    x, g = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0], float), np.repeat(np.arange(3), 3)
    residuals = (x - x.mean()).reshape(3, 3).sum(1)
    deff = 3 / 2 * (residuals**2).sum() / 81 / (x.mean() * (1 - x.mean()) / 8)
    expected = min(9, 9 / deff * (t.ppf(0.975, 8) / t.ppf(0.975, 2)) ** 2)
    assert effective_size(x, g, 0.95) == pytest.approx(expected)


def test_one_huge_cluster_leaves_hardly_any_effective_size():
    """91 of 100 units in one cluster that always agrees: nine units say nothing of how such clusters lie."""
    hits, names = [True] * 91 + [False] * 9, ["huge"] * 91 + [str(i) for i in range(9)]
    assert effective_size(np.array(hits, float), np.array([0] * 91 + [*range(1, 10)]), 0.95) < 0.1
    found = rate(hits, clusters=names, **LABEL)
    assert found.low < 0.05
    assert found.high > 0.95
    changed = difference([False] * 100, hits, clusters=names, **LABEL)
    assert changed.low < 0


@given(
    rows=st.lists(st.tuples(st.booleans(), st.sampled_from("abcde")), min_size=2, max_size=40),
    method=st.sampled_from(METHODS),
)
def test_clusters_never_narrow_the_interval(rows, method):
    outcomes, names = [r[0] for r in rows], [r[1] for r in rows]
    clustered = rate(outcomes, clusters=names, method=method, **LABEL)
    plain = rate(outcomes, method=method, **LABEL)
    assert clustered.low <= plain.low + 1e-12
    assert clustered.high >= plain.high - 1e-12


def test_twins_in_clusters_count_once():
    """Each of 40 goals asked 25 times with one answer: worth 40 goals, not 1000 attempts."""
    answers = [i % 10 == 0 for i in range(40)]
    found = rate(
        [a for a in answers for _ in range(25)],
        clusters=[str(i) for i in range(40) for _ in range(25)],
        **LABEL,
    )
    goals = rate(answers, **LABEL)
    assert found.high - found.low == pytest.approx(goals.high - goals.low, rel=0.1)


def test_agreement_everywhere_says_what_it_hides():
    found = rate([False] * 300, clusters=[str(i // 30) for i in range(300)], **LABEL)
    assert found.high < 0.02
    worst = proportion_interval(0, 10)[1]
    assert f"{worst:.3f}" in found.reason


def test_one_cluster_bounds_nothing():
    found = rate([True, False, True], clusters=["a"] * 3, **LABEL)
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.value == pytest.approx(2 / 3)
    assert "one cluster" in found.reason


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: rate([True, float("nan")], **LABEL), NumericalError),
        (lambda: rate([True, 0.5], **LABEL), InputError),
        (lambda: rate([True, "yes"], **LABEL), InputError),
        (lambda: rate([True, False], clusters=["a"], **LABEL), InputError),
        (lambda: rate([True], level=95, **LABEL), InputError),
        (lambda: rate([True], level=0.0, **LABEL), InputError),
        (lambda: rate([], level=1.0, **LABEL), InputError),
        (lambda: rate([True], method="wald", **LABEL), InputError),
        (lambda: proportion_interval(3, 2), InputError),
        (lambda: proportion_interval(-1, 2), InputError),
        (lambda: proportion_interval(float("nan"), 2), InputError),
        (lambda: proportion_interval(1, float("inf")), InputError),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.hint


def test_no_share_where_the_open_could_move_it_further_than_chance():
    """30 True, 70 open: 30 of 30 is 1.000 +- .058 by chance, and may be .300; one open of 100 moves less."""
    found = rate_so_far([True] * 30 + [None] * 70, done="reached", better="lower", unit="goal")
    plain = rate([True] * 30 + [None] * 70, better="lower", unit="goal")
    assert (plain.value, found.value, found.missing) == (1.0, None, 70)
    assert (found.low, found.high) == (plain.low, 1.0)
    assert found.reason == (
        "30 of 100 goals reached, 70 open: no share is given, for they could move 1.000 by 0.700, "
        "and chance by 0.058"
    )
    few = rate_so_far([True] * 30 + [False] * 69 + [None], done="reached", better="lower", unit="goal")
    assert few.value == pytest.approx(30 / 99)
    assert few.reason == "30 of 100 goals reached, 1 open"
    assert rate_so_far([True, False], done="reached", **LABEL) == rate([True, False], **LABEL)
    none = rate_so_far([None] * 4, done="reached", **LABEL)
    assert (none.value, none.low, none.high) == (None, 0.0, 1.0)
    assert none.reason == "0 of 4 attempts reached, 4 open; none of the 4 outcomes was answered"


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_a_share_that_is_given_lies_near_every_completion(yes, no, open_):
    found = rate_so_far([True] * yes + [False] * no + [None] * open_, done="reached", **LABEL)
    if found.value is not None:
        chance = np.ptp(proportion_interval(yes, yes + no)) / 2
        n = yes + no + open_
        assert max(found.value - yes / n, (yes + open_) / n - found.value) <= chance


def test_clusters_of_the_settled_count_for_what_chance_can_do():
    """Ten settled in one cluster say nothing of others: chance could move them anywhere within .5."""
    outcomes = [True] * 10 + [None] * 8
    names = ["a"] * 10 + list("bcdefghi")
    assert rate_so_far(outcomes, done="reached", **LABEL).value is None
    assert rate_so_far(outcomes, clusters=names, done="reached", **LABEL).value == 1.0


def test_clusters_that_do_not_all_agree_need_no_remark():
    assert rate([True, True, False], clusters=["a", "a", "b"], **LABEL).reason == ""
    assert "all outcomes agree" in rate([True, True, True], clusters=["a", "a", "b"], **LABEL).reason
