"""`calibrant annotate QUEUE.jsonl`: single replies in the terminal."""

from __future__ import annotations

import io
import sys

import pytest

from calibrant.cli.annotate import LABELS, annotate
from calibrant.core import Chat, InputError
from calibrant.data.files import raw_rows
from calibrant.data.human_labels import Queued, labels_from, queue_line


@pytest.fixture
def sit(tmp_path, monkeypatch, capsys):
    queue = tmp_path / "queue.jsonl"
    rows = [
        Queued(id=f"q{i}", goal="brew a zorble", chat=Chat.ask(f"ask {i}"), reply="\x1b[2J la" if i else "")
        for i in range(3)
    ]
    queue.write_bytes(b"".join(map(queue_line, rows)))

    def sat(*typed, **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        annotate(queue, tmp_path / "labels.jsonl", **{"rater": "ann", **options})
        return capsys.readouterr().out

    return sat


def test_a_sitting_to_the_end(sit, tmp_path):
    shown = sit("y", "what?", "n", "u", "s", "n")
    labels = labels_from(raw_rows(tmp_path / "labels.jsonl"), "x")
    assert [label.human for label in labels] == [True, None, False]
    assert "not understood: what?" in shown
    assert "3 of 3 labelled by ann" in shown
    assert "(the reply is empty)" in shown
    assert "wanted: brew a zorble" in shown


def test_a_reply_cannot_steer_the_terminal(sit):
    assert "\x1b" not in sit("q")


def test_it_goes_on_where_it_stopped_and_tells_of_two_raters(sit):
    assert "1 of 3 labelled" in sit("y")
    sit("n", "n")
    shown = sit("y", "n", "n", rater="bo")
    assert "between raters: " in shown


def test_keys_are_yes_no_and_unsure():
    assert set(LABELS.values()) == {True, False, None}


def test_pairs_make_no_sense_of_a_queue(sit, tmp_path):
    with pytest.raises(InputError, match="queue of single replies"):
        sit(pairs=tmp_path / "pairs.jsonl")
