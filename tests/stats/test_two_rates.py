"""The difference of two rates over different units: a published example, and what is missing or empty."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.core import unknown
from calibrant.stats import rate
from calibrant.stats.two_rates import rates_apart


def of(yes, n, missing=0, method="wilson"):
    outcomes = [True] * yes + [False] * (n - yes) + [None] * missing
    return rate(outcomes, method=method, better="none", unit="item")


def test_newcombes_own_example():
    """56 of 70 and 48 of 80, method 10 of Newcombe 1998, table II (a): .2000 [.0524, .3339]."""
    found = rates_apart(of(48, 80), of(56, 70), better="higher", unit="item")
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert found.null_value == 0.0 and found.n == 150 and found.method.startswith("newcombe")


def test_it_changes_sign_with_its_sides_and_stays_within_its_range():
    one, other = of(0, 12, method="clopper-pearson"), of(9, 9, method="clopper-pearson")
    up, down = (rates_apart(*pair, better="none", unit="item") for pair in ((one, other), (other, one)))
    assert (up.low, up.high) == (pytest.approx(-down.high), pytest.approx(-down.low))
    assert up.value == up.high == 1.0 and up.low > 0


def test_missing_units_widen_it_and_an_empty_side_makes_it_unknown():
    whole = rates_apart(of(10, 40), of(20, 40), better="none", unit="item")
    holed = rates_apart(of(10, 40, 5), of(20, 40), better="none", unit="item")
    assert holed.low < whole.low and holed.high > whole.high and holed.missing == 5
    empty = rates_apart(unknown("the denominator is empty", n=7), of(20, 40), better="none", unit="item")
    assert empty.value is None and empty.low is None and empty.reason == "the denominator is empty"
    assert empty.n == 47


def test_exact_parts_cover():
    """2,000 runs of 30 and 20 at .3 and .5: the true difference .2 lies within in 95 % or more (se .005)."""
    rng, held = np.random.default_rng(0), 0
    for a, b in zip(rng.binomial(30, 0.3, 2000), rng.binomial(20, 0.5, 2000), strict=True):
        found = rates_apart(
            of(int(a), 30, method="clopper-pearson"),
            of(int(b), 20, method="clopper-pearson"),
            better="none",
            unit="item",
        )
        held += found.low <= 0.2 <= found.high
    assert held / 2000 > 0.94
