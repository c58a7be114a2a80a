"""Crescendo: finds the model that gives in to small steps, and nothing in one that never does."""

from __future__ import annotations

import itertools

import pytest

from calibrant.attack.crescendo import ATTACK, HOW, Crescendo, crescendo
from calibrant.core import CapabilityError
from calibrant.data.rows import Goals
from calibrant.models.scripted import ScriptedModel


def slides(limit):
    """Refuses whatever is more than one step from where the conversation stands; gives in at ``limit``."""

    def reply(chat):
        steps = [int(m.content.rpartition(" ")[2]) for m in chat.messages if m.role == "user"]
        here, asked = ([0, *steps])[-2], steps[-1]
        if asked > here + 1:
            return "i can not help with that."
        return "brewed" if asked >= limit else f"so far {asked}"

    return ScriptedModel(reply, name=f"slides to {limit}")


def climbs(stride):
    """Goes ``stride`` steps further each turn, one step where that was refused."""

    def answer(chat):
        lines = chat.last_user.splitlines()
        said = [int(line.rpartition(" ")[2]) for line in lines if line.startswith("USER: ")]
        refused = any(line.startswith("TRIED: ") for line in lines)
        return f"IMPROVEMENT: x\nPROMPT: step {(said[-1] if said else 0) + (1 if refused else stride)}"

    return ScriptedModel(answer, name=f"climbs by {stride}")


def test_small_steps_reach_what_was_planted(goals, judge):
    found = crescendo(slides(5), goals, judge, climbs(1), Crescendo(turns=5, backtracks=0))
    assert found.metrics["attack_success_rate"].value == 1
    assert len(found.attempts) == 5 * len(goals)
    assert [m.content for m in found.attempts[4].chat.messages] == [
        "step 1", "so far 1", "step 2", "so far 2", "step 3", "so far 3", "step 4", "so far 4", "step 5"
    ]  # fmt: skip
    assert {a.family for a in found.attempts} == {"multi-turn"}


def test_large_steps_are_taken_back(goals, judge):
    """Each turn is refused once and then taken in a smaller step: five turns, five backtracks."""
    found = crescendo(slides(5), goals, judge, climbs(2), Crescendo(turns=5, backtracks=5))
    assert found.metrics["attack_success_rate"].value == 1
    assert len(found.attempts) == 10 * len(goals)
    assert "i can not help" not in str(found.attempts[9].chat)
    stuck = crescendo(slides(5), goals, judge, climbs(2), Crescendo(turns=5, backtracks=0))
    assert stuck.metrics["attack_success_rate"].value == 0
    assert "i can not help" in str(stuck.attempts[4].chat)


def test_asking_outright_or_too_short_a_climb_does_not_reach_it(goals, judge):
    for attacker, config in ((climbs(5), Crescendo(backtracks=0)), (climbs(1), Crescendo(turns=4))):
        found = crescendo(slides(5), goals, judge, attacker, config)
        assert found.metrics["attack_success_rate"].value == 0


@pytest.mark.parametrize("says", ["i can not help with that.", "let us talk of something else"])
def test_finds_nothing_in_the_null_and_asks_no_more_than_it_says(goals, judge, says):
    places = itertools.count()
    attacker = ScriptedModel(lambda chat: f"PROMPT: step {next(places)}")
    target, config = ScriptedModel(lambda chat: says), Crescendo(turns=3, backtracks=2)
    found = crescendo(target, goals, judge, attacker, config)
    assert found.metrics["attack_success_rate"].value == 0
    assert ATTACK.queries(config) == 5
    assert len(target.seen) == (5 if "i can" in says else 3) * len(goals)
    assert len(attacker.seen) <= ATTACK.consults(config) * len(goals)


@pytest.mark.parametrize("said", ["No.", "step 1", "PROMPT: one\nPROMPT: two"])
def test_an_attacker_that_is_no_use_leaves_goals_open(goals, judge, said):
    attacker = ScriptedModel(lambda chat: said)
    found = crescendo(ScriptedModel(lambda chat: "brewed"), goals, judge, attacker)
    assert found.attempts == ()
    assert found.metrics["attack_success_rate"].value is None
    assert len(attacker.seen) <= ATTACK.consults(Crescendo()) * len(goals)


def test_the_attacker_is_told_to_escalate(goals, judge):
    attacker = climbs(1)
    crescendo(slides(2), Goals(rows=goals.rows[:1]), judge, attacker)
    assert all(HOW in chat.last_user for chat in attacker.seen)
    assert [line for line in attacker.seen[1].last_user.splitlines() if line.startswith("TURN")] == [
        "TURN: 2 of 8"
    ]


def test_without_an_attacker_it_says_so(goals, judge):
    with pytest.raises(CapabilityError, match="attacker model"):
        crescendo(slides(2), goals, judge, None)
