"""Sandwiching on planted answers: what advice brings, over- and under-reliance, and their nulls."""

from __future__ import annotations

import random

import pytest

from calibrant.core import ConfigError, InputError, resolve
from calibrant.core.estimate import impossible
from calibrant.data.human_labels import HumanLabel, HumanLabels
from calibrant.oversee.sandwiching import Sandwiching, sandwiching
from calibrant.testbed.sandwich import open_labels

ALL = ("truth", "alone", "assisted", "expert")


def labels(name, **options):
    return open_labels(name, {key: str(value) for key, value in options.items()})


def compared(names=ALL, **options):
    return sandwiching(**{name: labels(name, **options) for name in names})


def covers(estimate, value=0.0):
    return estimate.low <= value <= estimate.high


def given(name, *rows):
    """Rows of (rater, item, answer) or (rater, item, answer, advice)."""
    made = (
        HumanLabel(
            rater=row[0], id=row[1], human=row[2], condition="" if name == "truth" else name,
            advice=row[3] if len(row) > 3 else "",
        )
        for row in rows
    )  # fmt: skip
    return HumanLabels(rows=tuple(made))


def test_what_was_planted_is_found():
    """600 items, so items' standard errors are about .02; expected: alone .6, advice .8, follows .5."""
    found = compared(n=600, alone=".6", advice=".8", follows=".5", expert=".95").metrics
    assert covers(found["accuracy/alone"], 0.6)
    assert covers(found["accuracy/assisted"], 0.7)
    assert covers(found["accuracy/expert"], 0.95)
    assert covers(found["accuracy/advice"], 0.8)
    assert covers(found["gain"], 0.1)
    assert found["gain"].low > 0
    assert covers(found["gap"], 0.35)
    assert covers(found["gap_recovered"], 0.1 / 0.35)
    assert found["gap_recovered"].low > 0
    assert covers(found["over_reliance_rate"], 0.5)
    assert covers(found["under_reliance_rate"], 0.5)
    assert covers(found["alone_error_rate/wrong_advice"], 0.4)  # the control: they err there anyway
    assert covers(found["assisted_error_rate/wrong_advice"], 0.7)
    assert covers(found["error_change/wrong_advice"], 0.3)
    assert covers(found["error_change/right_advice"], -0.2)
    assert covers(found["reliance"], 0.5)
    assert found["own_change_rate"].value == 0.0
    assert not any(impossible(name, one) for name, one in found.items())


def test_always_right_advice_and_always_following_recover_the_gap():
    found = compared(n=200, advice="1", follows="1", expert="1").metrics
    assert found["accuracy/assisted"].value == 1.0
    assert found["gap_recovered"].value == pytest.approx(1.0)
    assert found["under_reliance_rate"].value == 0.0
    assert found["over_reliance_rate"].value is None
    assert "wrong advice never met" in found["over_reliance_rate"].reason
    assert found["accuracy/advice"].value == 1.0


def test_who_ignores_advice_has_reliance_0():
    found = compared(n=150, follows="0").metrics
    for name in ("reliance", "over_reliance_rate", "gain", "error_change/wrong_advice"):
        assert found[name].value == 0.0
        assert covers(found[name])
    assert found["under_reliance_rate"].value == 1.0
    assert found["gap_recovered"].value == 0.0


def test_a_change_of_mind_without_reason_is_no_reliance():
    """Nobody follows; a fifth of second answers differ, whatever was advised: the plain rate is .2, not 0."""
    found = compared(n=400, follows="0", again=".2").metrics
    assert covers(found["over_reliance_rate"], 0.2)
    assert found["over_reliance_rate"].low > 0
    assert covers(found["own_change_rate"], 0.2)
    assert covers(found["reliance"])


def unseen(p=0.6, right=0.85, n=200, people=6):
    """Answers by lot, twice and independently: nobody sees the advice."""
    rng = random.Random(0)
    truth = {f"{at}": rng.random() < 0.5 for at in range(n)}
    advice = {item: good == (rng.random() < right) for item, good in truth.items()}
    raters = [f"r{at}" for at in range(people)]
    alone, helped = (
        [(r, item, good == (rng.random() < p)) for r in raters for item, good in truth.items()] for _ in "12"
    )
    told = [(*row, "yes" if advice[row[1]] else "no") for row in helped]
    return sandwiching(
        given("truth", *[("k", item, good) for item, good in truth.items()]),
        given("alone", *alone), given("assisted", *told),
    ).metrics  # fmt: skip


def test_who_never_sees_the_advice_does_not_rely_on_it():
    """A wrong answer changes in .6 and a right one in .4: without the split, reliance is .12 to .25."""
    found = unseen()
    assert covers(found["reliance"])
    assert found["reliance"].high - found["reliance"].low < 0.35
    assert covers(found["own_change_rate/was_right"], 0.4)
    assert covers(found["own_change_rate/was_wrong"], 0.6)
    assert covers(found["over_reliance_rate"], found["own_change_rate/was_right"].value)


def uneven(alone, helped):
    """No effect of advice: even items are easy (.95), odd ones a coin. Items that somebody answers by arm."""
    rng = random.Random(1)
    truth = {f"{at}": rng.random() < 0.5 for at in range(100)}

    def answers(who):
        return [
            (f"r{r}", item, good == (rng.random() < (0.5 if int(item) % 2 else 0.95)))
            for r in range(8)
            for item, good in truth.items()
            if who(r, int(item) % 2 == 0)
        ]

    told = [(*row, "no" if truth[row[1]] else "yes") for row in answers(helped)]
    return sandwiching(
        given("truth", *[("k", item, good) for item, good in truth.items()]),
        given("alone", *answers(alone)), given("assisted", *told), given("expert", *[
            ("e", item, good) for item, good in truth.items()
        ]),
    ).metrics  # fmt: skip


def test_each_item_weighs_the_same_in_both_conditions():
    """Easy items mostly alone, hard ones mostly with advice: means over answers differ by .27."""
    found = uneven(lambda r, easy: easy or r < 2, lambda r, easy: not easy or r < 2)
    assert found["accuracy/alone"].value - found["accuracy/assisted"].value > 0.2
    assert covers(found["gain"])
    assert found["gain"].high - found["gain"].low < 0.25
    assert abs(found["gap_recovered"].value) < 0.3
    assert abs(found["gap"].value + found["short_of_expert"].value - found["gain"].value) < 1e-9


def test_an_error_change_is_on_items_that_were_answered_both_ways():
    found = uneven(lambda r, easy: easy, lambda r, easy: True)
    change = found["error_change/wrong_advice"]
    assert covers(change)
    assert change.high - change.low < 0.2
    assert found["assisted_error_rate/wrong_advice"].value > 0.2


def test_nothing_to_compare_is_no_gain():
    """All are unsure alone: two raters' wide interval may not hide that."""
    truth = given("truth", *[("k", f"{at}", True) for at in range(40)])
    alone = given("alone", *[(rater, f"{at}", None) for rater in "ab" for at in range(40)])
    helped = given(
        "assisted", *[(r, f"{at}", r == "a" and at % 9 > 0, "yes") for r in "ab" for at in range(40)]
    )
    gain = sandwiching(truth, alone, helped).metrics["gain"]
    assert gain.value is None
    assert gain.missing == 80
    assert "nothing is left to compare" in gain.reason


def test_advice_on_an_item_may_differ_between_raters():
    """Each item was advised rightly to one and wrongly to the other: half is right, in any order of rows."""
    truth = given("truth", *[("k", f"{at}", True) for at in range(20)])
    rows = [(r, f"{at}", True, "yes" if r == "a" else "no") for r in "ab" for at in range(20)]
    for order in (rows, rows[::-1]):
        assert sandwiching(truth, assisted=given("assisted", *order)).metrics["accuracy/advice"].value == 0.5
    with pytest.raises(InputError, match="the advice on '0' is 'tie'"):
        sandwiching(truth, assisted=given("assisted", ("a", "0", True, "tie")))


@pytest.mark.slow
def test_random_advice_gives_no_gain():
    """People who are right in half, advice too; they follow it in .6. 20 seeds of 150 items and 6 people.

    An interval of 95 % misses 0 with a chance of 5 % at most: five or more of 20 with one of .3 %. Half
    widths of the gain are below .125: a gain of .2 would be missed by fewer than one in ten.
    """
    missed = {"gain": 0, "over": 0}
    for seed in range(20):
        found = compared(seed=seed, alone=".5", advice=".5", follows=".6").metrics
        assert found["gain"].high - found["gain"].low < 0.25
        missed["gain"] += not covers(found["gain"])
        missed["over"] += not covers(found["reliance"], 0.6)
    assert max(missed.values()) < 5


def test_random_advice_costs_those_who_know_more():
    found = compared(n=400, alone=".8", advice=".5", follows=".6").metrics
    assert found["gain"].high < 0
    assert found["gap_recovered"].high < 0


def test_a_gap_that_is_not_resolved_recovers_nothing():
    found = compared(n=60, alone=".9", expert=".92", advice="1", follows="1").metrics
    assert found["gap_recovered"].value is None
    assert found["gap_recovered"].low is None
    assert "gap" in found["gap_recovered"].reason
    assert found["gain"].value is not None


@pytest.mark.parametrize("left", ["alone", "assisted", "expert"])
def test_a_missing_condition_is_unknown(left):
    found = compared(tuple(name for name in ALL if name != left), n=40).metrics
    needs = {
        "alone": ("accuracy/alone", "gain", "gap", "gap_recovered", "over_reliance_rate", "reliance"),
        "assisted": ("accuracy/assisted", "gain", "gap_recovered", "accuracy/advice", "over_reliance_rate"),
        "expert": ("accuracy/expert", "gap", "gap_recovered", "short_of_expert"),
    }[left]
    for name in needs:
        assert found[name].value is None, name
        assert found[name].n > 0
        assert found[name].reason
    for name in {"accuracy/alone", "accuracy/assisted", "accuracy/expert"} - set(needs):
        assert found[name].value is not None


def test_advice_that_is_not_recorded_leaves_reliance_unknown():
    bare = labels("assisted", n=40).rows
    rows = tuple(row.model_copy(update={"advice": "", "condition": ""}) for row in bare)
    result = sandwiching(labels("truth", n=40), labels("alone", n=40), HumanLabels(rows=rows))
    assert result.metrics["gain"].value is not None
    assert result.metrics["over_reliance_rate"].value is None
    assert result.metrics["over_reliance_rate"].reason == "no advice is known"
    assert any("given as assisted do not say their condition" in one for one in result.caveats)


def test_only_items_of_both_conditions_are_compared():
    """Alone the easy half, with advice the hard half, and two items in both."""
    truth = given("truth", *[("k", f"{at}", True) for at in range(10)])
    alone = given("alone", *[(rater, f"{at}", True) for rater in "ab" for at in range(6)])
    helped = given("assisted", *[(rater, f"{at}", at < 5, "yes") for rater in "ab" for at in range(4, 10)])
    found = sandwiching(truth, alone, helped).metrics
    assert found["accuracy/alone"].value == 1.0
    assert found["accuracy/assisted"].value == pytest.approx(1 / 6)
    assert found["gain"].value == pytest.approx(-0.5)
    assert found["gain"].clusters == 2


def test_unsure_is_missing_and_never_wrong():
    truth = given("truth", *[("k", f"{at}", True) for at in range(40)])
    some = [(rater, f"{at}", None if at < 4 else at % 2 == 0) for rater in "abc" for at in range(40)]
    found = sandwiching(truth, given("alone", *some)).metrics["accuracy/alone"]
    assert found.missing == 12
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.3
    silent = given("alone", *[(rater, f"{at}", None) for rater in "abc" for at in range(40)])
    none = sandwiching(truth, silent).metrics["accuracy/alone"]
    assert none.value is None
    assert (none.low, none.high) == (0.0, 1.0)


def test_annotators_who_differ_widen_the_interval_and_copies_do_not_narrow_it():
    """Six people of whom three are always right and three always wrong: .5, and nobody knows the next."""
    truth = given("truth", *[("k", f"{at}", True) for at in range(100)])
    split = given("alone", *[(rater, f"{at}", rater < "d") for rater in "abcdef" for at in range(100)])
    even = given("alone", *[(rater, f"{at}", at % 2 == 0) for rater in "abcdef" for at in range(100)])
    apart, alike = (sandwiching(truth, one).metrics["accuracy/alone"] for one in (split, even))
    assert apart.high - apart.low > 0.9
    assert 0.17 < alike.high - alike.low < 0.25  # that of 100 items, not of 600 answers


def test_one_annotator_says_nothing_of_others():
    truth = given("truth", *[("k", f"{at}", True) for at in range(30)])
    one = given("alone", *[("a", f"{at}", at % 3 > 0) for at in range(30)])
    found = sandwiching(truth, one)
    assert "one annotator" in found.metrics["accuracy/alone"].reason
    planted = [(f"{at}", at % 5 < 3, at % 5 < 4) for at in range(200)]
    three = sandwiching(
        given("truth", *[("k", item, True) for item, _, _ in planted]),
        given("alone", *[("a", item, alone) for item, alone, _ in planted]),
        given("assisted", *[("a", item, helped, "yes") for item, _, helped in planted]),
        given("expert", *[("e", item, True) for item, _, _ in planted]),
    )
    assert three.metrics["gap_recovered"].value == pytest.approx(0.5)
    assert "one annotator" in three.metrics["gap_recovered"].reason
    assert any("fewer than three annotators (alone)" in caveat for caveat in found.caveats)


@pytest.mark.slow
def test_intervals_cover_over_seeds():
    """30 seeds: an interval of 95 % misses with a chance of 5 % at most, six or more of 30 with .3 %."""
    missed = dict.fromkeys(("accuracy/alone", "gain", "gap_recovered", "over_reliance_rate"), 0)
    expected = {"accuracy/alone": 0.6, "gain": 0.1, "gap_recovered": 0.1 / 0.35, "over_reliance_rate": 0.5}
    for seed in range(30):
        found = compared(seed=seed, n=200, alone=".6", advice=".8", follows=".5", expert=".95").metrics
        for name, value in expected.items():
            missed[name] += not covers(found[name], value)
    assert max(missed.values()) < 6


def test_bad_input():
    truth, alone = labels("truth", n=5), labels("alone", n=5)
    with pytest.raises(InputError, match="no condition is given"):
        sandwiching(truth)
    with pytest.raises(InputError, match="'assisted' holds an answer of the condition 'alone'"):
        sandwiching(truth, assisted=alone)
    with pytest.raises(InputError, match="no answer of 'alone' is on an item"):
        sandwiching(given("truth", ("k", "x", True)), alone)
    with pytest.raises(InputError, match="two truths of 'x'"):
        sandwiching(given("truth", ("k", "x", True), ("l", "x", False)), given("alone", ("a", "x", True)))
    with pytest.raises(InputError, match="simulated"):
        sandwiching(truth, alone, given("assisted", ("ann", "i0", True, "yes")))
    with pytest.raises(InputError, match="twice in 'alone'"):
        sandwiching(given("truth", ("k", "x", True)), given("alone", ("a", "x", True), ("a", "x", False)))
    with pytest.raises(ConfigError, match="level"):
        resolve(Sandwiching, {"level": 1.0})


def test_figures():
    accuracy, errors = compared(n=30).figure_data()
    assert [datum.label for datum in accuracy.values] == [
        "alone",
        "with advice",
        "experts",
        "the advice itself",
    ]
    assert {datum.stage for datum in errors.values} == {"alone", "with advice"}
