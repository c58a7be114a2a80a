"""Logistic regression: against scipy's minimiser, closed forms, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from calibrant.core import NumericalError
from calibrant.maths.logistic import logistic, loss


def data(n, d, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * scale
    y = rng.random(n) < expit(x @ rng.normal(size=d) - 0.5)
    return x, y


@pytest.mark.parametrize(("n", "d"), [(60, 3), (40, 40), (25, 80)])
def test_equals_a_general_minimiser(n, d):
    x, y = data(n, d)
    weight, bias = logistic(x, y, 0.7)
    ones, penalty = np.column_stack([x, np.ones(n)]), np.array([0.7] * d + [0.0])

    def slow(at):
        return loss(ones, y.astype(float), penalty, at)

    found = minimize(slow, np.zeros(d + 1), method="BFGS", options={"gtol": 1e-8})
    assert slow(np.append(weight, bias)) <= found.fun + 1e-7
    assert np.append(weight, bias) == pytest.approx(found.x, abs=2e-3)


def test_without_information_the_bias_is_the_base_rate():
    """x = 0 everywhere: b = logit(3 / 4) whatever the penalty."""
    weight, bias = logistic(np.zeros((4, 2)), np.array([True, True, True, False]), 1.0)
    assert weight == pytest.approx([0, 0])
    assert bias == pytest.approx(np.log(3))


def test_two_points_by_hand():
    """x = 1 is yes, x = -1 is no, l2 = 1: b = 0 by symmetry and w = 2 / (1 + e^w), so w = 0.8526."""
    weight, bias = logistic(np.array([[1.0], [-1.0]]), np.array([True, False]), 1.0)
    assert bias == pytest.approx(0, abs=1e-9)
    assert weight[0] == pytest.approx(2 / (1 + np.exp(weight[0])))


def test_rotating_the_features_rotates_the_weights():
    x, y = data(30, 5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    weight, bias = logistic(x, y, 1.0)
    turned, same = logistic(x @ turn, y, 1.0)
    assert turn @ turned == pytest.approx(weight, abs=1e-7)
    assert same == pytest.approx(bias, abs=1e-7)


def test_large_and_separable_features_settle():
    x, _ = data(50, 4, scale=1e3)
    weight, bias = logistic(x, x[:, 0] > 0, 1e-3)
    assert np.isfinite(weight).all()
    assert ((x @ weight + bias > 0) == (x[:, 0] > 0)).all()


def test_a_nan_is_refused():
    with pytest.raises(NumericalError, match="NaN"):
        logistic(np.array([[np.nan]]), np.array([True]), 1.0)
