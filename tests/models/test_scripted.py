from __future__ import annotations

import pytest

from calibrant.core import LM, Chat, Completion, InputError, OpenLM, Sampling, ScoringLM
from calibrant.models.scripted import ScriptedModel, ScriptedScoring

A, B = Chat.ask("first"), Chat.ask("second")


def test_queued_replies_come_in_order_across_calls() -> None:
    model = ScriptedModel(["one", Completion(text="", stop="error", error="planned"), "three"])
    assert isinstance(model, LM) and not isinstance(model, ScoringLM)
    first, second = model.generate([A, B])
    (third,) = model.generate([A], Sampling(temperature=1.0))
    assert (first.text, first.stop) == ("one", "eos")
    assert (second.stop, second.error) == ("error", "planned")
    assert third.text == "three"
    assert model.seen == [A, B, A]


def test_computed_replies_see_the_chat() -> None:
    model = ScriptedModel(lambda chat: chat.last_user.upper())
    assert [c.text for c in model.generate([A, B])] == ["FIRST", "SECOND"]


def test_running_out_is_loud() -> None:
    model = ScriptedModel(["only"])
    with pytest.raises(InputError, match=r"run out: chat 2 .'second'") as caught:
        model.generate([A, B])
    assert caught.value.hint
    assert model.seen == [A, B]


def test_what_is_no_reply_is_loud() -> None:
    with pytest.raises(InputError, match="NoneType"):
        ScriptedModel(lambda chat: None).generate([A])  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="one text"):
        ScriptedModel("abc")


def test_identity_follows_the_script() -> None:
    one, same, other = ScriptedModel(["a"]), ScriptedModel(iter(["a"])), ScriptedModel(["b"])
    assert one.identity.digest == same.identity.digest != other.identity.digest
    before = one.identity.digest
    one.generate([A])
    assert one.identity.digest == before
    assert ScriptedModel(str, name="x").identity.digest != ScriptedModel(str, name="y").identity.digest


def test_scoring_is_a_function_of_chat_and_reply() -> None:
    model = ScriptedScoring(ScriptedModel(["a", "b"]), lambda chat, reply: -float(len(reply)))
    assert isinstance(model, ScoringLM) and not isinstance(model, OpenLM)
    assert [s.total for s in model.logprobs([A, B], ["xy", "xyz"])] == [-2.0, -3.0]
    assert [c.text for c in model.generate([A, B])] == ["a", "b"]
    with pytest.raises(ValueError, match="shorter"):
        model.logprobs([A, B], ["x"])
