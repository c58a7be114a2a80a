"""Questions with two answers: the columns that are read, what is refused, and copies."""

from __future__ import annotations

import json

import pytest

from calibrant.core import InputError
from calibrant.data.readers import read_file
from calibrant.data.rows import Question, Questions, Refused
from calibrant.data.shapes import question_of

PLAIN = {"question": "who?", "correct": "sable", "wrong": "rook"}


@pytest.mark.parametrize(
    "row",
    [
        {**PLAIN, "passage": "clues.", "cluster": "p1"},
        {"question": "who?", "answer": "sable", "foil": "rook", "article": "clues.", "article_id": "p1"},
        {
            "prompt": "who?", "correct_answer": "sable", "distractor": "rook", "context": "clues.",
            "passage_id": "p1",
        },
        {**PLAIN, "story": "clues.", "cluster": "p1", "shown": "", "passage": None},
    ],
)  # fmt: skip
def test_four_ways_to_write_one_question(row):
    found = question_of(3, row, "own")
    assert found == Question(
        id="own:3", question="who?", correct="sable", wrong="rook", passage="clues.", cluster="p1"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"wrong": " sable "}, "equal answers"),
        ({"question": " "}, "empty text"),
        ({"correct": None}, "empty text"),
        ({"correct": ["sable"]}, "wrong type"),
        ({"passage": 7}, "wrong type"),
    ],
)
def test_refused_with_the_reason(change, says):
    found = question_of(1, PLAIN | change)
    assert isinstance(found, Refused)
    assert says in found.reason


def test_numbers_are_answers_too():
    found = question_of(1, {"question": "how many?", "correct": 4, "wrong": 5})
    assert (found.correct, found.wrong) == ("4", "5")


def test_what_is_written_is_read_back_and_copies_are_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [Question(id="a", **PLAIN), Question(id="b", passage="x y", shown="x", cluster="c", **PLAIN)]
    path.write_text("".join(json.dumps(row.model_dump()) + "\n" for row in rows))
    assert read_file(Questions, path).rows == tuple(rows)
    path.write_text("".join(json.dumps({**PLAIN, "id": name}) + "\n" for name in "ab"))
    table = read_file(Questions, path)
    assert [row.id for row in table.rows] == ["a"]
    assert "asks the same as 'a'" in table.refused[0].reason


def test_a_shared_id_is_told_apart_and_no_rows_are_an_error(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({**PLAIN, "id": "a", "question": q}) + "\n" for q in ("1?", "2?")))
    assert [row.id for row in read_file(Questions, path).rows] == ["a", "a:2"]
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_file(Questions, path)
