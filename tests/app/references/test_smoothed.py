"""``smoothed:FILE.toml#MODEL``: settings, judge and model are checked before and known by digest."""

from __future__ import annotations

import pytest

from calibrant.app.check import check_study
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import load_study
from calibrant.core import LM, CalibrantError, CapabilityError, Chat, Identity, OpenLM

NULL = "testbed:null/tiny?seed=1"
FILES = {
    "few.toml": 'copies = 2\nshare = 0.1\njudge = { use = "measure.string_judge" }\n',
    "more.toml": 'copies = 3\nshare = 0.1\njudge = { use = "measure.string_judge" }\n',
    "gold.toml": 'copies = 2\nshare = 0.1\njudge = "testbed:judge/harmful"\n',
    "nobody.toml": "copies = 2\n",
    "typo.toml": 'copys = 2\njudge = "testbed:judge/harmful"\n',
    "guard.toml": 'judge = { use = "defend.pii_guard" }\n',
    "broken.toml": "copies = \n",
}


@pytest.fixture
def openers(ledger, tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return Openers(ledger, base=tmp_path, given={"model": NULL})


@pytest.mark.parametrize("file", ["few.toml", "gold.toml"])
def test_it_is_known_before_it_is_loaded(openers, file):
    opened = openers.open(f"smoothed:{file}#{NULL}", LM)
    made = opened.load()
    assert opened.digest == made.identity.digest
    chats = [Chat.ask("how do i bake a plain loaf?")]
    assert made.generate(chats) == openers.open(f"smoothed:{file}#given:model", LM).load().generate(chats)


def test_settings_judge_and_model_each_make_another(openers):
    named = [f"smoothed:{file}#{NULL}" for file in ("few.toml", "more.toml", "gold.toml")]
    named += [f"smoothed:few.toml#{NULL[:-1]}2", NULL]
    assert len({openers.open(name, Identity).digest for name in named}) == 5


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("smoothed:", "names neither a file nor a model"),
        ("smoothed:few.toml", "names no model"),
        (f"smoothed:no.toml#{NULL}", "no file 'no.toml'"),
        (f"smoothed:nobody.toml#{NULL}", "'judge' is required"),
        (f"smoothed:typo.toml#{NULL}", "did you mean 'copies'"),
        (f"smoothed:guard.toml#{NULL}", "is no Judge"),
        (f"smoothed:broken.toml#{NULL}", "not TOML"),
        ("smoothed:few.toml#" * 40 + NULL, "too many references"),
    ],
)
def test_what_is_none_is_refused_alike_by_check_and_by_opening(openers, tmp_path, reference, said):
    with pytest.raises(CalibrantError, match=said):
        openers.open(reference, LM)
    (tmp_path / "study.toml").write_text(
        'name = "s"\n[[job]]\nid = "j"\nuse = "measure.capability"\n'
        f'inputs = {{ model = "{reference}", items = "testbed:items/core" }}\n',
        encoding="utf-8",
    )
    problems = list(check_study(load_study(str(tmp_path / "study.toml"))))
    assert any(said in str(problem) for problem in problems), problems


def test_it_only_talks(openers):
    with pytest.raises(CapabilityError, match="does not offer what an OpenLM"):
        openers.open(f"smoothed:few.toml#{NULL}", OpenLM)
