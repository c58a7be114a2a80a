"""Best-of-n from N samples: every subset counted, ties under every tie-break, exact weights, coverage."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from calibrant.core import InputError, NumericalError
from calibrant.stats import mean
from calibrant.stats.best_of_n import best_of_n, best_of_n_kl, expected, powers_of_two, weights


def by_subsets(proxy, gold, n):
    """Mean gold of the proxy's favourite over all subsets of size n; ties: the mean of the favourites."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [gold[i] for i in subset if proxy[i] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


def test_by_hand():
    """N = 3, proxy order a < b < c. Best of 2: {a,b} b, {a,c} c, {b,c} c: gold (2 + 7 + 7) / 3 = 16/3."""
    proxy, gold = [[0.1, 0.2, 0.3]], [[5.0, 2.0, 7.0]]
    assert expected(proxy, gold, [1, 2, 3])[0] == pytest.approx([14 / 3, 16 / 3, 7.0], rel=1e-15)


@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_count_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    size, ns = 9, list(range(1, 10))
    proxy = rng.integers(0, 4, (5, size)).astype(float) if ties else rng.standard_normal((5, size))
    gold = rng.standard_normal((5, size))
    slow = [[by_subsets(p, g, n) for n in ns] for p, g in zip(proxy, gold, strict=True)]
    assert expected(proxy, gold, ns) == pytest.approx(np.array(slow), abs=1e-13)


def test_all_tied_is_the_mean_whatever_n():
    gold = [[1.0, 5.0, 0.0, 2.0]]
    assert expected([[3.0] * 4], gold, [1, 2, 3, 4])[0] == pytest.approx([2.0] * 4, rel=1e-15)


def test_order_of_samples_never_matters():
    rng = np.random.default_rng(1)
    proxy, gold = rng.integers(0, 3, (1, 12)).astype(float), rng.standard_normal((1, 12))
    order = rng.permutation(12)
    turned = expected(proxy[:, order], gold[:, order], [1, 3, 8, 12])
    assert turned == pytest.approx(expected(proxy, gold, [1, 3, 8, 12]), abs=1e-14)


@pytest.mark.parametrize("size", [1, 2, 7, 12_600])
def test_weights_are_exact(size):
    """Against ratios of whole numbers, at the ends and between; they sum to 1 (the hockey-stick identity)."""
    for n in {1, min(2, size), (size + 1) // 2, size}:
        found = weights(size, n)
        assert found.shape == (size,)
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert (found[: n - 1] == 0).all()
        for i in {n, size, (n + size) // 2, min(n + 1, size)}:
            right = Fraction(math.comb(i - 1, n - 1), math.comb(size, n))
            assert found[i - 1] == pytest.approx(float(right), rel=1e-12, abs=1e-300)


def test_n_of_one_is_the_mean_and_n_of_all_the_best():
    rng = np.random.default_rng(2)
    proxy, gold = rng.standard_normal((3, 100)), rng.standard_normal((3, 100))
    first, last = expected(proxy, gold, [1, 100]).T
    assert first == pytest.approx(gold.mean(1), rel=1e-13)
    assert (last == np.take_along_axis(gold, proxy.argmax(1)[:, None], 1)[:, 0]).all()


def test_best_of_n_of_a_normal():
    """The mean of the largest of 2 normals is 1 / sqrt(pi), of 3 it is 1.5 / sqrt(pi)."""
    proxy = np.random.default_rng(3).standard_normal((400, 64))
    two, three = expected(proxy, proxy, [2, 3]).mean(0)
    assert two == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)
    assert three == pytest.approx(1.5 / math.sqrt(math.pi), abs=0.02)


def test_estimates_are_means_over_prompts():
    rng = np.random.default_rng(4)
    proxy, gold = rng.standard_normal((2, 30, 16))
    found = best_of_n(proxy, gold, [1, 16])
    values = expected(proxy, gold, [1, 16])
    assert found[1] == mean(values[:, 1].tolist(), better="higher", unit="prompt")
    assert (found[0].n, found[0].clusters) == (30, None)
    grouped = best_of_n(proxy, gold, [4], clusters=[f"topic {i // 3}" for i in range(30)])
    assert grouped[0].clusters == 10


def test_intervals_hold_the_truth():
    """Gold = proxy + noise, so best of 4 in gold is the mean of the largest of 4 normals, 1.0294."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        proxy = rng.standard_normal((25, 16))
        gold = proxy + rng.standard_normal((25, 16)) + 0.5 * rng.standard_normal((25, 1))
        (found,) = best_of_n(proxy, gold, [4])
        held += found.low <= 1.02938 <= found.high
    assert held >= 180


def test_kl():
    """n = 2: ln 2 - 1/2. n = 1 changes nothing."""
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == math.log(2) - 0.5
    assert powers_of_two(64) == [1, 2, 4, 8, 16, 32, 64]
    assert powers_of_two(63) == [1, 2, 4, 8, 16, 32]


def test_kl_against_the_law_itself():
    """Best of n of m equally likely replies, no ties: p_i = (i^n - (i-1)^n) / m^n against 1/m."""
    m, n = 20_000, 8
    i = np.arange(1, m + 1) / m
    p = i**n - (i - 1 / m) ** n
    assert (p * np.log(p * m)).sum() == pytest.approx(best_of_n_kl(n), abs=1e-4)


@pytest.mark.parametrize(
    ("proxy", "gold", "n", "kind", "words"),
    [
        ([[1.0, 2.0]], [[1.0]], 1, InputError, "same samples"),
        ([1.0, 2.0], [1.0, 2.0], 1, InputError, r"not \(prompts, samples\)"),
        ([[]], [[]], 1, InputError, "not"),
        ([[1.0, 2.0]], [[1.0, 2.0]], 3, InputError, "best of 3 cannot be read from 2"),
        ([[1.0, 2.0]], [[1.0, 2.0]], 0, InputError, "best of 0"),
        ([[1.0, math.nan]], [[1.0, 2.0]], 1, NumericalError, r"proxy\[0, 1\] is nan"),
        ([[1.0, 2.0]], [[1.0, math.inf]], 1, NumericalError, r"scores\[0, 1\] is inf"),
    ],
)
def test_bad_input(proxy, gold, n, kind, words):
    with pytest.raises(kind, match=words) as caught:
        expected(proxy, gold, [n])
    assert caught.value.hint
