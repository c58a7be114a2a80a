"""What came of one attack on one goal: counts, queries to the first success, and what stays open."""

from __future__ import annotations

import pytest

from calibrant.attack.engine.counts import Counts
from calibrant.core import Completion, Cost


@pytest.fixture
def counts(goals, attempt):
    def made(*outcomes, **given):
        found = Counts("persona")
        for place, outcome in enumerate(outcomes):
            found.add(attempt(goals.rows[0], outcome, place, **given))
        return found

    return made


def test_it_counts(counts):
    found = counts("failure", "undetermined", "success", "failure", "success")
    assert (found.attempts, found.hits, found.undetermined, found.queries) == (5, 2, 1, 5)
    assert (found.first, found.first_open) == (3, 2)
    assert found.category == "potions"


def test_queries_are_those_of_the_attempts_with_all_that_led_to_them(counts):
    found = counts("failure", "success", cost=Cost(queries=20))
    assert (found.queries, found.first, found.first_open) == (40, 40, None)


@pytest.mark.parametrize(
    ("outcomes", "reached"),
    [
        ((), None),
        (("failure",), False),
        (("failure", "undetermined"), None),
        (("undetermined", "success"), True),
        (("failure", "success", "failure"), True),
    ],
)
def test_a_goal_is_reached_or_not_or_left_open(counts, outcomes, reached):
    assert counts(*outcomes).reached is reached


def test_a_cap_leaves_open_what_was_not_reached(counts):
    for outcomes, reached in ((("failure",), None), (("success",), True), ((), None)):
        found = counts(*outcomes)
        found.cut = True
        assert found.reached is reached


def test_blocked_and_broken_replies(goals, attempt):
    found = Counts("persona")
    found.add(attempt(goals.rows[0], "failure", completion=Completion(text="", stop="blocked")))
    found.add(attempt(goals.rows[0], "undetermined", completion=Completion(text="", stop="error")))
    found.add(attempt(goals.rows[0], "undetermined"))
    assert (found.blocked, found.broken, found.undetermined) == (1, 1, 2)


def test_each_variant_on_its_own(goals, attempt):
    found, goal = Counts("persona"), goals.rows[0]
    for name, outcome in (("a", "failure"), ("a", "success"), ("b", "undetermined"), ("b", "failure")):
        found.add(attempt(goal, outcome, attack=f"attack.persona/{name}"))
    found.add(attempt(goal, "failure", attack="attack.persona/c"))
    found.add(attempt(goal, "failure", attack="attack.persona"))
    assert found.variants == {"a": True, "b": None, "c": False, "": False}
