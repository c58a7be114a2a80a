"""Success at k: closed forms, enumeration, the boundary, worst cases, the beta-binomial law, coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import betainc, betaincinv, ndtr
from scipy.stats import betabinom

from calibrant.core import InputError
from calibrant.stats import _confidence, at_k, proportion_interval
from calibrant.stats.at_k import Tries, any_of_k, beta_binomial, success_at_k

LONG = 10_000
COUNTS = st.lists(
    st.integers(0, 5).flatmap(
        lambda n: st.integers(0, n).flatmap(lambda c: st.integers(0, n - c).map(lambda u: Tries(c, n, u)))
    ),
    min_size=1,
    max_size=8,
)
LAWS = {"uneven": (0.2, 3.8), "rare": (0.02, 1.98), "alike": (100.0, 1900.0), "even": (1.0, 1.0)}


def true_rate(a, b, k):
    return -math.expm1(math.lgamma(b + k) - math.lgamma(b) - math.lgamma(a + b + k) + math.lgamma(a + b))


def drawn(rng, a, b, goals, n=10):
    return [(int(c), n) for c in rng.binomial(n, rng.beta(a, b, goals))]


def measured(repetitions, sizes):
    """ASR@k for k = 1, 5, 10 of 10 attempts under four laws of the goals."""
    rng, cells = np.random.default_rng(0), {}
    for (name, (a, b)), goals in itertools.product(LAWS.items(), sizes):
        ks, held = (1, 5, 10), np.zeros(3)
        for _ in range(repetitions):
            found = success_at_k(drawn(rng, a, b, goals), ks)
            held += [
                x.low - 1e-12 <= true_rate(a, b, k) <= x.high + 1e-12 for x, k in zip(found, ks, strict=True)
            ]
        cells |= {(name, goals, k): h / repetitions for k, h in zip(ks, held, strict=True)}
    return cells


def forecast(repetitions, sizes):
    """ASR@25, @100 and @1000 from 10 attempts, where the law is true."""
    rng, cells = np.random.default_rng(1), {}
    for (name, (a, b)), goals in itertools.product(LAWS.items(), sizes):
        ks, held = (25, 100, 1000), np.zeros(3)
        for _ in range(repetitions):
            found = beta_binomial(drawn(rng, a, b, goals)).extrapolate(ks)
            held += [x.asr.low <= true_rate(a, b, x.k) <= x.asr.high for x in found]
        cells |= {(name, goals, k): h / repetitions for k, h in zip(ks, held, strict=True)}
    return cells


def clustered(repetitions, count):
    """Unequal clusters of 1 to 8 goals whose success rates are alike (normal copula)."""
    rng, cells = np.random.default_rng(2), {}
    for name, icc in itertools.product(("uneven", "rare"), (0.0, 0.4)):
        a, b = LAWS[name]
        table = betaincinv(a, b, np.linspace(0, 1, 2001))
        ks, held = (1, 10), np.zeros(3)
        for _ in range(repetitions):
            codes = np.repeat(np.arange(count), rng.integers(1, 9, count))
            z = np.sqrt(icc) * rng.standard_normal(count)[codes]
            z = z + np.sqrt(1 - icc) * rng.standard_normal(codes.size)
            p = np.interp(ndtr(z), np.linspace(0, 1, 2001), table)
            counts, names = [(int(c), 10) for c in rng.binomial(10, p)], [str(c) for c in codes]
            found = success_at_k(counts, ks, clusters=names)
            far = beta_binomial(counts, clusters=names).extrapolate([100])[0].asr
            found.append(far)
            held += [
                x.low - 1e-12 <= true_rate(a, b, k) <= x.high + 1e-12
                for x, k in zip(found, (1, 10, 100), strict=True)
            ]
        cells |= {(name, icc, k): h / repetitions for k, h in zip((1, 10, 100), held, strict=True)}
    return cells


def report(name, cells):
    worst = min(cells, key=cells.get)
    average = float(np.mean(list(cells.values())))
    print(f"{name}: mean {average:.4f}, worst {cells[worst]:.4f} at {worst}, {len(cells)} cells")
    return average, cells[worst]


def test_by_hand():
    """2 of 5 attempts: at k = 2, 1 - C(3, 2) / C(5, 2) = 1 - 3/10. With 0 of 5 on a second goal: 35%."""
    (found,) = success_at_k([(2, 5), (0, 5)], [2])
    assert found.value == pytest.approx(0.35)
    assert (found.n, found.missing, found.better, found.unit, found.method) == (
        2,
        0,
        "lower",
        "goal",
        "gaffke",
    )


@given(n=st.integers(1, 8), data=st.data())
def test_unbiased_by_enumeration(n, data):
    """The share of all choices of k attempts that hold a success."""
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(itertools.combinations([i < c for i in range(n)], k))
    expected = sum(any(x) for x in choices) / len(choices)
    assert any_of_k(np.array([float(c)]), np.array([float(n)]), k)[0] == pytest.approx(expected, abs=1e-12)


def test_log_space_holds_for_large_counts():
    """c = 3 of n = 20,000, k = 10,000: close to 1 - (1/2)^3; exact by whole numbers."""
    n, c, k = 20_000, 3, 10_000
    exact = 1 - math.prod(n - k - i for i in range(c)) / math.prod(n - i for i in range(c))
    assert any_of_k(np.array([3.0]), np.array([float(n)]), k)[0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("hits", "goals"), [(0, 100), (3, 40), (40, 40), (1, 1)])
def test_all_or_nothing_goals_are_clopper_pearson(hits, goals):
    """0 hits on 100 goals leave 3.6%, whatever k."""
    counts = [(10, 10)] * hits + [(0, 10)] * (goals - hits)
    for found in success_at_k(counts, [1, 3, 10]):
        assert (found.low, found.high) == pytest.approx(proportion_interval(hits, goals))


def test_goals_that_agree_have_the_closed_bound():
    """All goals at 1/2: as many as 1 - .025^(1/20) of all goals may be at 1 unseen."""
    (found,) = success_at_k([(5, 10)] * 20, [1])
    assert found.high == pytest.approx(0.5 + 0.5 * (1 - 0.025 ** (1 / 20)))
    assert found.low == pytest.approx(1 - found.high)


def test_drawn_ends_by_numerical_integration():
    """Three goals at 0, two at 1/2: the high end is a quantile of D/2 + E, (D, E) ~ Dirichlet(3; 2, 1).

    P(mean <= t) by a sum over E ~ Beta(1, 5), given which D ~ (1 - E) Beta(2, 3).
    """
    (found,) = success_at_k([(0, 2), (0, 2), (0, 2), (1, 2), (1, 2)], [1])
    e = (np.arange(20_000) + 0.5) / 20_000
    e = 1 - (1 - e) ** (1 / 5)
    share = betainc(2, 3, np.clip((found.high - e) * 2 / (1 - e), 0, 1)).mean()
    assert share == pytest.approx(0.975, abs=0.003)


@settings(max_examples=30, deadline=None)
@given(counts=COUNTS)
def test_no_completion_of_the_gaps_leaves_the_interval(counts):
    found = success_at_k(counts, [1, 2, 5])
    for fill in (lambda u: 0, lambda u: u, lambda u: u // 2):
        whole = success_at_k([(c + fill(u), n) for c, n, u in counts], [1, 2, 5])
        for a, b in zip(found, whole, strict=True):
            assert a.low - 0.01 <= b.low <= b.high <= a.high + 0.01  # draws differ, so only nearly
    for x in found:
        assert x.low <= x.high
        assert x.value is not None or x.reason


def test_too_few_attempts_are_bounded_not_guessed():
    found = success_at_k([(1, 2)] * 10 + [(0, 2)] * 10, [3])[0]
    assert found.value is None
    assert "forecast" in found.reason
    assert found.low == pytest.approx(proportion_interval(10, 20)[0])  # any of 3 is at least any of 2
    assert found.high == 1.0
    some = success_at_k([(1, 4)] * 10 + [(0, 2)] * 10, [3])[0]
    assert (some.value, some.missing) == (None, 10) and "could move 0.750" in some.reason
    few = success_at_k([(1, 4)] * 10 + [(0, 2)], [3])[0]
    assert (few.value, few.missing) == (0.75, 1)
    assert success_at_k([], [1])[0].value is None
    assert success_at_k([(0, 3, 3)], [1])[0].reason


def test_clusters():
    rng = np.random.default_rng(5)
    counts = drawn(rng, 0.5, 4, 40)
    alone = success_at_k(counts, [5])[0]
    assert success_at_k(counts, [5], clusters=[str(i) for i in range(40)])[0] == alone
    twins = success_at_k(
        [c for c in counts for _ in range(5)], [5], clusters=[str(i) for i in range(40) for _ in range(5)]
    )[0]
    assert (twins.low, twins.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    none = success_at_k([(0, 10)] * 200, [10], clusters=[str(i // 5) for i in range(200)])[0]
    assert none.high == pytest.approx(proportion_interval(0, 40)[1])


def test_the_surveys_example():
    """Mean 5%, Beta(.2, 3.8): ASR@25 is 35%, and 1 - .95^25 says 72%."""
    assert true_rate(0.2, 3.8, 25) == pytest.approx(0.345, abs=1e-3)
    rng = np.random.default_rng(0)
    fit = beta_binomial(drawn(rng, 0.2, 3.8, 3000, 20))
    (found,) = fit.extrapolate([25])
    assert found.asr.value == pytest.approx(0.345, abs=0.02)
    assert found.asr.low < 0.345 < found.asr.high < 0.4
    assert found.iid == pytest.approx(0.72, abs=0.03)


@pytest.mark.parametrize("law", list(LAWS.values())[:2])
def test_most_likely_law_against_scipy(law):
    rng = np.random.default_rng(7)
    counts = drawn(rng, *law, 400, 12)
    hits = np.array([c for c, _ in counts])

    def cost(x):
        return -betabinom.logpmf(hits, 12, *np.exp(x)).sum()

    best = minimize(cost, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    fit = beta_binomial(counts)
    assert (fit.alpha, fit.beta) == pytest.approx(tuple(np.exp(best.x)), rel=5e-3)
    assert cost(np.log([fit.alpha, fit.beta])) <= best.fun + 1e-4


def test_forecast_and_measurement_agree_within_n():
    counts = drawn(np.random.default_rng(8), 0.4, 4, 300, 16)
    far = beta_binomial(counts).extrapolate([1, 4, 16])
    near = success_at_k(counts, [1, 4, 16])
    for a, b in zip(far, near, strict=True):
        assert a.asr.value == pytest.approx(b.value, abs=0.02)
        assert a.asr.low < b.value < a.asr.high


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ([(0, 10)] * 50, "no attempt succeeded"), ([(10, 10)] * 50, "every attempt"),
        ([(0, 1)] * 40 + [(1, 1)] * 5, "one attempt"), ([], "no goals"), ([(0, 4, 4)], "none of the 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_unknown(counts, word):
    fit = beta_binomial(counts)
    assert fit.alpha is None
    assert word in fit.reason
    (found,) = fit.extrapolate([1000])
    assert found.asr.value is None
    assert found.asr.high > 0.9 or found.asr.low > 0.9


def test_no_hit_is_no_proof_at_larger_k():
    """0 of 10 on 100 goals bounds ASR@10 as it should, and ASR@1000 hardly at all."""
    near, far = beta_binomial([(0, 10)] * 100).extrapolate([10, 1000])
    assert 0.0362 <= near.asr.high < 0.05
    assert far.asr.high > 0.9
    assert near.asr.low < 1e-6


def test_undetermined_attempts_widen_the_forecast():
    counts = drawn(np.random.default_rng(9), 0.5, 5, 100)
    (plain,) = beta_binomial(counts).extrapolate([50])
    (wide,) = beta_binomial([(c, n, min(1, n - c)) for c, n in counts]).extrapolate([50])
    assert wide.asr.high > plain.asr.high
    assert wide.asr.missing > 0
    one = beta_binomial(counts, clusters=["all"] * 100).extrapolate([50])[0].asr
    assert one.high > 0.999 and one.low < 1e-3


@pytest.mark.parametrize(
    "call",
    [
        lambda: success_at_k([(3, 2)], [1]),
        lambda: success_at_k([(1, 2, 2)], [1]),
        lambda: success_at_k([(1,)], [1]),
        lambda: success_at_k([(0.5, 2)], [1]),
        lambda: success_at_k([(1, 2)], [0]),
        lambda: success_at_k([(1, 2)], [1], clusters=[]),
        lambda: beta_binomial([(1, 2)] * 3).extrapolate([0]),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()


def test_quick_coverage(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 1000)
    monkeypatch.setattr(at_k, "_GRID", 41)
    assert report("at k, quick", measured(40, (30,)))[1] >= 0.85
    assert report("beta-binomial, quick", forecast(25, (50,)))[0] >= 0.92


@pytest.mark.long
def test_measured_in_the_long_run(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 500)
    average, worst = report("at k", measured(LONG, (20, 100)))
    assert worst >= 0.95 - 3 * (0.95 * 0.05 / LONG) ** 0.5
    assert average <= 0.99


@pytest.mark.long
def test_forecast_in_the_long_run(monkeypatch):
    monkeypatch.setattr(at_k, "_GRID", 41)
    average, worst = report("beta-binomial", forecast(LONG, (60,)))
    assert average >= 0.94
    assert worst >= 0.92


@pytest.mark.long
def test_clusters_in_the_long_run(monkeypatch):
    monkeypatch.setattr(at_k, "_GRID", 41)
    monkeypatch.setattr(_confidence, "DRAWS", 500)
    average, worst = report("at k, clusters", clustered(LONG, 30))
    assert average >= 0.94
    assert worst >= 0.92


def test_a_goal_that_no_missing_attempt_can_change_counts():
    """Ten goals were reached in spite of a gap: they are no reason to print 0."""
    (found,) = success_at_k([(0, 2, 0)] + [(1, 2, 1)] * 10, [2])
    assert found.value == pytest.approx(10 / 11) and found.low < found.value < found.high
    (few,) = success_at_k([(0, 8, 0)] * 3 + [(7, 8, 1)] * 20, [8])
    assert few.value == pytest.approx(20 / 23)
    (open_,) = success_at_k([(0, 2, 0)] * 10 + [(0, 2, 1)] * 10, [2])
    assert open_.value is None and "10 of 20 goals are settled" in open_.reason and open_.high > 0.4
    (hardly,) = success_at_k([(0, 2, 0)] * 50 + [(1, 2, 0)] * 50 + [(0, 2, 1)], [2])
    assert hardly.value == pytest.approx(0.5) and "100 of 101" in hardly.reason
