"""Rates corrected for the judge's errors: closed forms, two routes that agree, coverage where raw fails."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from calibrant.core import InputError, JudgeErrors
from calibrant.stats import _confidence, rate, rogan_gladen
from calibrant.stats._melded import below, sides_of
from calibrant.stats.rogan_gladen import Counts, Part, corrected_mixture, corrected_rate

TAIL = 0.025
LONG = 10_000


def judge(se, sp, m, scope=""):
    return JudgeErrors(found=round(se * m), positives=m, cleared=round(sp * m), negatives=m, scope=scope)


def inside(theta, counts, errors):
    """Whether the interval holds ``theta``, by one evaluation an end."""
    low, possible, _ = sides_of(counts, errors, "low")
    held = below(theta, counts, low, "low") >= TAIL * possible
    high, possible, _ = sides_of(counts, errors, "high")
    return held and below(theta, counts, high, "high") <= 1 - TAIL * possible


def simulated(rng, theta, se, sp, m, n):
    """The judge's yes on n cases, and its calibration on m positives and m negatives."""
    yes = int(rng.binomial(n, theta * se + (1 - theta) * (1 - sp)))
    errors = JudgeErrors(
        found=int(rng.binomial(m, se)), positives=m, cleared=int(rng.binomial(m, sp)), negatives=m
    )
    return yes, errors


def coverage(repetitions, thetas, judges, sizes):
    """Corrected coverage in every cell; a judge that calibration calls blind leaves (0, 1), which holds."""
    rng, cells = np.random.default_rng(0), {}
    for theta, (se, sp), (m, n) in itertools.product(thetas, judges, sizes):
        held = 0
        for _ in range(repetitions):
            yes, errors = simulated(rng, theta, se, sp, m, n)
            held += inside(theta, (yes, n), errors)
        cells[theta, se, sp, m, n] = held / repetitions
    return cells


def report(name, cells):
    worst = min(cells, key=cells.get)
    average = float(np.mean(list(cells.values())))
    print(f"{name}: mean {average:.4f}, worst {cells[worst]:.4f} at {worst}, {len(cells)} cells")
    return average, cells[worst]


def mixture_coverage(repetitions, shared):
    """Three families of weights 1, 1, 2; one judge calibrated once, or three times."""
    rng, cells = np.random.default_rng(1), {}
    for thetas in ((0.0, 0.0, 0.0), (0.01, 0.0, 0.05), (0.05, 0.1, 0.3), (0.9, 0.5, 0.2), (1.0, 1.0, 1.0)):
        truth = float(np.dot(thetas, (0.25, 0.25, 0.5)))
        held = 0
        for _ in range(repetitions):
            drawn = [simulated(rng, theta, 0.9, 0.95, 200, 150) for theta in thetas]
            parts = [
                Part(
                    w,
                    Counts(yes, 150),
                    (drawn[0][1] if shared else errors).model_copy(update={"scope": name}),
                )
                for w, (yes, errors), name in zip((1, 1, 2), drawn, "aaa" if shared else "abc", strict=True)
            ]
            found = corrected_mixture(parts)
            held += found.low <= truth <= found.high
        cells[thetas] = held / repetitions
    return cells


def shared_goals(repetitions):
    """Three families on the same 30 goals, 6 attempts each; goals that fall to one fall to the others."""
    rng, cells = np.random.default_rng(5), {}
    codes = np.repeat(np.arange(30), 6)
    names = [str(c) for c in codes]
    thetas = (0.05, 0.2, 0.4)
    for icc in (0.0, 0.5):
        held = 0
        for _ in range(repetitions):
            goal = rng.standard_normal(30)[codes]
            parts = []
            for theta in thetas:
                z = np.sqrt(icc) * goal + np.sqrt(1 - icc) * rng.standard_normal(180)
                yes = rng.random(180) < np.where(z < ndtri(theta), 0.9, 0.05)
                _, errors = simulated(rng, theta, 0.9, 0.95, 500, 1)
                parts.append(Part(1.0, yes.tolist(), errors, names))
            found = corrected_mixture(parts)
            held += found.low <= sum(thetas) / 3 <= found.high
        cells[icc] = held / repetitions
    return cells


def clustered(repetitions):
    """40 goals of 10 attempts; a normal threshold makes attempts on a goal alike; judge .9 / .95."""
    rng, cells = np.random.default_rng(2), {}
    codes = np.repeat(np.arange(40), 10)
    for theta, icc in itertools.product((0.02, 0.1, 0.4), (0.0, 0.3)):
        held = 0
        for _ in range(repetitions):
            z = np.sqrt(icc) * rng.standard_normal(40)[codes] + np.sqrt(1 - icc) * rng.standard_normal(400)
            yes = rng.random(400) < np.where(z < ndtri(theta), 0.9, 0.05)
            _, errors = simulated(rng, theta, 0.9, 0.95, 300, 1)
            held += inside(theta, _confidence.effective_counts(yes.astype(float), codes, 0.95), errors)
        cells[theta, icc] = held / repetitions
    return cells


def test_by_hand():
    """12 of 200, Se .90, Sp .95: (.06 - .05) / (.90 - .05) = 1.18%, and an interval down to 0."""
    found = corrected_rate(Counts(12, 200), judge(0.9, 0.95, 100))
    assert found.value == pytest.approx(0.01 / 0.85)
    assert found.low == 0.0
    assert 0.069 < found.high < 0.09  # a delta-method interval ends at 6.9%
    assert (found.n, found.missing, found.better) == (200, 0, "lower")
    assert found == corrected_rate([True] * 12 + [False] * 188, judge(0.9, 0.95, 100))


def test_a_perfect_judge_that_is_known_to_be_one_gives_clopper_pearson():
    """Of a million labelled cases it missed none: nothing is left to correct."""
    errors = judge(1.0, 1.0, 1_000_000)
    for yes in (1, 12, 100, 199):
        found, plain = (
            corrected_rate(Counts(yes, 200), errors),
            rate([True] * yes + [False] * (200 - yes), better="lower", unit="attempt"),
        )
        assert found.value == pytest.approx(plain.value)
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-4)


@pytest.mark.parametrize(
    ("yes", "n", "m"), [(0, 50, 100), (12, 200, 100), (5, 200, 100), (40, 60, 50), (99, 100, 50)]
)
def test_integral_and_draws_agree(yes, n, m):
    """A mixture of one part is drawn; a single rate is integrated."""
    errors = judge(0.9, 0.95, m)
    one, drawn = (
        corrected_rate(Counts(yes, n), errors),
        corrected_mixture([Part(3.0, Counts(yes, n), errors)]),
    )
    assert drawn.value == pytest.approx(one.value)
    assert (drawn.low, drawn.high) == pytest.approx((one.low, one.high), abs=0.006)


@settings(max_examples=20, deadline=None)
@given(
    outcomes=st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=7),
    found=st.integers(40, 50), cleared=st.integers(40, 50),
)  # fmt: skip
def test_no_completion_of_the_gaps_leaves_the_interval(outcomes, found, cleared):
    errors = JudgeErrors(found=found, positives=50, cleared=cleared, negatives=50)
    whole = corrected_rate(outcomes, errors)
    gaps = outcomes.count(None)
    assert whole.missing == gaps
    for fill in range(gaps + 1):
        done = corrected_rate(Counts(outcomes.count(True) + fill, len(outcomes)), errors)
        assert whole.low - 1e-8 <= done.low <= done.high <= whole.high + 1e-8
    assert whole.value is None or whole.low <= whole.value <= whole.high


def test_a_blind_judge_is_unknown():
    for errors in (judge(0.5, 0.5, 100), judge(0.6, 0.6, 10), judge(0.0, 1.0, 100), judge(0, 0, 0), None):
        found = corrected_rate(Counts(12, 200), errors)
        assert found.value is None
        assert (found.low, found.high) == (0.0, 1.0)
        assert found.reason
    for nothing in ([], [None] * 4):
        found = corrected_rate(nothing, judge(0.9, 0.9, 100))
        assert (found.value, found.low) == (None, 0.0)
        assert found.high == pytest.approx(1.0)


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_too_few_yes_for_the_judges_own_errors_never_passes_for_a_bound_of_zero(n):
    """No yes at all from a judge with 5% false positives: luck or a bad fit, not proof of safety.

    The plain melded end is 0 at n = 200. Ours is never below what a judge without false positives leaves.
    """
    found = corrected_rate(Counts(0, n), judge(0.9, 0.95, 100))
    assert found.value == 0.0
    assert "cut off" in found.reason
    assert found.high >= 0.9 * (1 - TAIL ** (1 / n))
    assert ("hardly fit" in found.reason) == (n > 50)
    mirror = corrected_rate(Counts(n, n), judge(0.95, 0.9, 100))
    assert mirror.low == pytest.approx(1 - found.high)


def test_clusters_widen():
    outcomes = [i % 10 == 0 for i in range(40) for _ in range(10)]
    names = [str(i) for i in range(40) for _ in range(10)]
    errors = judge(0.95, 0.98, 500)
    plain, grouped = corrected_rate(outcomes, errors), corrected_rate(outcomes, errors, clusters=names)
    assert grouped.clusters == 40
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)
    none = corrected_rate([False] * 400, judge(1.0, 1.0, 10_000_000), clusters=names)
    assert none.high == pytest.approx(1 - TAIL ** (1 / 40), abs=1e-3)  # forty goals, not four hundred
    one = corrected_rate(outcomes, errors, clusters=["all"] * 400)
    assert (one.low, one.high) == pytest.approx((0.0, 1.0))


def test_mixture_weighs_and_keeps_shared_calibrations_together():
    errors = judge(0.9, 0.95, 100)
    other = errors.model_copy(update={"scope": "another"})
    a, b = Counts(60, 200), Counts(20, 200)
    mixed = corrected_mixture([Part(3, a, errors), Part(1, b, errors)])
    expected = 0.75 * corrected_rate(a, errors).value + 0.25 * corrected_rate(b, errors).value
    assert mixed.value == pytest.approx(expected)
    apart = corrected_mixture([Part(3, a, errors), Part(1, b, other)])
    assert mixed.high - mixed.low > apart.high - apart.low  # one calibration's error does not average out
    assert (mixed.n, mixed.missing) == (400, 0)


def test_goals_in_common_do_not_average_out():
    """The same 40 goals fall in four families: four times the attempts, no more goals."""
    errors = judge(0.95, 0.98, 2000)
    outcomes = [i % 4 == 0 for i in range(40) for _ in range(5)]
    names = [str(i) for i in range(40) for _ in range(5)]
    one = corrected_rate(outcomes, errors, clusters=names)
    common = corrected_mixture([Part(1, outcomes, errors, names)] * 4)
    apart = corrected_mixture([Part(1, outcomes, errors, [f"{j} {n}" for n in names]) for j in range(4)])
    assert common.high - common.low == pytest.approx(one.high - one.low, rel=0.05)
    assert apart.high - apart.low < 0.6 * (common.high - common.low)
    assert (common.clusters, apart.clusters) == (40, 160)


def test_a_part_that_nobody_can_correct_opens_the_mixture():
    errors = judge(0.95, 0.99, 500)
    found = corrected_mixture([Part(9, Counts(10, 500), errors), Part(1, Counts(0, 500), None)])
    assert found.value is None
    assert "part 1" in found.reason
    assert found.high > 0.1 and found.low < 0.03
    known = corrected_mixture([Part(9, Counts(10, 500), errors), Part(0, Counts(0, 500), None)])
    assert known.value is not None and known.high < 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: corrected_rate([2, True], judge(0.9, 0.9, 10)),
        lambda: corrected_rate(Counts(5, 4), judge(0.9, 0.9, 10)),
        lambda: corrected_rate(Counts(1, 4), judge(0.9, 0.9, 10), clusters=["a"] * 4),
        lambda: corrected_rate([True], JudgeErrors(found=3, positives=2, cleared=1, negatives=1)),
        lambda: corrected_mixture([]),
        lambda: corrected_mixture([Part(-1, [True], None), Part(2, [True], None)]),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()


def test_inside_is_the_interval():
    rng = np.random.default_rng(3)
    for _ in range(30):
        yes, errors = simulated(rng, 0.05, 0.85, 0.9, 60, 100)
        found = corrected_rate(Counts(yes, 100), errors)
        for theta in (0.0, 0.01, 0.05, 0.2, 1.0):
            if found.value is not None and min(abs(theta - found.low), abs(theta - found.high)) > 1e-6:
                assert inside(theta, (yes, 100), errors) == (found.low <= theta <= found.high)


def test_quick_coverage_where_the_raw_interval_fails():
    """True rate 1%, Se .9, Sp .95: the judge says 5.9%. Raw covers almost never, corrected does."""
    assert report("corrected, quick", coverage(150, (0.01, 0.3), ((0.9, 0.95),), ((200, 400),)))[1] >= 0.92
    rng, raw = np.random.default_rng(4), 0
    for _ in range(150):
        yes, _ = simulated(rng, 0.01, 0.9, 0.95, 200, 400)
        found = rate([True] * yes + [False] * (400 - yes), better="lower", unit="attempt")
        raw += found.low <= 0.01 <= found.high
    assert raw / 150 < 0.1


def test_quick_mixture(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 2000)
    monkeypatch.setattr(rogan_gladen, "DRAWS", 2000)
    assert report("mixture, quick", mixture_coverage(25, True))[1] >= 0.9


@pytest.mark.long
def test_coverage_in_the_long_run():
    cells = coverage(
        LONG,
        (0.0, 0.01, 0.05, 0.3, 0.9),
        ((0.7, 0.99), (0.9, 0.95), (0.99, 0.7), (0.8, 0.8)),
        ((50, 100), (50, 1000), (500, 100), (500, 1000)),
    )
    average, worst = report("corrected", cells)
    assert worst >= 0.95 - 3 * (0.95 * 0.05 / LONG) ** 0.5
    assert average <= 0.99


@pytest.mark.long
def test_clusters_in_the_long_run():
    assert report("corrected, clusters", clustered(LONG))[1] >= 0.94


@pytest.mark.long
def test_mixture_in_the_long_run(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 500)
    monkeypatch.setattr(rogan_gladen, "DRAWS", 500)
    for shared in (True, False):
        assert report(f"mixture, shared={shared}", mixture_coverage(LONG, shared))[1] >= 0.943


@pytest.mark.long
def test_goals_in_common_in_the_long_run(monkeypatch):
    monkeypatch.setattr(_confidence, "DRAWS", 500)
    monkeypatch.setattr(rogan_gladen, "DRAWS", 500)
    assert report("mixture, goals in common", shared_goals(LONG))[1] >= 0.94
