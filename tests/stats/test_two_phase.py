"""Two-phase sampling: closed forms, worst cases, and coverage where people see few or no hits."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
from scipy.special import ndtri

from calibrant.core import InputError
from calibrant.stats import _confidence, proportion_interval, rate
from calibrant.stats.two_phase import allocate, two_phase

LONG = 10_000
module = importlib.import_module("calibrant.stats.two_phase")  # the package's own name is the function
TAIL = 0.025


def answers(flagged, confirmed, rest, seen, found):
    """All flagged labelled, ``seen`` of the rest with ``found`` yes."""
    judged = [True] * flagged + [False] * rest
    human = [True] * confirmed + [False] * (flagged - confirmed)
    human += [True] * found + [False] * (seen - found) + [None] * (rest - seen)
    return judged, human


def simulated(rng, truth, judged, share):
    """Everything flagged is labelled, and each other answer of the judge with chance ``share``."""
    picked = (judged == 1) | (rng.random(truth.size) < share)
    human = [bool(t) if p else None for t, p in zip(truth, picked, strict=True)]
    return [None if j < 0 else bool(j) for j in judged], human, picked.tolist()


def coverage(repetitions, grid):
    """A judge that misses many or few hits and cannot decide 5% of attempts; by counts."""
    rng, cells = np.random.default_rng(0), {}
    for n, hit, se, share in grid:
        # Attempts by (stratum, hit, seen by a person); everything flagged is seen.
        judge = 0.95 * np.array([[0.05, se], [0.95, 1 - se]]) * [1 - hit, hit]
        parts = np.concatenate([judge, 0.05 * np.array([[1 - hit, hit]])])
        seen = np.array([1.0, share, share])[:, None, None] * [[[1.0], [-1.0]]] + [[[0.0], [1.0]]]
        held = 0
        for counts in rng.multinomial(n, (parts[:, None] * seen).ravel(), repetitions).reshape(-1, 3, 2, 2):
            strata = [module._Stratum(c.sum(), c[0].sum(), c[0, 1]) for c in counts.astype(float)]
            low, high = module._ends(strata, 0.95)
            held += low <= hit <= high
        cells[n, hit, se, share] = held / repetitions
    return cells


def clustered(repetitions):
    """40 goals of 10 attempts; a normal threshold makes attempts on a goal alike."""
    rng, cells = np.random.default_rng(1), {}
    codes = np.repeat(np.arange(40), 10)
    names = [str(c) for c in codes]
    for hit, icc in itertools.product((0.05, 0.3), (0.0, 0.3)):
        held = 0
        for _ in range(repetitions):
            shared = rng.standard_normal(40)[codes]
            z = np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.standard_normal(400)
            truth = z < ndtri(hit)
            judged = np.where(truth, rng.random(400) < 0.8, rng.random(400) < 0.05).astype(int)
            found = two_phase(*simulated(rng, truth, judged, 0.3), clusters=names)
            held += found.low <= hit <= found.high
        cells[hit, icc] = held / repetitions
    return cells


def report(name, cells):
    worst = min(cells, key=cells.get)
    average = float(np.mean(list(cells.values())))
    print(f"{name}: mean {average:.4f}, worst {cells[worst]:.4f} at {worst}, {len(cells)} cells")
    return average, cells[worst]


def test_by_hand():
    """50 flagged, 20 confirmed; of 950 others 100 seen and 2 hits: .05 * .4 + .95 * .02 = 3.9%."""
    found = two_phase(*answers(50, 20, 950, 100, 2))
    assert found.value == pytest.approx(0.039)
    assert found.low < 0.039 < found.high
    assert (found.n, found.missing, found.better, found.method) == (1000, 0, "lower", "two-phase")


def test_everything_labelled_is_clopper_pearson():
    judged, human = answers(50, 20, 150, 150, 3)
    found, plain = two_phase(judged, human), rate(human, better="lower", unit="attempt")
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_no_hit_among_the_sampled_is_not_a_zero():
    """None of 100 seen leaves 3.6% of the 950: the bound is near .9 * (1 - .025^(1/100)) of all, not 0."""
    found = two_phase(*answers(50, 0, 950, 100, 0))
    assert (found.value, found.low) == (0.0, 0.0)
    alone = 0.85 * proportion_interval(0, 100)[1]
    assert alone < found.high < 1.3 * alone
    more = two_phase(*answers(50, 0, 950, 500, 0))
    assert more.high < found.high


def test_nobody_looked_so_anything_goes():
    found = two_phase(*answers(50, 20, 950, 0, 0))
    assert found.value is None
    assert "950 unflagged" in found.reason
    assert found.high > 0.95 and found.low < 0.02
    undetermined = two_phase([True] * 10 + [None] * 90, [True] * 10 + [None] * 90)
    assert undetermined.value is None
    assert undetermined.low == pytest.approx(proportion_interval(10, 100)[0], abs=0.003)
    assert undetermined.high == 1.0


def test_a_person_without_an_answer_is_a_worst_case():
    judged, human = answers(50, 20, 150, 150, 3)
    human[0] = human[60] = None
    found = two_phase(judged, human, sampled=[True] * 200)
    assert found.missing == 2
    assert found.low == pytest.approx(proportion_interval(22, 200)[0])
    assert found.high == pytest.approx(proportion_interval(24, 200)[1])
    # Without ``sampled`` a flagged attempt still counts as picked, an unflagged one as never looked at.
    assert two_phase(judged, human).missing == 1


def test_clusters():
    judged, human = answers(50, 20, 350, 100, 4)
    alone = two_phase(judged, human)
    assert two_phase(judged, human, clusters=[str(i) for i in range(400)]) == alone
    grouped = two_phase(judged, human, clusters=[str(i // 10) for i in range(400)])
    assert grouped.clusters == 40
    assert grouped.low < alone.low and grouped.high > alone.high
    one = two_phase(judged, human, clusters=["all"] * 400)
    assert (one.low, one.high) == (0.0, 1.0)
    assert two_phase([], []).value is None


def test_allocation_is_the_least_that_does():
    m = allocate(50, 20, 950, miss_rate=0.01, half_width=0.02)
    for count, enough in ((m, True), (m - 5, False)):
        low, high = module._ends(
            [module._Stratum(50, 50, 20), module._Stratum(950, count, 0.01 * count)], 0.95
        )
        assert ((high - low) / 2 <= 0.02) == enough
    assert allocate(50, 20, 950, miss_rate=0.0, half_width=0.02) < m
    assert allocate(50, 20, 950, miss_rate=0.0, half_width=0.6) == 0
    with pytest.raises(InputError, match="half-width would still be"):
        allocate(50, 20, 950, miss_rate=0.01, half_width=0.001)
    with pytest.raises(InputError):
        allocate(50, 60, 950, miss_rate=0.01, half_width=0.1)


def test_counts_and_attempts_are_one_estimate():
    """The coverage runs draw counts; the public door gives the same."""
    rng = np.random.default_rng(6)
    truth = rng.random(300) < 0.1
    judged = np.where(truth, rng.random(300) < 0.7, rng.random(300) < 0.05).astype(int)
    judged[:15] = -1
    said, human, picked = simulated(rng, truth, judged, 0.3)
    strata = []
    for key in (1, 0, -1):
        here = [i for i in range(300) if judged[i] == key]
        seen = [human[i] for i in here if picked[i]]
        strata.append(module._Stratum(len(here), len(seen), sum(seen)))
    found = two_phase(said, human, picked)
    assert (found.low, found.high) == pytest.approx(module._ends(strata, 0.95))


@pytest.mark.parametrize(
    "call",
    [
        lambda: two_phase([True], [True, False]),
        lambda: two_phase([True, False], [2, None]),
        lambda: two_phase([0.5], [True]),
        lambda: two_phase([True, False], [True, True], sampled=[True, False]),
        lambda: two_phase([True], [True], level=95),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()


def test_quick_coverage(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 2000)
    monkeypatch.setattr(module, "DRAWS", 2000)
    assert report("two-phase, quick", coverage(200, [(300, 0.02, 0.3, 0.2), (300, 0.3, 0.8, 0.2)]))[1] >= 0.93


@pytest.mark.long
def test_coverage_in_the_long_run(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 500)
    monkeypatch.setattr(module, "DRAWS", 500)
    grid = list(itertools.product((200, 1000), (0.0, 0.01, 0.05, 0.3), (0.3, 0.8), (0.1, 0.5)))
    assert report("two-phase", coverage(LONG, grid))[1] >= 0.95 - 3 * (0.95 * 0.05 / LONG) ** 0.5


@pytest.mark.long
def test_clusters_in_the_long_run(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 500)
    monkeypatch.setattr(module, "DRAWS", 500)
    average, worst = report("two-phase, clusters", clustered(LONG))
    assert average >= 0.94
    assert worst >= 0.93
