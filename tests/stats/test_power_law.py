"""The power law of best-of-n: found where planted, refused where goals follow another law, coverage."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
from scipy.optimize import nnls

from calibrant.core import InputError
from calibrant.stats.power_law import GAP, power_law

LONG = 10_000
module = importlib.import_module("calibrant.stats.power_law")  # the package's own name is the function


def planted(a, b):
    """Success rates of goals and their weights, such that -log ASR(N) = a N^-b up to N = 20,000."""
    p = np.concatenate([[0.0, 1.0], np.geomspace(1e-7, 0.999, 400)])
    n = np.unique(np.round(np.geomspace(1, 20_000, 200)))
    table, law = 1 - (1 - p) ** n[:, None], np.exp(-a * n**-b)
    weights, _ = nnls(np.vstack([table, np.full(p.size, 10.0)]), np.append(law, 10.0))
    assert np.abs(table @ weights - law).max() < 5e-4
    return p, weights / weights.sum()


def drawn(rng, p, weights, goals, n=64):
    return [(int(c), n) for c in rng.binomial(n, rng.choice(p, size=goals, p=weights))]


def coverage(repetitions, sizes):
    """ASR@1000 from 64 attempts, where the law is not called poor, and how often it is."""
    rng, cells, poor = np.random.default_rng(0), {}, {}
    for (a, b), goals in itertools.product(((3, 0.3), (2, 0.2), (1, 0.2)), sizes):
        p, weights = planted(a, b)
        truth = float(weights @ (1 - (1 - p) ** 1000))
        held = refused = 0
        for _ in range(repetitions):
            fit = power_law(drawn(rng, p, weights, goals), [1000])
            refused += bool(fit.poor)
            held += not fit.poor and fit.forecasts[0].low <= truth <= fit.forecasts[0].high
        cells[a, b, goals] = held / (repetitions - refused)
        poor[a, b, goals] = refused / repetitions
    return cells, poor


def report(name, cells):
    worst = min(cells, key=cells.get)
    average = float(np.mean(list(cells.values())))
    print(f"{name}: mean {average:.4f}, least {cells[worst]:.4f} at {worst}, most {max(cells.values()):.4f}")
    return average, cells[worst]


def test_planted_law_is_found():
    p, weights = planted(3, 0.3)
    fit = power_law(drawn(np.random.default_rng(0), p, weights, 3000), [1, 256, 4096])
    assert fit.poor == ""
    assert fit.r2 > 0.99 and fit.gap < 0.01
    assert fit.ks == (1, 2, 4, 8, 16, 32, 64)
    assert fit.a.value == pytest.approx(3, abs=0.2) and fit.a.low < 3 < fit.a.high
    assert fit.b.value == pytest.approx(0.3, abs=0.03) and fit.b.low < 0.3 < fit.b.high
    for n, found in zip((1, 256, 4096), fit.forecasts, strict=True):
        assert found.low < np.exp(-3 * n**-0.3) < found.high
        assert (found.better, found.unit, found.n) == ("lower", "goal", 3000)


def test_the_line_by_hand():
    """A straight line through (log k, log(-log ASR@k)) by numpy's own fit; many goals bring a and b back."""
    p, weights = planted(2, 0.2)
    counts = drawn(np.random.default_rng(1), p, weights, 50_000, 16)
    fit = power_law(counts, [16])
    assert (fit.a.value, fit.b.value) == pytest.approx((2, 0.2), abs=0.02)
    logs, loglog = np.log(fit.ks), np.log(-np.log(fit.asr))
    slope, start = np.polyfit(logs, loglog, 1)
    assert (fit.a.value, fit.b.value) == pytest.approx((np.exp(start), -slope))


@pytest.mark.parametrize(
    "rates",
    [np.full(200, 0.02), np.where(np.arange(200) < 60, 0.5, 0.0)],
    ids=["all goals alike", "some goals always fall"],
)
def test_another_law_is_called_poor(rates):
    """Null control: both would be forecast far too high, or too low."""
    counts = [(int(c), 64) for c in np.random.default_rng(2).binomial(64, rates)]
    fit = power_law(counts, [1000, 2000])
    assert "misses" in fit.poor and fit.gap > GAP
    for found in fit.forecasts:
        assert (found.value, found.low, found.high) == (None, 0.0, 1.0)
        assert found.reason == fit.poor
    assert fit.a.value is not None  # the line is shown, with the reason


@pytest.mark.parametrize(
    ("counts", "clusters", "word"),
    [
        ([], None, "there is none"),
        ([(0, 64)] * 50, None, "0 of the points"),
        ([(1, 4), (0, 4)] * 10, None, "need"),
        ([(1, 64), (0, 64)] * 10, ["all"] * 20, "only one independent goal"),
        ([(1, 64), (0, 3, 3)], None, "no judged attempt"),
    ],
)
def test_no_line_is_unknown(counts, clusters, word):
    fit = power_law(counts, [100], clusters=clusters)
    assert word in fit.poor
    assert (fit.a.value, fit.forecasts[0].value, fit.forecasts[0].high) == (None, None, 1.0)


def test_undetermined_attempts_and_clusters_widen():
    p, weights = planted(3, 0.3)
    counts = drawn(np.random.default_rng(7), p, weights, 400)
    plain = power_law(counts, [500]).forecasts[0]
    gaps = power_law([(c, n, min(1, n - c)) for c, n in counts], [500]).forecasts[0]
    assert gaps.low < plain.low + 0.01 and gaps.high > plain.high
    assert gaps.missing > 300
    alone = power_law(counts, [500], clusters=[str(i) for i in range(400)]).forecasts[0]
    assert alone == plain
    ordered = sorted(counts)
    grouped = power_law(ordered, [500], clusters=[str(i // 20) for i in range(400)]).forecasts[0]
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)


def test_same_seed_same_law():
    counts = drawn(np.random.default_rng(4), *planted(3, 0.3), 100)
    assert power_law(counts, [500], seed=3) == power_law(counts, [500], seed=3)
    with pytest.raises(InputError):
        power_law(counts, [0])
    with pytest.raises(InputError):
        power_law([(3, 2)], [5])


def test_quick_coverage():
    cells, poor = coverage(40, (80,))
    assert report("power law, quick", cells)[0] >= 0.9
    assert max(poor.values()) < 0.25


@pytest.mark.long
def test_coverage_in_the_long_run(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 500)
    cells, poor = coverage(LONG, (50, 150))
    average, worst = report("power law", cells)
    report("called poor", poor)
    assert 0.94 <= average <= 0.96
    assert worst >= 0.92
