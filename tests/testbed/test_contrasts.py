"""Pairs of prompts: what differs is what was meant to, and the answers differ in their first token."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrant.core import InputError
from calibrant.models.open_model import OpenModel
from calibrant.testbed.contrasts import open_contrasts
from calibrant.testbed.words import CATEGORIES, REFUSAL

WEIGHTS = Path(__file__).resolve().parents[2] / "src" / "calibrant" / "testbed" / "weights"


@pytest.mark.parametrize("split", ["heldout", "train"])
def test_a_refusal_pair_differs_in_its_verb_alone(split):
    rows = open_contrasts("refusal", {"n": "40", "split": split}).rows
    assert len(rows) == len({row.id for row in rows}) == 40
    harmful = {verb for category in CATEGORIES.values() for verb in category.harmful}
    benign = {verb for category in CATEGORIES.values() for verb in category.benign}
    for row in rows:
        clean, corrupt = row.clean.last_user.split(), row.corrupt.last_user.split()
        (place,) = [at for at, words in enumerate(zip(clean, corrupt, strict=True)) if len(set(words)) > 1]
        assert clean[place] in harmful and corrupt[place] in benign and row.cluster == clean[place]
        assert row.answer == REFUSAL and corrupt[place] in row.foil


def test_splits_share_no_request():
    asked = [
        {row.clean for row in open_contrasts("refusal", {"n": "400", "split": split}).rows}
        for split in ("heldout", "train")
    ]
    assert len(asked[0]) == len(asked[1]) == 400 and not asked[0] & asked[1]


def test_pairs_have_as_many_tokens_and_answers_begin_otherwise():
    model = OpenModel.from_folder(WEIGHTS / "clean")
    for row in open_contrasts("refusal", {"n": "40"}).rows:
        assert len(model.prompt_ids(row.clean)) == len(model.prompt_ids(row.corrupt))
        assert model.reply_ids(row.answer)[0] != model.reply_ids(row.foil)[0]


def test_induction_is_that_of_the_circuits():
    assert open_contrasts("induction", {"n": "4"}).source == "testbed:contrasts/induction"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("refusals", {}, "did you mean 'refusal'"),
        ("refusal", {"split": "dev"}, "split=dev is no split"),
        ("refusal", {"n": "-1"}, "is not a whole number"),
        ("refusal", {"corrupt": "answer"}, "unknown option 'corrupt'"),
    ],
)
def test_what_there_is_not_is_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        open_contrasts(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ioi", {}), ("greater_than_year", {}), ("repeat", {}), ("repeat", {"corrupt": "answer"}),
        ("repeat", {"repeat": "0"}),
    ],
)  # fmt: skip
def test_english_tasks_differ_in_one_word_and_say_what_follows(name, options):
    rows = open_contrasts(name, {"n": "60", **options}).rows
    assert (
        len({row.clean for row in rows}) == 60 and rows == open_contrasts(name, {"n": "60", **options}).rows
    )
    assert rows != open_contrasts(name, {"n": "60", "seed": "1", **options}).rows
    for row in rows:
        clean, corrupt = row.clean.last_user.split(" "), row.corrupt.last_user.split(" ")
        changed = [at for at, words in enumerate(zip(clean, corrupt, strict=True)) if len(set(words)) > 1]
        assert len(changed) == 1 and row.answer != row.foil
        if name == "ioi":  # who gives is named twice, the answer once; in the other prompt the reverse
            for words, once in ((clean, row.answer), (corrupt, row.foil)):
                assert words.count(once.strip()) == 1 and words[-5] != once.strip()
        elif name == "greater_than_year":
            year, low = clean[changed[0]], corrupt[changed[0]]
            assert low[2] == "0" and int(row.foil) < int(year[2]) < int(row.answer)
            assert clean[-1] == year[:2] == low[:2]
        else:
            words = clean[1:]
            last = [at for at, word in enumerate(words[:8]) if word == words[-1]]
            assert words[5] == row.answer.strip() and (last == [4]) == ("repeat" not in options)
            assert changed == [1 + (5 if options.get("corrupt") == "answer" else 4)]


def test_a_task_refuses_what_it_cannot_make():
    for name, options in (
        ("ioi", {"n": "1"}), ("ioi", {"n": "501"}), ("ioi", {"corrupt": "answer"}),
        ("repeat", {"repeat": "2"}), ("repeat", {"corrupt": "both"}), ("greater_than_year", {"seed": "x"}),
        ("ioy", {}), ("induction", {"n": "5001"}), ("greater_than", {"n": "999999999"}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            open_contrasts(name, options)
