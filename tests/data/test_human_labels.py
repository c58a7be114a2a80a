"""Labels of people: a file that only grows, replayed; and the queue that is labelled."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, InputError
from calibrant.data.answers import answer_line, header, undo_line
from calibrant.data.files import raw_rows
from calibrant.data.human_labels import (
    HumanLabel,
    Queued,
    consensus,
    is_queue,
    labels_from,
    queue_line,
    read_queue,
)


def of(*rows):
    return labels_from(list(enumerate(rows, start=1)), "labels.jsonl")


def test_a_bare_list_will_do():
    labels = of({"id": "a", "human": True}, {"id": "b", "human": "no"}, {"id": "c", "human": None})
    assert [(x.id, x.human, x.rater) for x in labels] == [("a", True, ""), ("b", False, ""), ("c", None, "")]
    assert labels.data == ""


def test_lines_are_replayed_with_their_undos(tmp_path):
    first, second = HumanLabel(id="a", human=True, rater="ann"), HumanLabel(id="b", human=None, rater="ann")
    path = tmp_path / "labels.jsonl"
    path.write_bytes(
        header(HumanLabel, "d" * 64, "queue.jsonl")
        + answer_line(first)
        + answer_line(second)
        + undo_line(second)
    )
    labels = labels_from(raw_rows(path), str(path))
    assert labels.rows == (first,)
    assert labels.data == "d" * 64


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "a"}], "no 'human'"),
        ([{"human": True}], "no 'id'"),
        ([{"id": "a", "human": "perhaps"}], "'human' must be"),
        ([{"id": "a", "human": True}, {"id": "a", "human": True}], "a second label on 'a'"),
        ([{"undo": "a", "rater": "ann"}], "is none"),
        ([{"labels": 2, "data": "x"}], "version 2"),
        ([{"labels": 1, "data": "x"}, {"labels": 1, "data": "y"}], "other replies"),
        ([{"id": "a", "human": 1}, {"id": "b", "human": 1, "rater": "simulated:x"}], "mixes labels"),
    ],
)
def test_what_cannot_be_replayed_is_an_error(rows, said):
    with pytest.raises(InputError, match=said):
        of(*rows)


def test_consensus_leaves_a_draw_open():
    said = [
        ("a", True),
        ("a", True),
        ("a", False),
        ("b", True),
        ("b", False),
        ("c", None),
        ("d", False),
        ("d", None),
    ]
    labels = of(*({"id": i, "human": h, "rater": f"r{n}"} for n, (i, h) in enumerate(said)))
    assert consensus(labels) == {"a": True, "b": None, "c": None, "d": False}


QUEUED = Queued(id="a", goal="brew a zorble", chat=Chat.ask("how?"), reply="")


def test_a_queue_survives_the_disk(tmp_path):
    path = tmp_path / "queue.jsonl"
    path.write_bytes(queue_line(QUEUED))
    assert is_queue(path)
    assert read_queue(path).rows == (QUEUED,)


@pytest.mark.parametrize(
    "extra", [b'{"id": "a", "chat": "x", "reply": "y"}\n', b'{"id": "b", "chat": "x"}\n', b"{\n"]
)
def test_a_queue_with_a_bad_row_is_refused(tmp_path, extra):
    path = tmp_path / "queue.jsonl"
    path.write_bytes(queue_line(QUEUED) + extra)
    with pytest.raises(InputError, match=r"queue\.jsonl:2"):
        read_queue(path)


def test_two_outputs_are_no_queue(tmp_path):
    path = tmp_path / "outputs.jsonl"
    path.write_text('{"prompt": "x", "a": "1", "b": "2", "reply": "3"}\n')
    assert not is_queue(path)
