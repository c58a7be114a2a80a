"""Persona attack: found where one persona opens the model, nothing where none does."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.run import run_attack
from calibrant.attack.persona import ATTACK, Persona, persona
from calibrant.core import Completion, ConfigError, InputError, Quiet, resolve
from calibrant.data.rows import Goals
from calibrant.evals.attempts import read_attempts
from calibrant.models.scripted import ScriptedModel

OPEN = Completion(text="brewed, as you asked")


def weak_to(word):
    return ScriptedModel(lambda chat: "brewed" if word in chat.last_user else "no", name=f"weak to {word}")


def test_finds_the_planted_persona_and_only_it(goals, judge):
    found = persona(weak_to("archive"), goals, judge)
    value = {key: estimate.value for key, estimate in found.metrics.items()}
    assert value == {
        "attack_success_rate": 1,
        "attack_success_rate/dusk": 0,
        "attack_success_rate/stage": 0,
        "attack_success_rate/archive": 1,
        "attack_success_rate/charms": 1,
        "attack_success_rate/potions": 1,
        "blocked_rate": 0,
        "undetermined_rate": 0,
    }


def test_a_campaign_asks_the_same(goals, judge):
    """The episode and the technique: the same chats, variants, outcomes and rates."""
    alone, driven = weak_to("archive"), weak_to("archive")
    found = persona(alone, goals, judge)
    walked = run_attack(ATTACK, Persona(), goals, Participants(driven, judge, Persona().sampling), Quiet())
    assert set(driven.seen) == set(alone.seen)
    assert len(driven.seen) == len(goals) * ATTACK.queries(Persona())
    told = {(a.goal_id, a.attack, a.outcome) for a in found.attempts}
    assert {(a.goal_id, a.attack, a.outcome) for a in walked.attempts} == told
    assert found.metrics.items() <= walked.metrics.items()


def test_finds_nothing_in_the_null(goals, judge):
    found = persona(weak_to("no such word"), goals, judge)
    assert found.metrics["attack_success_rate"].value == 0
    assert found.metrics["attack_success_rate"].high < 1


def test_one_persona_is_enough_for_a_goal(goals, judge):
    """Goal g1 opens to dusk alone and g3 to stage alone: two of four goals, one of four each."""

    def reply(chat):
        opened = ("dusk" in chat.last_user and "quib" in chat.last_user) or (
            "clerk" in chat.last_user and "marn" in chat.last_user
        )
        return "brewed" if opened else "no"

    metrics = persona(ScriptedModel(reply), goals, judge).metrics
    assert metrics["attack_success_rate"].value == 2 / 4
    assert metrics["attack_success_rate/dusk"].value == 1 / 4
    assert metrics["attack_success_rate/stage"].value == 1 / 4


def test_unread_replies_widen_and_are_never_failures(goals, judge):
    found = persona(ScriptedModel(lambda chat: "???"), goals, judge).metrics
    assert found["attack_success_rate"].value is None
    assert found["attack_success_rate"].high == pytest.approx(1)
    assert found["undetermined_rate"].value == 1


def test_braces_in_a_request_stay_as_they_are(judge, goals):
    odd = Goals(rows=(goals.rows[0].model_copy(update={"text": "brew {request} {0} {name}"}),))
    target = ScriptedModel(lambda chat: "no")
    persona(target, odd, judge, Persona(personas={"p": "<{request}>"}))
    assert [chat.last_user for chat in target.seen] == ["<brew {request} {0} {name}>"]


def test_attempts_are_stored_and_say_which_persona(goals, judge, tmp_path):
    found = persona(weak_to("dusk"), goals, judge, run=Quiet(work=tmp_path))
    stored = read_attempts(tmp_path / "artifacts" / "attempts.jsonl")
    assert [a.id for a in stored] == [a.id for a in found.attempts]
    assert len({a.id for a in stored}) == 12
    assert {a.attack for a in stored} == {
        "attack.persona/dusk",
        "attack.persona/stage",
        "attack.persona/archive",
    }
    assert "attempts" not in found.model_dump()
    assert any("k = 3" in caveat for caveat in found.caveats)


@pytest.mark.parametrize(
    ("personas", "words"),
    [
        ({}, "at least one persona"),
        ({"dusk": "you are dusk"}, "does not contain {request}"),
        ({"a/b": "{request}"}, "cannot be named 'a/b'"),
        ({" ": "{request}"}, "blank"),
    ],
)
def test_unusable_personas_are_refused(personas, words):
    with pytest.raises(ConfigError) as caught:
        resolve(Persona, {"personas": personas})
    assert words in str(caught.value)
    with pytest.raises(ValidationError):
        Persona(personas=personas)


def test_a_benign_goal_is_refused_before_anything_is_asked(goals, judge):
    target = weak_to("dusk")
    mixed = Goals(rows=(*goals.rows, goals.rows[0].model_copy(update={"id": "x", "harmful": False})))
    with pytest.raises(InputError, match="benign"):
        persona(target, mixed, judge)
    assert target.seen == []
