"""Multiple-choice questions: the files of Perez et al. as they are, own columns, and what is refused."""

from __future__ import annotations

import json

import pytest

from calibrant.core import InputError
from calibrant.data.choices import Choice, Choices
from calibrant.data.readers import read_file
from calibrant.data.rows import Refused
from calibrant.data.shapes import choice_of

LETTERS = {
    "question": "Question: May we?\n\nChoices:\n (A) Never,\n  ever.\n (B) Yes\n (C) It depends.\n\nAnswer:",
    "answer_matching_behavior": " (B)",
    "answer_not_matching_behavior": [" (A)"],
}
STATEMENT = {
    "question": 'Is the following statement something you would say?\n"I like (A) and (B)"',
    "answer_matching_behavior": " No",
    "answer_not_matching_behavior": " Yes",
}
OWN = {"question": "May we?", "options": ["no", "yes", "later"], "matching": "later", "not_matching": ["no"]}


def shaped(row, **changes):
    return choice_of(4, row | changes, "power")


def test_options_are_taken_out_of_the_question():
    row = shaped(LETTERS)
    assert (row.question, row.options) == ("May we?", ("Never, ever.", "Yes", "It depends."))
    assert (row.matching, row.not_matching, row.trait, row.id) == (1, (0,), "power", "power:4")


def test_a_statement_is_answered_yes_or_no_and_keeps_its_own_brackets():
    row = shaped(STATEMENT)
    assert row.options == ("Yes", "No") and (row.matching, row.not_matching) == (1, (0,))
    assert row.question.endswith('"I like (A) and (B)"')


def test_columns_of_ones_own():
    row = shaped(OWN, trait="shutdown", cluster="permission", id="q7")
    assert (row.matching, row.not_matching) == (2, (0,))
    assert (row.trait, row.cluster, row.id) == ("shutdown", "permission", "q7")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (LETTERS | {"answer_matching_behavior": " (D)"}, "no such option: '(D)'"),
        (LETTERS | {"answer_matching_behavior": " (A)"}, "must be different places"),
        (LETTERS | {"answer_matching_behavior": [" (A)", " (B)"]}, "several answers"),
        (LETTERS | {"question": "May we?\n\nChoices:\n (B) no\n (A) yes"}, "in this order"),
        (LETTERS | {"question": "May we?"}, "neither a column 'options'"),
        (LETTERS | {"question": "\n\nChoices:\n (A) no\n (B) yes"}, "empty text"),
        (OWN | {"options": ["later", "no", "No"]}, "two options are the same"),
        (OWN | {"options": ["later", "no", "no."]}, "two options are the same"),
        (OWN | {"options": ["later", "no", " "]}, "empty text"),
        (OWN | {"options": "later"}, "no such option"),
        ({"question": "May we?"}, "missing column: no 'matching'"),
    ],
)
def test_what_is_no_choice_is_refused_with_its_reason(row, reason):
    refused = choice_of(4, row, "power")
    assert isinstance(refused, Refused) and refused.line == 4 and reason in refused.reason


def test_a_copy_is_refused_in_whatever_order_its_options_stand(tmp_path):
    path = tmp_path / "power.jsonl"
    rows = [OWN, OWN | {"options": ["yes", "later", "no"]}, OWN | {"question": "May we now?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = read_file(Choices, path)
    assert len(table) == 2 and "copy" in table.refused[0].reason and table.rows[0].trait == "power"


def test_places_outside_the_options_are_no_row():
    with pytest.raises(ValueError, match="different places"):
        Choice(id="a", question="q?", options=("a", "b"), matching=0, not_matching=(2,))


@pytest.mark.real
def test_every_file_of_model_written_evals_is_read(real_data):
    """Needs the public files; skipped, with that reason, where $CALIBRANT_DATA is not set."""
    counts = {}
    for path in sorted((real_data / "model_written_evals").glob("*.jsonl")):
        table = read_file(Choices, path)
        counts[path.stem] = (len(table), len(table.refused))
        assert {row.trait for row in table} == {path.stem}
    assert len(counts) == 10 and sum(lost for _, lost in counts.values()) == counts["survival-instinct"][1]
    assert counts["power-seeking-inclination"] == (998, 0)
    assert counts["survival-instinct"][1] < 0.06 * sum(counts["survival-instinct"])


def test_a_file_of_other_rows_says_what_is_wanted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "hello"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="none of 1 rows can be read as Choices"):
        read_file(Choices, path)


@pytest.mark.parametrize("options", [("", "y"), (" ", "y"), ("Yes", "Yes."), ("so  be it", "So be it")])
def test_options_that_no_reply_could_tell_apart_are_refused_in_python_too(options):
    with pytest.raises(ValueError, match=r"blank|the same"):
        Choice(id="1", question="q?", options=options, matching=0, not_matching=(1,))
