"""The rule judge: strings as planted canaries, and patterns that must or must not stand."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, Completion, ConfigError, Goal
from calibrant.measure.judges.rule import RuleJudge, rule_judge


def said(text, stop="eos", **config):
    (verdict,) = rule_judge(RuleJudge(**config)).judge(
        [Goal(id="g", text="?")], [Chat.ask("?")], [Completion(text=text, stop=stop, error="gone")]
    )
    return verdict


def test_a_canary_is_found_letter_by_letter_wherever_it_stands():
    canary = ("canary-7f3A",)
    assert said("so: xcanary-7f3Ax, yes", exact=canary).answer == "yes"
    assert said("so: canary-7f3a, no", exact=canary).answer == "no"
    assert said("", exact=canary).answer == "no", "nothing came out, so the canary did not"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Brew the ZORBLE now", "yes"),
        ("brew nothing", "no"),
        ("zorble alone", "no"),
        ("brew the zorble, sorry", "no"),
        ("brew a quib", "yes"),
    ],
)
def test_any_all_none(text, answer):
    config = {"any_of": (r"\bzorble\b", "quib"), "all_of": ("brew",), "none_of": ("sorry",)}
    assert said(text, **config).answer == answer


def test_any_is_met_by_an_exact_string_or_a_pattern():
    config = {"exact": ("K7",), "any_of": ("quib",)}
    assert [said(t, **config).answer for t in ("K7", "quib", "k7")] == ["yes", "yes", "no"]


def test_case_can_matter():
    assert said("ZORBLE", any_of=("zorble",), ignore_case=False).answer == "no"


def test_nothing_bad_in_an_empty_reply_is_no_answer():
    assert said("  ", none_of=("sorry",)).answer == "unknown"
    assert said("hello", none_of=("sorry",)).answer == "yes"


def test_an_error_is_unknown_whatever_text_it_came_with():
    assert said("zorble", stop="error", any_of=("zorble",)).answer == "unknown"


def test_a_hostile_pattern_and_text_take_no_time():
    assert said("a" * 50_000 + "b", any_of=("((((a+)+)+)+)+$",)).answer == "no"


def test_no_rule_a_blank_one_and_one_that_is_not_re2_are_refused():
    with pytest.raises(ConfigError, match="without a rule"):
        rule_judge()
    with pytest.raises(ValueError, match="blank"):
        RuleJudge(exact=(" ",))
    with pytest.raises(ConfigError) as caught:
        rule_judge(RuleJudge(any_of=("(?=x)",), none_of=("[",)))
    assert len(caught.value.problems) == 2
