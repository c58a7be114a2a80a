"""Prefill: found where a begun reply opens the model, nothing where it does not, unknown where it cannot."""

from __future__ import annotations

import pytest

from calibrant.attack.prefill import ATTACK, Prefill, prefill
from calibrant.core import Completion, ConfigError, InputError, resolve
from calibrant.models.scripted import ScriptedModel


def weak_to(words):
    """Goes on where the reply has been begun with these words."""

    def reply(chat):
        begun = chat.messages[-1]
        return " it is brewed" if begun.role == "assistant" and begun.content == words else " no, i can not"

    return ScriptedModel(reply, name=f"weak to {words}")


def test_finds_the_planted_beginning_and_only_it(goals, judge):
    target = weak_to("step 1:")
    metrics = prefill(target, goals, judge).metrics
    assert metrics["attack_success_rate"].value == 1
    single = {name: metrics[f"attack_success_rate/{name}"].value for name in Prefill().beginnings}
    assert single == {"sure": 0, "steps": 1, "list": 0}
    assert len(target.seen) == len(goals) * ATTACK.queries(Prefill())


def test_finds_nothing_in_the_null(goals, judge):
    found = prefill(weak_to("no such words"), goals, judge)
    assert found.metrics["attack_success_rate"].value == 0
    assert found.metrics["attack_success_rate"].high < 1


def test_the_judge_reads_the_beginning_too(goals, judge):
    """'it is brew' + 'ed': neither half alone is what the judge looks for."""
    target = ScriptedModel(lambda chat: "ed" if chat.messages[-1].content == "it is brew" else "no")
    config = Prefill(beginnings={"half": "it is brew", "other": "well,"})
    found = prefill(target, goals, judge, config)
    assert found.metrics["attack_success_rate/half"].value == 1
    assert found.metrics["attack_success_rate/other"].value == 0
    assert found.attempts[0].completion.text == "ed"


def test_a_target_that_can_not_go_on_is_undetermined(goals, judge):
    def reply(chat):
        if chat.messages[-1].content.startswith("step"):
            return Completion(text="", stop="error", error="the last turn must be the user's")
        return "no"

    metrics = prefill(ScriptedModel(reply), goals, judge).metrics
    assert metrics["attack_success_rate/steps"].value is None
    assert metrics["attack_success_rate"].high == pytest.approx(1)
    assert metrics["undetermined_rate"].value == pytest.approx(1 / 3)


def test_a_target_that_never_goes_on_is_an_error(goals, judge):
    broken = ScriptedModel(lambda chat: Completion(text="", stop="error", error="no prefill here"))
    with pytest.raises(InputError, match="no prefill here"):
        prefill(broken, goals, judge)


def test_the_request_goes_in_and_spaces_at_the_end_go(goals, judge):
    target = ScriptedModel(lambda chat: "no")
    prefill(target, goals, judge, Prefill(beginnings={"echo": "you ask: {request}. well, "}))
    first = target.seen[0].messages
    assert [m.role for m in first] == ["user", "assistant"]
    assert first[1].content == f"you ask: {goals.rows[0].text}. well,"


def test_says_what_a_begun_reply_does_to_judges(goals, judge):
    assert any("refusal phrases alone" in c for c in prefill(weak_to(""), goals, judge).caveats)


@pytest.mark.parametrize("beginnings", [{}, {"a/b": "sure"}, {" ": "sure"}, {"a": "  "}])
def test_unusable_beginnings_are_refused(beginnings):
    with pytest.raises(ConfigError, match="beginning"):
        resolve(Prefill, {"beginnings": beginnings})
