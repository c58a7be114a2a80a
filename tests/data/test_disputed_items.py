"""Items with wrong answers and clusters: read, written back, and without a trace where there are none."""

from __future__ import annotations

import json

from calibrant.core import Chat
from calibrant.data.readers import read_file
from calibrant.data.rows import Item, Items


def test_wrong_answers_are_read_from_a_cell_or_a_list_and_read_back(tmp_path):
    path = tmp_path / "items.jsonl"
    rows = [
        {"question": "what is the capital?", "answer": "Paris", "wrong": ["Lyon", 3], "cluster": "france"},
        {"question": "is it?", "answer": "yes", "wrong": "no"},
        {"question": "how many?", "answer": 3},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_file(Items, path)
    assert [row.wrong for row in read] == [("Lyon", "3"), ("no",), ()]
    assert [row.cluster for row in read] == ["france", "", ""] and not read.unused
    path.write_text("".join(json.dumps(row.model_dump(mode="json")) + "\n" for row in read))
    assert read_file(Items, path).rows == read.rows


def test_an_item_without_them_is_the_data_that_it_was():
    written = Item(id="a", chat=Chat.ask("q"), answer="x").model_dump(mode="json")
    assert set(written) == {"id", "chat", "answer", "kind", "match"}


def test_a_wrong_answer_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"question": "q?", "answer": "x", "wrong": [["y"]]}\n{"question": "r?", "answer": "x"}\n'
    )
    read = read_file(Items, path)
    assert len(read) == 1 and "wrong" in read.refused[0].reason
