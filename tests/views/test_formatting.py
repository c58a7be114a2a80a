from __future__ import annotations

import math

import pytest

from calibrant.core import Estimate
from calibrant.views import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97312, "0.973"),
        (0, "0.000"),
        (-0.25, "−0.250"),
        (12.345, "12.35"),
        (123.45, "123.5"),
        (12345, "12 345"),
        (0.00012, "0.00012"),
        (3.2e-7, "3.2e−07"),
        (None, "unknown"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_number(value, text):
    assert formatting.number(value).replace("\N{NARROW NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize("gap", [4e-4, -4e-4, 3e-5, -2e-6, 1e-9])
def test_rounding_never_hides_on_which_side_of_the_threshold_a_number_lies(gap):
    shown = float(formatting.number(0.05 + gap, near=0.05))
    assert (shown > 0.05) == (gap > 0) and shown != 0.05
    assert formatting.number(0.05, near=0.05) == "0.050"
    assert formatting.number(0.07, near=0.05) == "0.070"


def test_interval_and_reasons():
    assert formatting.interval(0.9214, 0.9931) == "[0.921, 0.993]"
    assert formatting.interval(None, 0.5) == "[unknown, 0.500]"
    assert formatting.interval(None, None) == ""
    assert formatting.why_unknown(Estimate(value=math.inf)) == "not a finite number"


def test_durations_sizes_and_references():
    assert [formatting.seconds(s) for s in (0.42, 59.6, 200, 7500, None)] == [
        "0.4 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
        "unknown",
    ]
    assert [formatting.size(b) for b in (820, 1_200_000, 3 * 10**13)] == ["820 B", "1.2 MB", "30.0 TB"]
    assert formatting.count(1, "seed") == "1 seed" and formatting.count(0, "seed") == "0 seeds"
    assert (
        formatting.reference({"b": 1, "a": "x"}) == '{"a": "x", "b": 1}'
        and formatting.reference("hf:a@b") == "hf:a@b"
    )
    assert (
        formatting.exact(0.0601) == "0.0601"
        and formatting.exact(300.0) == "300"
        and formatting.exact(None) == "unknown"
    )


def test_a_crowded_place_never_shows_a_round_number_that_is_not_one():
    shares = (0.0, 0.004, 0.005, 0.123, 0.995, 0.996, 1.0, -0.5, -0.004, None)
    assert [formatting.brief(v) for v in shares] == [
        "0.00", "<0.01", "0.01", "0.12", "0.99", ">0.99", "1.00", "−0.50", "−0.00", "unknown",
    ]  # fmt: skip
