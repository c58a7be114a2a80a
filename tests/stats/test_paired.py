"""Paired differences and McNemar's test: published numbers, two routes, worst cases."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar

from calibrant.core import InputError, NumericalError
from calibrant.stats import difference, difference_so_far, mcnemar, mean
from calibrant.stats.paired import tango

LABEL = {"better": "higher", "unit": "item"}
ANSWERS = st.lists(
    st.tuples(*[st.sampled_from([True, False, None])] * 2, st.sampled_from("abcde")), min_size=1, max_size=25
)


def pairs_of(gains, losses, both, neither):
    before = [False] * gains + [True] * losses + [True] * both + [False] * neither
    after = [True] * gains + [False] * losses + [True] * both + [False] * neither
    return before, after


def test_published_interval():
    """Airway hyper-responsiveness, 1, 1, 7, 12 (Fagerland, Lydersen & Laake 2014): -0.517 to -0.026."""
    found = difference(*pairs_of(1, 7, 1, 12), **LABEL)
    assert found.value == pytest.approx(-6 / 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)
    assert (found.method, found.null_value, found.n) == ("tango", 0.0, 21)


@pytest.mark.parametrize(("gains", "losses", "n"), [(6, 16, 161), (40, 20, 160), (3, 1, 10), (0, 4, 30)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_score_interval_by_numerical_likelihood(gains, losses, n, level):
    """Maximise the trinomial likelihood at each difference by search, then solve score = +-z."""
    z = norm.ppf((1 + level) / 2)

    def score(delta):
        def cost(q):
            cells = (q + delta, q, 1 - 2 * q - delta)
            counts = (gains, losses, n - gains - losses)
            return -sum(c * np.log(max(p, 1e-300)) for c, p in zip(counts, cells, strict=True) if c)

        lower, upper = max(0.0, -delta), (1 - delta) / 2
        q = minimize_scalar(cost, bounds=(lower, upper), method="bounded", options={"xatol": 1e-12}).x
        return (gains - losses - n * delta) / np.sqrt(n * (2 * q + delta * (1 - delta)))

    share = (gains - losses) / n
    low = brentq(lambda d: score(d) - z, -1 + 1e-6, share)
    high = brentq(lambda d: score(d) + z, share, 1 - 1e-6)
    assert tango(gains, losses, n, level) == pytest.approx((low, high), abs=1e-5)


def test_no_discordance_keeps_a_width():
    """b = c = 0: the score equation reduces to |d| = z^2 / (n + z^2), 8.0% for n = 44."""
    z2 = norm.ppf(0.975) ** 2
    found = difference(*pairs_of(0, 0, 43, 1), **LABEL)
    assert (found.low, found.high) == pytest.approx((-z2 / (44 + z2), z2 / (44 + z2)))
    assert found.value == 0.0


def test_ends_of_the_range():
    assert tango(5, 0, 5, 0.95)[1] == 1.0
    assert tango(0, 5, 5, 0.95)[0] == -1.0
    assert tango(5, 0, 5, 0.95)[0] > -0.2


@given(
    gains=st.integers(0, 12), losses=st.integers(0, 12), rest=st.integers(1, 20), level=st.floats(0.5, 0.99)
)
def test_swapping_the_sides_flips_the_interval(gains, losses, rest, level):
    low, high = tango(gains, losses, gains + losses + rest, level)
    flipped_low, flipped_high = tango(losses, gains, gains + losses + rest, level)
    assert (low, high) == pytest.approx((-flipped_high, -flipped_low), abs=1e-9)
    assert -1 <= low < (gains - losses) / (gains + losses + rest) < high <= 1


def test_no_completion_of_the_gaps_leaves_the_interval():
    before = [True, None, False, None, False, True, True, False]
    after = [None, True, True, None, False, True, False, True]
    found = difference(before, after, **LABEL)
    assert found.value == pytest.approx(1 / 5)
    assert found.missing == 3
    for fill in itertools.product([False, True], repeat=4):
        fills = iter(fill)
        b = [next(fills) if x is None else x for x in before]
        a = [next(fills) if x is None else x for x in after]
        whole = difference(b, a, **LABEL)
        assert found.low <= whole.low + 1e-12
        assert found.high >= whole.high - 1e-12
        assert mcnemar(before, after) >= mcnemar(b, a)


@settings(max_examples=25, deadline=None)
@given(rows=ANSWERS)
def test_worst_p_value_is_reached(rows):
    """The reported p is the largest over all completions, by trying each of them."""
    before, after = [r[0] for r in rows][:5], [r[1] for r in rows][:5]
    n = len(before)

    def plain(b, a):
        gains = sum(y and not x for x, y in zip(b, a, strict=True))
        losses = sum(x and not y for x, y in zip(b, a, strict=True))
        return binomtest(gains, gains + losses).pvalue if gains + losses else 1.0

    choices = [(True, False) if x is None else (x,) for x in before + after]
    found = {plain(c[:n], c[n:]) for c in itertools.product(*choices)}
    assert mcnemar(before, after) == pytest.approx(max(found))


@pytest.mark.parametrize(("gains", "losses"), [(0, 0), (1, 0), (5, 2), (3, 3), (0, 12), (30, 10)])
def test_mcnemar_parity(gains, losses):
    p = mcnemar(*pairs_of(gains, losses, 4, 9))
    assert p == pytest.approx(float(peer_mcnemar([[4, losses], [gains, 9]], exact=True).pvalue))


def test_mcnemar_by_hand():
    """Six changes, all one way: p = 2 / 2^6."""
    assert mcnemar(*pairs_of(6, 0, 3, 3)) == pytest.approx(2 / 64)


@settings(max_examples=50)
@given(rows=ANSWERS, shuffle=st.randoms(use_true_random=False))
def test_order_and_singletons_never_matter(rows, shuffle):
    before, after, names = (list(column) for column in zip(*rows, strict=True))
    plain = difference(before, after, **LABEL)
    assert difference(before, after, clusters=[str(i) for i in range(len(rows))], **LABEL) == plain
    mixed = list(rows)
    shuffle.shuffle(mixed)
    b, a, n = (list(column) for column in zip(*mixed, strict=True))
    one = difference(before, after, clusters=names, **LABEL)
    other = difference(b, a, clusters=n, **LABEL)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-9)
    assert one.low <= plain.low + 1e-9 and one.high >= plain.high - 1e-9


def test_clusters_widen_and_are_named():
    before, after = pairs_of(30, 0, 35, 35)
    names = [str(i // 10) for i in range(100)]
    found = difference(before, after, clusters=names, **LABEL)
    plain = difference(before, after, **LABEL)
    assert found.low < plain.low and found.high > plain.high
    assert found.clusters == 10
    assert "effective n" in found.method
    same = difference(before, before, clusters=names, **LABEL)
    assert same.low < 0 < same.high
    assert "design effect was taken as 1" in same.reason
    alone = difference(before, after, clusters=["a"] * 100, **LABEL)
    assert (alone.low, alone.high) == (-1.0, 1.0) and "one cluster" in alone.reason


def test_where_all_agree_a_careful_difference_counts_clusters_and_a_gap_keeps_that():
    """Ten clusters of eight pairs that never change: as wide as ten pairs, also where one side is lost."""
    names = [f"c{at // 8}" for at in range(80)]
    ask = partial(difference, [True] * 80, clusters=names, better="none", unit="pair")
    ten = difference([True] * 10, [True] * 10, better="none", unit="pair")
    careful = ask([True] * 80, careful=True)
    assert (careful.low, careful.high) == pytest.approx((ten.low, ten.high))
    assert ask([True] * 80).high < 0.06 < careful.high
    lost = ask([None, *[True] * 79], careful=True)
    assert lost.low < careful.low and lost.high >= careful.high
    moved = [at % 8 > 0 for at in range(80)]
    assert ask(moved, careful=True).high == ask(moved).high


def test_scores_use_the_bootstrap_of_differences():
    rng = np.random.default_rng(4)
    before, after = rng.random(30), rng.random(30)
    found = difference(before.tolist(), after.tolist(), **LABEL)
    route = mean((after - before).tolist(), bounds=(-1.0, 1.0), **LABEL)
    assert (found.value, found.low, found.high) == (route.value, route.low, route.high)
    assert found.method == "bootstrap-t"
    grouped = difference(before.tolist(), after.tolist(), clusters=[str(i // 3) for i in range(30)], **LABEL)
    assert (grouped.method, grouped.clusters) == ("cluster-bootstrap-t", 10)


def test_a_missing_score_stands_at_its_worst_case():
    """before .2, after missing in (0, 1): the difference is -.2 for low and +.8 for high."""
    before, after = [0.2, 0.3, 0.5, 0.4, 0.6], [None, 0.4, 0.4, 0.7, 0.9]
    found = difference(before, after, **LABEL)
    assert found.value == pytest.approx((0.1 - 0.1 + 0.3 + 0.3) / 4)
    assert found.low == pytest.approx(difference(before, [0.0, *after[1:]], **LABEL).low)
    assert found.high == pytest.approx(difference(before, [1.0, *after[1:]], **LABEL).high)
    dropped = difference(before, after, bounds=None, **LABEL)
    whole = difference(before[1:], after[1:], bounds=None, **LABEL)
    assert (dropped.low, dropped.high) == (whole.low, whole.high)
    assert "1 of 5 were missing and dropped" in dropped.reason


@pytest.mark.parametrize(("before", "after"), [([], []), ([None, True], [True, None]), ([None], [None])])
def test_no_complete_pair_is_said_aloud(before, after):
    found = difference(before, after, **LABEL)
    assert found.value is None
    assert found.reason
    assert -1.0 <= found.low < found.high <= 1.0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: difference([True], [True, False], **LABEL), InputError),
        (lambda: difference([0.1], [float("nan")], **LABEL), NumericalError),
        (lambda: difference([0.1], [2.0], **LABEL), InputError),
        (lambda: difference([True], [False], clusters=["a", "b"], **LABEL), InputError),
        (lambda: difference([True], [False], level=-0.1, **LABEL), InputError),
        (lambda: mcnemar([True], []), InputError),
        (lambda: mcnemar([True], [0.5]), InputError),
        (lambda: mcnemar([float("nan")], [True]), NumericalError),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.hint


def test_no_difference_where_open_pairs_could_move_it_further_than_chance():
    before, after = [True] * 12 + [False] * 28, [True] * 12 + [None] * 28
    label = {"clusters": [""] * 40, **LABEL}
    found = difference_so_far(before, after, **label)
    assert (difference(before, after, **LABEL).value, found.value, found.missing) == (0.0, None, 28)
    assert found.reason.startswith(
        "28 of 40 pairs open: no difference is given, for they could move 0.000 by 0.700"
    )
    one = difference_so_far(before, [*after[:12], *[False] * 27, None], **label)
    assert (one.value, one.reason) == (0.0, "1 of 40 pairs open")
    assert difference_so_far(before, before, **label) == difference(before, before, **label)


def test_gaps_in_clusters_hold_the_interval_of_every_completion():
    """Nearly: six ways to fill the gaps are tried, and what they miss is small."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        first, second = ([bool(x) for x in rng.random(20) < 0.5] for _ in range(2))
        names = [str(x) for x in rng.integers(0, 5, 20)]
        gone = rng.choice(40, 4, replace=False)
        before, after = ([None if i + at in gone else x for i, x in enumerate(side)]
                         for at, side in ((0, first), (20, second)))  # fmt: skip
        found = difference(before, after, clusters=names, better="lower", unit="goal")
        for fill in itertools.product([False, True], repeat=4):
            rest = iter(fill)
            sides = [[next(rest) if x is None else x for x in side] for side in (before, after)]
            one = difference(*sides, clusters=names, better="lower", unit="goal")
            assert found.low <= one.low + 0.05
            assert found.high >= one.high - 0.05
