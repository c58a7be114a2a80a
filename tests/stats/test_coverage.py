"""Does a 95% interval hold the truth 95% of the time? Simulated, and summed exactly where that can be.

Exact and worst-case intervals must reach 95% in every cell, less Monte-Carlo error; approximate ones
94 to 96% on the mean of their grid, with the worst cell printed (``-s``, or with a failure).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, multinomial

from calibrant.stats import difference, mean, proportion_interval, rate
from calibrant.stats.paired import tango

LABEL = {"better": "lower", "unit": "item"}
LONG = 10_000


def exact_coverage(n, p, method):
    """Sum of the binomial probabilities of the counts whose interval holds p."""
    x = np.arange(n + 1)
    ends = np.array([proportion_interval(int(i), n, method=method) for i in x])
    return float(binom.pmf(x, n, p) @ ((ends[:, 0] <= p) & (p <= ends[:, 1])))


def paired_coverage(n, gain, loss):
    """Sum of the trinomial probabilities of the tables whose Tango interval holds the difference."""
    table = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    law = multinomial(n, [gain, loss, 1 - gain - loss])
    likely = [(b, c, law.pmf([b, c, n - b - c])) for b, c in table]
    truth, total = gain - loss, 0.0
    for b, c, p in likely:
        if p > 1e-9:
            low, high = tango(b, c, n, 0.95)
            total += p * (low - 1e-12 <= truth <= high + 1e-12)
    return total


def latent(rng, codes, icc):
    """Standard normal values that share ``icc`` of their variance within a cluster."""
    shared = rng.standard_normal(int(codes.max()) + 1)[codes]
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.standard_normal(codes.size)


def report(name, cells):
    """Print the mean and the worst cell; return both coverages."""
    worst = min(cells, key=cells.get)
    average = float(np.mean(list(cells.values())))
    print(f"{name}: mean {average:.4f}, worst {cells[worst]:.4f} at {worst}, {len(cells)} cells")
    return average, cells[worst]


def monte_carlo_error(repetitions):
    """Three standard errors at 95%."""
    return 3 * (0.95 * 0.05 / repetitions) ** 0.5


def censored_rate(repetitions):
    """Worst-case intervals where the answer decides what goes missing, the hardest case."""
    rng, cells = np.random.default_rng(0), {}
    for n, p, hide in itertools.product((20, 100), (0.02, 0.1, 0.5), ("hits", "misses")):
        held = 0
        for _ in range(repetitions):
            truth = rng.random(n) < p
            gone = (rng.random(n) < 0.3) & (truth if hide == "hits" else ~truth)
            found = rate([None if g else bool(t) for t, g in zip(truth, gone, strict=True)], **LABEL)
            held += found.low <= p <= found.high
        cells[n, p, hide] = held / repetitions
    return cells


def held(repetitions, rng, codes, p, icc):
    """Share of runs that hold the rate ``p``; a normal threshold makes units of a cluster alike."""
    names, covered = [str(c) for c in codes], 0
    for _ in range(repetitions):
        hits = latent(rng, codes, icc) < ndtri(p)
        found = rate(hits.tolist(), clusters=names, **LABEL)
        covered += found.low <= p <= found.high
    return covered / repetitions


def clustered_rate(repetitions, shape):
    """Korn-Graubard with k clusters of one size."""
    rng, cells = np.random.default_rng(1), {}
    for (k, size), p, icc in itertools.product(shape, (0.1, 0.3, 0.5), (0.0, 0.3)):
        codes = np.repeat(np.arange(k), size)
        cells[k, size, p, icc] = held(repetitions, rng, codes, p, icc)
    return cells


def unequal_rate(repetitions):
    """One cluster of 20, of 50 or of 91 beside small ones; clusters whose sizes double."""
    rng, cells = np.random.default_rng(5), {}
    shapes = {
        "20 + 20 x 1": [20, *[1] * 20],
        "50 + 25 x 2": [50, *[2] * 25],
        "91 + 9 x 1": [91, *[1] * 9],
        "doubling": [1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 64],
    }
    for shape, p, icc in itertools.product(shapes, (0.3, 0.5), (0.0, 0.3, 0.9)):
        codes = np.repeat(np.arange(len(shapes[shape])), shapes[shape])
        cells[shape, p, icc] = held(repetitions, rng, codes, p, icc)
    return cells


def bootstrap_mean(repetitions, counts, resamples=1000):
    """Normal, skewed unbounded, skewed bounded and five-point scores in unequal clusters and alone."""
    rng, cells = np.random.default_rng(2), {}
    cuts = np.array([-1.0, 0.0, 1.0, 1.5])
    kinds = {
        "normal": (lambda x: x, 0.0),
        "exponential": (lambda x: -np.log(ndtr(-x)), 1.0),
        "cubed uniform": (lambda x: ndtr(x) ** 3, 0.25),
        "five points": (lambda x: np.digitize(x, cuts).astype(float), float((1 - ndtr(cuts)).sum())),
    }
    for kind, k, grouped in itertools.product(kinds, counts, (False, True)):
        shape, truth = kinds[kind]
        held = 0
        for _ in range(repetitions):
            codes = np.repeat(np.arange(k), rng.integers(2, 9, k)) if grouped else np.arange(k)
            values = shape(latent(rng, codes, 0.3 if grouped else 0.0))
            names = [str(c) for c in codes] if grouped else None
            found = mean(values.tolist(), clusters=names, resamples=resamples, **LABEL)
            low = -np.inf if found.low is None else found.low
            high = np.inf if found.high is None else found.high
            held += low <= truth <= high
        cells[kind, k, "clusters" if grouped else "units"] = held / repetitions
    return cells


def few_deviants(repetitions, groups):
    """All but 1 to 3 units expected at one end of (0, 1): alone or in clusters of five that mostly agree.

    The deviants stand at the other end, or halfway (a tie). ``groups``: numbers of units, or of clusters.
    """
    rng, cells, known = np.random.default_rng(4), {}, {}
    for n, deviants, place, icc in itertools.product(groups, (1, 2, 3), (0.0, 0.5), (None, 0.9)):
        size, p = (1, deviants / n) if icc is None else (5, deviants / n / 5)
        codes = np.repeat(np.arange(n), size)
        truth, held = 1 - p * (1 - place), 0
        for _ in range(repetitions):
            odd = latent(rng, codes, icc or 0.0) < ndtri(p)
            # Which clusters they are in makes no difference, so equal tables are computed once.
            table = (n, place, size, *sorted(np.bincount(codes[odd], minlength=0).tolist()))
            if table not in known:
                names = None if icc is None else [str(c) for c in codes]
                values = np.where(odd, place, 1.0).tolist()
                known[table] = mean(values, clusters=names, bounds=(0.0, 1.0), resamples=1000, **LABEL)
            held += known[table].low <= truth <= known[table].high
        cells[n, deviants, place, icc] = held / repetitions
    return cells


def clustered_difference(repetitions, counts):
    """Tango at the effective n: clusters of five pairs, few to many changes."""
    rng, cells = np.random.default_rng(3), {}
    for k, icc, (gain, loss) in itertools.product(
        counts, (0.0, 0.3), ((0.02, 0.02), (0.1, 0.03), (0.2, 0.1))
    ):
        codes = np.repeat(np.arange(k), 5)
        names = [str(c) for c in codes]
        held = 0
        for _ in range(repetitions):
            z = latent(rng, codes, icc)
            before, after = z >= ndtri(gain), z <= -ndtri(loss)
            found = difference(before.tolist(), after.tolist(), clusters=names, **LABEL)
            held += found.low <= gain - loss <= found.high
        cells[k, icc, gain, loss] = held / repetitions
    return cells


def test_clopper_pearson_never_falls_short():
    cells = {
        (n, p): exact_coverage(n, p, "clopper-pearson")
        for n in (5, 20, 100)
        for p in (0.001, 0.01, 0.05, 0.2, 0.37, 0.5, 0.9)
    }
    assert report("clopper-pearson, exact", cells)[1] >= 0.95


def test_wilson_holds_on_average():
    cells = {
        (n, p): exact_coverage(n, p, "wilson") for n in (20, 50, 100) for p in np.linspace(0.03, 0.97, 48)
    }
    average, worst = report("wilson, exact", cells)
    assert 0.94 <= average <= 0.96
    assert worst >= 0.85


def test_tango_holds_on_average():
    cells = {
        (n, gain, loss): paired_coverage(n, gain, loss)
        for n in (20, 40)
        for gain, loss in ((0.1, 0.1), (0.2, 0.05), (0.3, 0.2), (0.4, 0.1), (0.25, 0.15))
    }
    average, worst = report("tango, exact", cells)
    assert 0.94 <= average <= 0.96
    assert worst >= 0.93


def test_quick_worst_case():
    assert report("worst case, quick", censored_rate(150))[1] >= 0.95 - monte_carlo_error(150)


def test_quick_few_deviants():
    """Of 450 units summed exactly; of 20, and of 20 clusters, simulated."""
    ends = [mean([0.0] * x + [1.0] * (450 - x), bounds=(0.0, 1.0), **LABEL) for x in range(31)]
    for deviants in (1, 2, 3):
        chance = binom.pmf(np.arange(31), 450, deviants / 450)
        assert sum(chance * [e.low <= 1 - deviants / 450 <= e.high for e in ends]) >= 0.95
    assert report("few deviants, quick", few_deviants(60, (20,)))[1] >= 0.95 - monte_carlo_error(60)


def test_quick_approximate():
    """A few hundred repetitions: wide of the mark only if something is broken."""
    assert report("korn-graubard, quick", clustered_rate(120, ((20, 10),)))[0] >= 0.93
    assert 0.92 <= report("bootstrap-t, quick", bootstrap_mean(60, (12,), 400))[0] <= 0.98
    assert report("tango clustered, quick", clustered_difference(100, (20,)))[0] >= 0.93


@pytest.mark.long
def test_worst_case_in_the_long_run():
    assert report("worst case", censored_rate(LONG))[1] >= 0.95 - monte_carlo_error(LONG)


@pytest.mark.long
def test_korn_graubard_in_the_long_run():
    """Built on an exact interval, so it errs on the wide side."""
    average, worst = report("korn-graubard", clustered_rate(LONG, ((10, 10), (30, 10), (30, 30))))
    assert 0.95 <= average <= 0.985
    assert worst >= 0.93


@pytest.mark.slow
def test_clusters_of_unequal_size():
    average, worst = report("unequal clusters", unequal_rate(400))
    assert average >= 0.95
    assert worst >= 0.9


@pytest.mark.long
def test_bootstrap_in_the_long_run():
    average, worst = report("bootstrap-t", bootstrap_mean(LONG, (8, 20, 50)))
    assert 0.94 <= average <= 0.96
    assert worst >= 0.91


@pytest.mark.long
def test_few_deviants_in_the_long_run():
    cells = few_deviants(LONG, (20, 200))
    assert report("few deviants", cells)[1] >= 0.95 - monte_carlo_error(LONG)


@pytest.mark.long
def test_clustered_difference_in_the_long_run():
    average, worst = report("tango clustered", clustered_difference(LONG, (10, 20, 40)))
    assert 0.94 <= average <= 0.975
    assert worst >= 0.93
