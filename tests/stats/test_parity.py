"""Our statistics against the field's own tools, over seeds: krippendorff, crowd-kit and scikit-learn."""

from __future__ import annotations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from calibrant.maths.logistic import logistic, loss
from calibrant.stats.agreement import krippendorff_alpha, ratings
from calibrant.stats.calibration import brier, calibration_error, pair_accuracy, temperature
from calibrant.stats.dawid_skene import NO_PRIOR, dawid_skene

SEEDS = range(12)


def planted(seed, items, raters, labels, asked):
    """(item, rater, label) triples: raters of differing skill, each asked about a share of the items."""
    rng = np.random.default_rng(seed)
    truth, skill = rng.integers(labels, size=items), rng.uniform(0.5, 0.95, size=raters)
    triples = []
    for item in range(items):
        for rater in np.flatnonzero(rng.random(raters) < asked):
            right = rng.random() < skill[rater]
            said = truth[item] if right else (truth[item] + rng.integers(1, labels)) % labels
            triples.append((f"i{item:03}", f"r{rater}", str(said)))
    return triples


@pytest.mark.parametrize("labels", [2, 3, 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_alpha_is_that_of_krippendorff(seed, labels):
    """Ratings are missing at random, and some items have one or none."""
    triples = planted(seed, 40, 4, labels, asked=0.6)
    names = [str(k) for k in range(labels)]
    table = pd.DataFrame(triples).pivot(index=1, columns=0, values=2).astype(float).to_numpy()
    theirs = krippendorff.alpha(
        table, level_of_measurement="nominal", value_domain=np.arange(labels, dtype=float)
    )
    assert krippendorff_alpha(ratings(triples, names), resamples=100).value == pytest.approx(
        theirs, abs=1e-12
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # crowd-kit is older than pandas 3
@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("seed", SEEDS[:6])
def test_dawid_skene_is_that_of_crowd_kit(seed, labels):
    """Without priors, from vote shares, step for step; crowd-kit holds every chance above 1e-10."""
    triples = planted(seed, 150, 6, labels, asked=0.8)
    names = [str(k) for k in range(labels)]
    rated = ratings(triples, names)
    theirs = DawidSkene(n_iter=25, tol=-1.0).fit(pd.DataFrame(triples, columns=["task", "worker", "label"]))
    # Each of its steps ends with what each of ours begins with: prevalence and confusions.
    ours, after = (dawid_skene(rated, prior=NO_PRIOR, steps=n, tolerance=-1.0) for n in (25, 26))
    assert ours.posterior == pytest.approx(theirs.probas_.loc[list(rated.items), names].to_numpy(), abs=1e-8)
    assert after.prevalence == pytest.approx(theirs.priors_[names].to_numpy(), abs=1e-8)
    for rater, confusion in zip(rated.raters, after.confusion, strict=True):
        assert confusion == pytest.approx(theirs.errors_.loc[rater].loc[names, names].T.to_numpy(), abs=1e-8)


@pytest.mark.parametrize(("n", "d"), [(60, 4), (40, 80)])
@pytest.mark.parametrize("l2", [0.1, 10.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_logistic_head_is_that_of_scikit_learn(seed, n, d, l2):
    """More rows than features, and fewer; the loss at ours is no higher, too."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, size=d)
    y = rng.random(n) < expit(x[:, 0] - 0.5)
    weights, bias = logistic(x, y, l2)
    theirs = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, y)
    assert weights == pytest.approx(theirs.coef_[0], abs=1e-7)
    assert bias == pytest.approx(theirs.intercept_[0], abs=1e-7)
    ones, penalty = np.column_stack([x, np.ones(n)]), np.r_[np.full(d, l2), 0.0]
    at = loss(ones, y.astype(float), penalty, np.r_[weights, bias])
    assert at <= loss(ones, y.astype(float), penalty, np.r_[theirs.coef_[0], theirs.intercept_]) + 1e-9


def margins(seed, n=200):
    """Margins of pairs, and the same pairs shown from a side drawn at random: was the first chosen?"""
    rng = np.random.default_rng(seed)
    found = rng.normal(0.8, 1.5, size=n)
    first = rng.random(n) < 0.5
    return found, first, np.where(first, found, -found)


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_brier_and_calibration_error_are_those_of_scikit_learn(seed):
    found, first, shown = margins(seed)
    assert pair_accuracy(found).value == pytest.approx(accuracy_score(first, shown > 0), abs=1e-12)
    assert brier(found).value == pytest.approx(brier_score_loss(first, expit(shown)), abs=1e-12)
    sure = expit(np.abs(found))
    won, claimed = calibration_curve(found > 0, sure, n_bins=10, strategy="quantile")
    assert calibration_error(found, bins=10).value == pytest.approx(np.abs(won - claimed).mean(), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_temperature_is_a_logistic_regression_without_intercept(seed):
    found, first, shown = margins(seed)
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000)
    slope = float(fitted.fit(shown[:, None], first).coef_[0, 0])
    ours = temperature(found).value
    assert ours == pytest.approx(1 / slope, rel=1e-6)
    assert log_loss(first, expit(shown / ours)) <= log_loss(first, expit(slope * shown)) + 1e-12
