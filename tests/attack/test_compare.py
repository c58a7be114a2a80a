"""Did success change? Paired by goal: what differs, what is open, and what only one side met."""

from __future__ import annotations

import pytest

from calibrant.attack.compare import compare
from calibrant.core import Goal, InputError
from calibrant.data.rows import Attempts, Goals
from calibrant.stats import difference, mcnemar

CHANGE = "attack_success_change"


def goals_of(count, cluster=lambda number: ""):
    return Goals(
        rows=tuple(
            Goal(
                id=f"g{i}",
                text=f"brew potion {i}",
                category="potions" if i % 2 else "charms",
                cluster=cluster(i),
            )
            for i in range(count)
        )
    )


@pytest.fixture
def side(attempt):
    """Attempts of one side: for each goal, what each of its attempts came to."""

    def made(goals, *outcomes, attack="attack.persona/dusk"):
        rows = [
            attempt(goal, outcome, place, attack=attack)
            for goal, all_ in zip(goals, outcomes, strict=False)
            for place, outcome in enumerate([all_] if isinstance(all_, str) else all_)
        ]
        return Attempts(rows=tuple(rows))

    return made


def spread(hits, count=40):
    return ["success" if i < hits else "failure" for i in range(count)]


def test_a_fall_is_seen(side):
    goals = goals_of(40)
    found = compare(side(goals, *spread(30)), side(goals, *spread(10)), goals).metrics
    whole = found[CHANGE]
    assert (whole.value, whole.n, whole.missing) == (-0.5, 40, 0)
    assert whole.high < 0
    old, new = [i < 30 for i in range(40)], [i < 10 for i in range(40)]
    by_hand = difference(old, new, better="lower", unit="goal", clusters=[""] * 40)
    assert (whole.low, whole.high) == (by_hand.low, by_hand.high)
    assert set(found) == {CHANGE, *(f"{CHANGE}/{n}" for n in ("persona", "potions", "charms"))}
    # Holm over three: the smallest p-value is multiplied by 3.
    p = mcnemar(old, new)
    assert f"sign-flip p = {p:.3g}, Holm over 3: {3 * p:.3g}" in found[f"{CHANGE}/persona"].reason
    assert found[f"{CHANGE}/potions"].n == 20


def test_nothing_is_seen_where_nothing_changed(side):
    goals = goals_of(40)
    same = side(goals, *spread(20))
    found = compare(same, same, goals).metrics[CHANGE]
    assert found.value == 0
    assert found.low < 0 < found.high


def test_any_attempt_reaches_a_goal(side):
    goals = goals_of(2)
    before = side(goals, ("failure", "success", "failure"), ("failure", "failure"))
    after = side(goals, ("failure",), ("undetermined", "success"))
    assert compare(before, after, goals).metrics[CHANGE].value == 0
    assert compare(before, before, goals).metrics[CHANGE].value == 0


def test_what_is_open_widens_the_bounds(side):
    goals = goals_of(20)
    clear = compare(side(goals, *spread(10, 20)), side(goals, *spread(0, 20)), goals).metrics[CHANGE]
    after = side(goals, *[("undetermined", "failure")] * 5, *["failure"] * 15)
    found = compare(side(goals, *spread(10, 20)), after, goals).metrics[CHANGE]
    assert found.missing == 5
    assert found.value == pytest.approx(-5 / 15)
    assert found.reason.startswith("5 of 20 pairs open")
    # At best the five were not reached, as above; at worst they all were.
    assert found.low == clear.low
    worst = compare(side(goals, *spread(10, 20)), side(goals, *spread(5, 20)), goals).metrics[CHANGE]
    assert found.high == worst.high


def test_a_capped_side_is_open_where_it_was_cut_off_and_no_change_is_read_off_it(side):
    """Before: 12 of 40 reached. After, capped: the same 12 reached, 28 cut off before they were done."""
    goals = goals_of(40)
    before = side(goals, *spread(12))
    after = side(goals, *spread(12))
    cut = Attempts(rows=tuple(a.model_copy(update={"cut": a.outcome == "failure"}) for a in after))
    assert compare(before, after, goals).metrics[CHANGE].value == 0
    found = compare(before, cut, goals).metrics[CHANGE]
    assert (found.value, found.missing) == (None, 28)
    assert found.low < 0 and found.high > 0.5
    assert found.reason.startswith("28 of 40 pairs open: no difference is given")


def test_goals_that_one_side_never_met_are_said(side):
    goals = goals_of(40)
    found = compare(side(goals, *spread(12)), side(goals, *spread(12, 30)), goals)
    assert any("10 of 40 goals were not tried on both sides" in told for told in found.caveats)


def test_goals_of_a_cluster_are_not_independent(side):
    alone, alike = goals_of(40), goals_of(40, cluster=lambda i: f"verb {i % 8 // 2}")
    hits = ["success" if i % 8 < 4 else "failure" for i in range(40)]
    none = ["failure"] * 40
    one, other = (
        compare(side(goals, *hits), side(goals, *none), goals).metrics[CHANGE] for goals in (alone, alike)
    )
    assert one.value == other.value
    assert other.clusters == 4
    assert other.high - other.low > one.high - one.low


def test_only_attacks_that_both_sides_met_are_compared_one_by_one(side):
    goals = goals_of(10)
    before = side(goals, *spread(5, 10)).rows + side(goals, *spread(9, 10), attack="attack.encode/rot13").rows
    after = side(goals, *spread(1, 10)).rows + side(goals, *spread(3, 10), attack="attack.pair").rows
    found = compare(Attempts(rows=before), Attempts(rows=after), goals)
    assert found.metrics[f"{CHANGE}/persona"].value == pytest.approx(-0.4)
    assert not {f"{CHANGE}/encode", f"{CHANGE}/pair"} & set(found.metrics)
    told = next(told for told in found.caveats if "only one side" in told)
    assert "encode" in told and "pair" in told


def test_goals_that_one_side_did_not_meet_are_left_out(side):
    goals = goals_of(10)
    found = compare(side(goals, *spread(5, 10)), side(goals, *spread(0, 4)), goals).metrics[CHANGE]
    assert (found.n, found.value) == (4, -1.0)
    some = Goals(rows=goals.rows[2:3])
    assert compare(side(goals, *spread(5, 10)), side(goals, *spread(0, 10)), some).metrics[CHANGE].n == 1


def test_no_goal_in_common(side):
    goals = goals_of(4)
    with pytest.raises(InputError, match="no goal in common"):
        compare(side(goals.rows[:2], *spread(1, 2)), side(goals.rows[2:], *spread(1, 2)), goals)
    with pytest.raises(InputError, match="no goal in common"):
        compare(side(goals, *spread(1, 4)), side(goals, *spread(1, 4)), Goals(rows=()))


class Counted(Attempts):
    """Counts how often somebody goes over it."""

    passes: list[int]

    def __iter__(self):
        self.passes.append(1)
        return super().__iter__()


def test_many_goals_take_no_more_passes_over_the_attempts_than_few(side):
    passes = []
    for count in (10, 200):
        goals = goals_of(count)
        rows = side(goals, *[("failure", "failure", "success")] * count).rows
        sides = Counted(rows=rows, passes=[]), Counted(rows=rows, passes=[])
        assert compare(*sides, goals).metrics[CHANGE].value == 0
        passes.append([len(one.passes) for one in sides])
    assert passes[0] == passes[1] and max(passes[0]) < 20
