"""Estimates: how they read, and that a bare point or an unknown never looks like an interval."""

from __future__ import annotations

import math

import pytest

from calibrant.core import Estimate, point, unknown


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=0.25, low=0.125, high=0.5), "0.250 [0.125, 0.500]"),
        (Estimate(value=0.0, low=0.0, high=0.0), "0.000 [0.000, 0.000]"),
        (Estimate(value=-3e-7, low=-4e-7, high=-2e-7), "-3e-07 [-4e-07, -2e-07]"),
        (Estimate(value=1e-5, low=0.0, high=0.25), "0.000 [0.000, 0.250]"),
        (Estimate(value=0.25, low=0.125), "0.25"),
        (point(12345.678), "1.235e+04"),
        (point(0.0), "0"),
        (unknown("the judge was silent"), "unknown (the judge was silent)"),
        (Estimate(value=None, low=0.0, high=1.0), "unknown, [0.000, 1.000] (no reason given)"),
    ],
)
def test_text(estimate, text):
    assert str(estimate) == text


def test_a_point_has_no_bounds():
    found = point(0.5, unit="nats", n=3, reason="last step")
    assert (found.low, found.high, found.method) == (None, None, "point")
    assert (found.value, found.unit, found.n, found.missing, found.reason) == (0.5, "nats", 3, 0, "last step")


def test_unknown_counts_all_as_missing():
    found = unknown("no line", n=7, unit="goal")
    assert (found.value, found.n, found.missing, found.method, found.unit) == (None, 7, 7, "none", "goal")


def test_round_trip():
    found = Estimate(value=0.1, low=-math.inf, high=0.3, clusters=2, better="lower", null_value=0.0)
    assert Estimate.model_validate(found.model_dump()) == found
    with pytest.raises(ValueError, match="better"):
        Estimate(value=0.1, better="more")
