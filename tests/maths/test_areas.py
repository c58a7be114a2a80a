"""The trapezoid rule against numpy, and against a fine sum under straight lines."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.maths.areas import trapezoid

MIB = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize("places", [MIB, tuple(np.log10(MIB)), (0.0, 1.0), (-3.0, 0.5, 2.0)])
def test_areas_equal_numpys_and_a_fine_sum(places):
    heights = np.random.default_rng(0).normal(size=len(places))
    area = float(trapezoid(places).numpy() @ heights)
    assert area == pytest.approx(float(np.trapezoid(heights, places)), abs=1e-12)
    middles = np.linspace(places[0], places[-1], 200_001)
    middles = (middles[1:] + middles[:-1]) / 2
    fine = np.interp(middles, places, heights).mean() * (places[-1] - places[0])
    assert area == pytest.approx(fine, abs=1e-4)


def test_half_of_mibs_area_lies_above_half_of_the_edges():
    weights = trapezoid(MIB)
    assert float(weights.sum()) == pytest.approx(0.999)
    assert float(trapezoid(MIB[-2:]).sum() / weights.sum()) == pytest.approx(0.5005, abs=1e-4)


@pytest.mark.parametrize("places", [(), (1.0,), (0.0, 0.0), (1.0, 0.5), (0.0, float("nan"), 1.0)])
def test_places_that_do_not_increase_have_no_area(places):
    with pytest.raises(ValueError, match="larger than the one before"):
        trapezoid(places)
