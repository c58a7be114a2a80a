"""What came of one attack on one goal: counts, queries to the first success, and what stays open."""

from __future__ import annotations

import pytest

from calibrant.attack.engine.counts import Tally
from calibrant.core import Completion, Cost


@pytest.fixture
def tally(goals, attempt):
    def made(*outcomes, **given):
        found = Tally("persona")
        for place, outcome in enumerate(outcomes):
            found.add(attempt(goals.rows[0], outcome, place, **given))
        return found

    return made


def test_it_counts(tally):
    found = tally("failure", "undetermined", "success", "failure", "success")
    assert (found.attempts, found.hits, found.undetermined, found.queries) == (5, 2, 1, 5)
    assert (found.first, found.first_open) == (3, 2)
    assert found.category == "potions"


def test_queries_are_those_of_the_attempts_with_all_that_led_to_them(tally):
    found = tally("failure", "success", cost=Cost(queries=20))
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
def test_a_goal_is_reached_or_not_or_left_open(tally, outcomes, reached):
    assert tally(*outcomes).reached is reached


def test_a_cap_leaves_open_what_was_not_reached(tally):
    for outcomes, reached in ((("failure",), None), (("success",), True), ((), None)):
        found = tally(*outcomes)
        found.cut = True
        assert found.reached is reached


def test_blocked_and_broken_replies(goals, attempt):
    found = Tally("persona")
    found.add(attempt(goals.rows[0], "failure", completion=Completion(text="", stop="blocked")))
    found.add(attempt(goals.rows[0], "undetermined", completion=Completion(text="", stop="error")))
    found.add(attempt(goals.rows[0], "undetermined"))
    assert (found.blocked, found.broken, found.undetermined) == (1, 1, 2)


def test_each_variant_on_its_own(goals, attempt):
    found, goal = Tally("persona"), goals.rows[0]
    for name, outcome in (("a", "failure"), ("a", "success"), ("b", "undetermined"), ("b", "failure")):
        found.add(attempt(goal, outcome, attack=f"attack.persona/{name}"))
    found.add(attempt(goal, "failure", attack="attack.persona/c"))
    found.add(attempt(goal, "failure", attack="attack.persona"))
    assert found.variants == {"a": True, "b": None, "c": False, "": False}
