"""``reminder:FILE.txt#MODEL``: the text stands around each last request, and in the identity."""

from __future__ import annotations

import pytest

from calibrant.app.check import check_study
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import load_study
from calibrant.core import LM, CalibrantError, CapabilityError, Chat, Identity, InputError, OpenLM
from calibrant.models.reminded import Reminded
from calibrant.models.scripted import ScriptedModel

NULL = "testbed:null/tiny?seed=1"
TEXT = "be good.\n{request}\nremember: good."


@pytest.fixture
def openers(ledger, tmp_path):
    (tmp_path / "good.txt").write_text(f"{TEXT}\n", encoding="utf-8")
    (tmp_path / "kind.txt").write_text("be kind. {request}", encoding="utf-8")
    (tmp_path / "none.txt").write_text("be kind.", encoding="utf-8")
    (tmp_path / "alone.txt").write_text(" {request}\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 {request}")
    return Openers(ledger, base=tmp_path, given={"model": NULL})


def test_the_last_request_stands_between_the_reminders_and_nothing_else_changes():
    model = ScriptedModel(lambda chat: "ok")
    chats = [
        Chat.ask("zorble {request}?"),
        Chat.ask("one", system="s").then("assistant", "well").then("user", "two").then("assistant", "so"),
        Chat(messages=()),
        Chat.ask(""),
    ]
    assert [reply.text for reply in Reminded(model, TEXT).generate(chats)] == ["ok"] * 4
    seen = [[turn.content for turn in chat.messages] for chat in model.seen]
    assert seen == [
        ["be good.\nzorble {request}?\nremember: good."],
        ["s", "one", "well", "be good.\ntwo\nremember: good.", "so"],
        [],
        ["be good.\n\nremember: good."],
    ]


def test_what_is_no_reminder_is_refused():
    for text in ("be good", "{request}", " {request} \n", "{request} and {request}", ""):
        with pytest.raises(InputError, match="the reminder holds"):
            Reminded(ScriptedModel([]), text)


def test_a_model_that_heeds_reminders_is_defended_and_one_that_does_not_is_not():
    """Planted: a model that refuses when it is reminded. Null: one that reads nothing but the request."""
    heeds = ScriptedModel(lambda chat: "no" if "remember" in chat.last_user else "sure")
    deaf = ScriptedModel(lambda chat: "sure" if "zorble" in chat.last_user else "no")
    asked = [Chat.ask(f"how is zorble {n} made?") for n in range(20)]
    for model, before, after in ((heeds, 20, 0), (deaf, 20, 20)):
        assert [r.text for r in model.generate(asked)].count("sure") == before
        assert [r.text for r in Reminded(model, TEXT).generate(asked)].count("sure") == after


@pytest.mark.parametrize("model", [NULL, "given:model"])
def test_it_is_known_before_it_is_loaded(openers, model):
    opened = openers.open(f"reminder:good.txt#{model}", LM)
    made = Reminded(openers.open(NULL, LM).load(), TEXT)
    assert opened.digest == made.identity.digest == opened.load().identity.digest
    chats = [Chat.ask("how do i bake a plain loaf?")]
    assert opened.load().generate(chats) == made.generate(chats)


def test_text_and_model_each_make_another(openers):
    named = [f"reminder:{file}#{NULL}" for file in ("good.txt", "kind.txt", "self_reminder.txt")]
    named += [f"reminder:good.txt#{NULL[:-1]}2", NULL]
    assert len({openers.open(name, Identity).digest for name in named}) == 5


@pytest.mark.parametrize(
    "reference",
    ["reminder:", "reminder:good.txt", f"reminder:#{NULL}", f"reminder:no.txt#{NULL}",
     f"reminder:none.txt#{NULL}", f"reminder:alone.txt#{NULL}", f"reminder:latin.txt#{NULL}",
     "reminder:good.txt#" * 40 + NULL],
)  # fmt: skip
def test_what_is_none_is_refused_alike_by_check_and_by_opening(openers, tmp_path, reference):
    with pytest.raises(CalibrantError) as caught:
        openers.open(reference, LM)
    (tmp_path / "study.toml").write_text(
        'name = "s"\n[[job]]\nid = "j"\nuse = "measure.capability"\n'
        f'inputs = {{ model = "{reference}", items = "testbed:items/core" }}\n',
        encoding="utf-8",
    )
    problems = list(check_study(load_study(str(tmp_path / "study.toml"))))
    assert any(str(caught.value.message) in str(problem) for problem in problems), problems


def test_it_only_talks(openers):
    with pytest.raises(CapabilityError, match="does not offer what an OpenLM"):
        openers.open(f"reminder:good.txt#{NULL}", OpenLM)
