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
