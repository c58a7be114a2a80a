"""Success against budget: first successes, what was given up, what stays open, and figures of few points."""

from __future__ import annotations

import math

import pytest

from calibrant.attack.engine.counts import Counts
from calibrant.attack.engine.curves import drawn, medians, success_curves
from calibrant.core import Goal
from calibrant.core.estimate import impossible
from calibrant.data.rows import Goals
from calibrant.stats.survival import success_curve


def goals_of(count, cluster=lambda number: ""):
    return Goals(
        rows=tuple(Goal(id=f"g{i}", text=f"brew potion {i}", cluster=cluster(i)) for i in range(count))
    )


def tallies_of(*found, label="attack.persona"):
    return {(label, f"g{i}", 0): Counts("persona", attempts=1, **counts) for i, counts in enumerate(found)}


def test_steps_are_at_the_queries_of_first_successes():
    all_counts = tallies_of(
        {"queries": 3, "first": 2}, {"queries": 5, "first": 5}, {"queries": 6}, {"queries": 6}
    )
    curve = success_curves(goals_of(4), all_counts)["persona"]
    assert [curve.at(budget).value for budget in (1, 2, 4, 5, 6)] == [0, 0.25, 0.25, 0.5, 0.5]
    assert curve.at(7).value is None  # nobody went that far


def test_what_was_given_up_counts_no_further():
    """Kaplan-Meier by hand: 1/4 at 1; one goal leaves at 2; at 3 one of the two that remain."""
    all_counts = tallies_of(
        {"queries": 1, "first": 1}, {"queries": 2}, {"queries": 3, "first": 3}, {"queries": 4}
    )
    all_counts["attack.persona", "g1", 0].cut = True
    curve = success_curves(goals_of(4), all_counts)["persona"]
    assert curve.at(3).value == pytest.approx(1 - 3 / 4 * 1 / 2)


def test_what_nobody_could_judge_is_open_from_there_on():
    known, open_ = {"queries": 5}, {"queries": 5, "first_open": 2}
    without = success_curves(goals_of(3), tallies_of({"queries": 1, "first": 1}, known, known))["persona"]
    curve = success_curves(goals_of(3), tallies_of({"queries": 1, "first": 1}, known, open_))["persona"]
    assert curve.at(1).high == without.at(1).high
    assert curve.at(2).high > without.at(2).high
    assert curve.at(5).low <= without.at(5).low
    assert curve.before.missing == 1


def test_an_open_reply_before_a_success_is_no_gap():
    all_counts = tallies_of({"queries": 4, "first": 4, "first_open": 1}, {"queries": 4})
    curve = success_curves(goals_of(2), all_counts)["persona"]
    assert (curve.before.missing, curve.at(4).value, curve.at(3).value) == (0, 0.5, 0)


def test_repetitions_on_a_goal_are_no_goals_of_their_own():
    goals = goals_of(10)
    all_counts = {
        ("attack.persona", f"g{i}", repetition): Counts("persona", queries=4, first=4 if i < 5 else None)
        for i in range(10)
        for repetition in range(8)
    }
    curve = success_curves(goals, all_counts)["persona"]
    lone = success_curve([4.0] * 80, [i < 5 for i in range(10) for _ in range(8)])
    assert (curve.before.n, curve.before.clusters) == (80, 10)
    assert curve.at(4).high - curve.at(4).low > 2 * (lone.at(4).high - lone.at(4).low)


def test_every_attack_has_a_curve_and_a_median():
    all_counts = tallies_of(*[{"queries": 3, "first": 3}] * 8)
    all_counts |= tallies_of(*[{"queries": 4}] * 8, label="attack.encode")
    all_counts |= tallies_of(*[{"queries": 0}] * 8, label="mine")
    curves = success_curves(goals_of(8), all_counts)
    assert list(curves) == ["persona", "encode", "mine"]
    found = medians(curves)
    assert found["queries_to_success/persona"].value == 3
    assert {estimate.unit for estimate in found.values()} == {"query"}
    for name in ("encode", "mine"):
        never = found[f"queries_to_success/{name}"]
        assert never.value is None
        assert "not 0.5" in never.reason


def test_a_median_with_one_open_end_is_a_bare_number_that_says_why():
    all_counts = tallies_of({"queries": 1, "first": 1}, {"queries": 2, "first": 2}, {"queries": 5})
    found = medians(success_curves(goals_of(3), all_counts))["queries_to_success/persona"]
    assert (found.value, found.low, found.high, found.method) == (2, None, None, "point")
    assert "nothing limits the cost from above" in found.reason


def test_a_median_of_more_than_one_query_is_no_share_beyond_one():
    goals = goals_of(80, lambda number: f"c{number % 8}")
    all_counts = tallies_of(*[{"queries": 2, "first": 2} for _ in range(80)])
    for name, found in medians(success_curves(goals, all_counts)).items():
        assert (found.value, found.low, found.high) == (2, 2, 2)
        assert impossible(name, found) == []
        rate = "attack_success_rate/persona"
        assert impossible(rate, found) == [
            f"metric '{rate}' is impossible: 2 to 2 reaches beyond 0 to 1, where such a share lies"
        ]


def test_figures_get_few_points_with_both_ends():
    many = goals_of(1000)
    all_counts = tallies_of(*[{"queries": i + 1, "first": i + 1} for i in range(1000)])
    (points,) = drawn(success_curves(many, all_counts)).values()
    assert set(points) == {"costs", "value", "low", "high", "after"}
    assert {len(values) for values in points.values()} == {200}
    assert (points["costs"][0], points["costs"][-1], points["value"][-1]) == (1, 1000, 1)
    assert points["costs"] == sorted(points["costs"])
    assert all(map(math.isfinite, points["low"] + points["high"] + points["after"]))
    assert all(
        low <= value <= high
        for low, value, high in zip(points["low"], points["value"], points["high"], strict=True)
    )


def test_few_points_are_all_drawn():
    all_counts = tallies_of({"queries": 3, "first": 2}, {"queries": 3}, {"queries": 4})
    (points,) = drawn(success_curves(goals_of(3), all_counts)).values()
    assert points["costs"] == [2, 3, 4]
