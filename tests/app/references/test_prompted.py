"""``system:FILE.txt#MODEL``: the prompt stands in every chat and in the identity, and is checked before."""

from __future__ import annotations

import pytest

from calibrant.app.check import check_study
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import load_study
from calibrant.core import LM, CalibrantError, CapabilityError, Chat, Identity, InputError, OpenLM
from calibrant.models.prompted import Prompted
from calibrant.models.scripted import ScriptedModel

NULL = "testbed:null/tiny?seed=1"


@pytest.fixture
def openers(ledger, tmp_path):
    (tmp_path / "kind.txt").write_text("be kind.\n", encoding="utf-8")
    (tmp_path / "brief.txt").write_text("be brief.", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    return Openers(ledger, base=tmp_path, given={"model": NULL})


def test_the_prompt_stands_before_a_chats_own():
    model = ScriptedModel(lambda chat: "ok", name="m")
    Prompted(model, " be kind. \n").generate([Chat.ask("hi"), Chat.ask("hi", system="be brief.")])
    assert [one.messages[0].content for one in model.seen] == ["be kind.", "be kind.\n\nbe brief."]
    assert [[turn.role for turn in one.messages] for one in model.seen] == [["system", "user"]] * 2
    with pytest.raises(InputError, match="blank"):
        Prompted(model, " ")


@pytest.mark.parametrize("model", [NULL, "given:model"])
def test_it_is_known_before_it_is_loaded(openers, model):
    opened = openers.open(f"system:kind.txt#{model}", LM)
    made = Prompted(openers.open(NULL, LM).load(), "be kind.")
    assert opened.digest == made.identity.digest == opened.load().identity.digest
    chats = [Chat.ask("how do i bake a plain loaf?")]
    assert opened.load().generate(chats) == made.generate(chats)


def test_prompt_and_model_each_make_another(openers):
    named = [f"system:kind.txt#{NULL}", f"system:brief.txt#{NULL}", f"system:kind.txt#{NULL[:-1]}2", NULL]
    assert len({openers.open(name, Identity).digest for name in named}) == 4


@pytest.mark.parametrize(
    "reference",
    ["system:", "system:kind.txt", f"system:#{NULL}", f"system:no.txt#{NULL}", f"system:blank.txt#{NULL}",
     f"system:latin.txt#{NULL}", "system:kind.txt#" * 40 + NULL],
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
        openers.open(f"system:kind.txt#{NULL}", OpenLM)
