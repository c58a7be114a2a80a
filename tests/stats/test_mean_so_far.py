"""No mean is told where what is open could move it further than chance."""

from __future__ import annotations

import pytest

from calibrant.stats import mean, mean_so_far

LABEL = {"bounds": (0.0, 1.0), "better": "higher", "unit": "sample"}


def test_a_mean_of_few_is_not_told_as_one_of_all():
    found = mean_so_far([1.0] * 30 + [None] * 70, **LABEL)
    assert found.value is None and (found.n, found.missing) == (100, 70)
    assert "30 of 100 samples scored, 70 open: no mean is given" in found.reason
    assert (found.low, found.high) == (mean([1.0] * 30 + [None] * 70, **LABEL).low, 1.0)


def test_few_open_ones_leave_the_mean():
    values = [float(n % 2) for n in range(99)]
    found = mean_so_far([*values, None], **LABEL)
    assert found.value == pytest.approx(sum(values) / 99) and found.missing == 1
    assert mean_so_far(values, **LABEL) == mean(values, **LABEL)


def test_one_that_is_scored_bounds_nothing():
    found = mean_so_far([1.0, None], **LABEL)
    assert found.value is None and "they bound nothing" in found.reason
    groups = mean_so_far([1.0] * 9 + [None], clusters=["one"] * 10, **LABEL)
    assert groups.value is None
    assert mean_so_far([None, None], **LABEL).value is None


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_range_decides_how_far_open_ones_reach(scale):
    values = [0.4, 0.5, 0.6] * 10
    found = mean_so_far([*values, None], **(LABEL | {"bounds": (0.0, scale)}))
    assert (found.value is None) == (scale == 10.0)
