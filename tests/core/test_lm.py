"""Chats, scores and identities."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from calibrant.core import LM, Chat, Identity, Message, OpenLM, Sampling, Scored, ScoringLM
from calibrant.models.scripted import ScriptedModel, ScriptedScoring


def test_chat():
    chat = Chat.ask("hello", system="be kind").then("assistant", "hi").then("user", "bye")
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "be kind"), ("user", "hello"), ("assistant", "hi"), ("user", "bye"),
    ]  # fmt: skip
    assert chat.last_user == "bye"
    assert chat.then("assistant", "so long").last_user == "bye"
    assert Chat(messages=(Message(role="assistant", content="hm"),)).last_user == ""


def test_an_empty_system_message_is_still_one():
    assert len(Chat.ask("x", system="").messages) == 2
    assert len(Chat.ask("x").messages) == 1


def test_then_leaves_the_chat_alone():
    chat = Chat.ask("hello")
    chat.then("assistant", "hi")
    assert len(chat.messages) == 1


def test_total():
    assert Scored(ids=(1, 2), logprobs=(-0.5, -1.25)).total == -1.75
    assert Scored(ids=(), logprobs=()).total == 0.0


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_sampling_is_checked(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


def test_identity_is_over_kind_and_parts_not_the_name():
    one = Identity(name="a", parts={"weights": "1", "template": "2"})
    assert one.digest == Identity(name="b", parts={"template": "2", "weights": "1"}).digest
    assert one.digest == "64b69649d7a19aaa82d5b35d6baf9cdb758aac58fd4262078d5ceff44e16b33e"
    assert one.digest != Identity(name="a", kind="guard", parts=one.parts).digest
    assert one.digest != Identity(name="a", parts=one.parts | {"weights": "3"}).digest


def test_rungs():
    talks = ScriptedModel(["x"])
    scores = ScriptedScoring(talks, lambda chat, reply: -1.0)
    assert isinstance(talks, LM)
    assert not isinstance(talks, ScoringLM)
    assert isinstance(scores, ScoringLM)
    assert not isinstance(scores, OpenLM)
