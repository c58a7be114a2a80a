"""Two models on the same attempts: exact p-values by enumeration, parity with McNemar, a table with Holm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import norm

from calibrant.core import InputError
from calibrant.stats import difference, holm, mcnemar
from calibrant.stats.compare import compare_by, sign_flip

ANSWERS = [True, False, None]


def enumerated(before, after, clusters):
    """Both signs of every cluster, one by one."""
    names = sorted(set(clusters))
    totals = [
        sum(int(a) - int(b) for b, a, c in zip(before, after, clusters, strict=True) if c == name)
        for name in names
    ]
    sums = [
        sum(s * t for s, t in zip(signs, totals, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(names))
    ]
    return min(1.0, sum(abs(s) >= abs(sum(totals)) for s in sums) / len(sums))


@given(
    rows=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.sampled_from("abcdefg")), min_size=1, max_size=40
    )
)
def test_exact_by_enumeration(rows):
    before, after, clusters = (list(x) for x in zip(*rows, strict=True))
    assert sign_flip(before, after, clusters=clusters) == pytest.approx(enumerated(before, after, clusters))


@given(rows=st.lists(st.tuples(st.sampled_from(ANSWERS), st.sampled_from(ANSWERS)), min_size=1, max_size=30))
def test_pairs_alone_are_mcnemar(rows):
    before, after = (list(x) for x in zip(*rows, strict=True))
    assert sign_flip(before, after) == pytest.approx(mcnemar(before, after))
    assert sign_flip(before, after, clusters=[str(i) for i in range(len(rows))]) == sign_flip(before, after)
    assert sign_flip(after, before) == pytest.approx(sign_flip(before, after))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(ANSWERS), st.sampled_from(ANSWERS), st.sampled_from("abc")),
        min_size=1,
        max_size=6,
    )
)
def test_worst_p_value_is_reached(rows):
    before, after, clusters = (list(x) for x in zip(*rows, strict=True))
    choices = [(True, False) if x is None else (x,) for x in before + after]
    n = len(rows)
    found = max(sign_flip(c[:n], c[n:], clusters=clusters) for c in itertools.product(*choices))
    assert sign_flip(before, after, clusters=clusters) == pytest.approx(found)


def test_by_hand():
    """Six goals of two attempts, all better by one: 2 / 2^6. As twelve pairs McNemar says the same of six."""
    before, after = [True, False] * 6, [False, False] * 6
    names = [str(i // 2) for i in range(12)]
    assert sign_flip(before, after, clusters=names) == pytest.approx(2 / 64)
    assert sign_flip([True] * 12, [False] * 12, clusters=names) == pytest.approx(2 / 64)
    assert mcnemar([True] * 12, [False] * 12) == pytest.approx(2 / 4096)  # takes twins for evidence
    assert sign_flip([], []) == 1.0
    assert sign_flip([True] * 9, [False] * 9, clusters=["all"] * 9) == 1.0


def test_large_counts():
    """2,000 goals of unequal size: the law still adds up."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(2000), rng.integers(1, 8, 2000))
    before, after = rng.random(codes.size) < 0.3, rng.random(codes.size) < 0.3
    names = [str(c) for c in codes]
    p = sign_flip(before.tolist(), after.tolist(), clusters=names)
    totals = np.bincount(codes, weights=after.astype(float) - before)
    z = abs(totals.sum()) / np.sqrt((totals**2).sum())
    assert p == pytest.approx(2 * norm.sf(z), abs=0.02)


def test_false_alarms_stay_rare_in_clusters_where_mcnemar_fails():
    """Nothing differs on average, but each goal is moved as a whole, either way."""
    rng, alarms = np.random.default_rng(1), np.zeros(2)
    codes = np.repeat(np.arange(30), 10)
    names = [str(c) for c in codes]
    for _ in range(400):
        move = np.where(rng.random(30) < 0.5, 1, -1)[codes] * 0.25
        z = rng.random((2, 300))
        before, after = (z[0] < 0.4 - move).tolist(), (z[1] < 0.4 + move).tolist()
        alarms += [sign_flip(before, after, clusters=names) <= 0.05, mcnemar(before, after) <= 0.05]
    assert alarms[0] / 400 < 0.08
    assert alarms[1] / 400 > 0.2


def test_table():
    rng = np.random.default_rng(2)
    groups = ["bias", "privacy", "deception"] * 100
    names = [f"goal {i // 6}" for i in range(300)]
    before = (rng.random(300) < 0.5).tolist()
    after = [b and not (g == "bias" and rng.random() < 0.9) for b, g in zip(before, groups, strict=True)]
    before[1] = None
    table = compare_by(groups, before, after, clusters=names)
    assert [row.group for row in table] == ["bias", "deception", "privacy"]
    bias, deception, privacy = table
    assert bias.adjusted < 0.01 and bias.difference.high < 0
    assert (deception.p, deception.adjusted, deception.difference.value) == (1.0, 1.0, 0.0)
    assert privacy.difference.missing == 1
    assert [row.adjusted for row in table] == holm([row.p for row in table])
    here = [i for i, g in enumerate(groups) if g == "bias"]
    alone = difference(
        [before[i] for i in here], [after[i] for i in here],
        clusters=[names[i] for i in here], better="lower", unit="attempt",
    )  # fmt: skip
    assert bias.difference == alone
    assert bias.after - bias.before == pytest.approx(alone.value)
    assert compare_by([], [], []) == []
    lost = compare_by(["a"], [None], [True])[0]
    assert (lost.before, lost.p) == (None, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: compare_by(["a"], [True], [True, False]),
        lambda: compare_by(["a"], [True], [True], clusters=[]),
        lambda: sign_flip([True], []),
        lambda: sign_flip([2], [True]),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.long
def test_false_alarms_in_the_long_run():
    """Clusters alike by a shared threshold, independent of the model: at most 5% at p <= .05."""
    rng, alarms = np.random.default_rng(3), 0
    codes = np.repeat(np.arange(20), rng.integers(1, 12, 20))
    names = [str(c) for c in codes]
    for _ in range(10_000):
        shared = rng.standard_normal((2, 20))[:, codes]
        z = 0.6 * shared + 0.8 * rng.standard_normal((2, codes.size))
        before, after = (z < ndtri(0.3)).tolist()
        alarms += sign_flip(before, after, clusters=names) <= 0.05
    print(f"sign flip, false alarms at 5%: {alarms / 10_000:.4f}")
    assert alarms / 10_000 <= 0.05 + 3 * (0.05 * 0.95 / 10_000) ** 0.5
