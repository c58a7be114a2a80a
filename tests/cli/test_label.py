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


# With advice


@pytest.fixture
def advice(tmp_path):
    path = tmp_path / "advice.jsonl"
    path.write_text(
        '{"id": "q0", "advice": "yes", "text": "it \\u001b[2J hums."}\n{"id": "q2", "advice": null}\n'
    )
    return str(path)


def test_advice_is_shown_beside_each_reply_and_written_with_the_answer(sit, tmp_path, advice):
    shown = sit("y", "n", "y", assist=advice)
    assert shown.count("[advice]") == 3
    assert shown.count("none on this one") == 2
    assert "yes\nit " in shown
    assert "\x1b" not in shown
    rows = {row.id: row for row in labels_from(raw_rows(tmp_path / "labels.jsonl"), "x")}
    assert {row.condition for row in rows.values()} == {"assisted"}
    assert {name: row.advice for name, row in rows.items()} == {"q0": "yes", "q1": "", "q2": ""}
    assert "3 of 3 labelled" in sit(assist=advice)  # the same command goes on


def test_how_many_rows_have_advice_is_told(sit, advice):
    assert "there is advice on 1 of 3 rows" in sit("y", assist=advice)


def test_advice_on_none_of_the_rows_is_refused_and_nothing_is_written(sit, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"id": "z0", "advice": "yes"}\n')
    with pytest.raises(InputError, match="the advice is on none of the rows"):
        sit("y", assist=str(path))
    assert not (tmp_path / "labels.jsonl").exists()


def test_nobody_goes_on_with_other_advice(sit, tmp_path, advice):
    sit("y", assist=advice)
    path = tmp_path / "advice.jsonl"
    with path.open("a") as file:  # on no row: the same advice
        file.write('{"id": "z0", "advice": "yes"}\n')
    sit("y", assist=advice)
    path.write_text('{"id": "q0", "advice": "no"}\n')
    with pytest.raises(InputError, match="begun with other advice"):
        sit("y", assist=advice)


def test_no_advice_without_being_asked_for(sit, tmp_path):
    assert "[advice]" not in sit("y", condition="alone")
    assert labels_from(raw_rows(tmp_path / "labels.jsonl"), "x").rows[0].condition == "alone"


def test_a_file_has_one_condition(sit, advice):
    sit("y")
    with pytest.raises(InputError, match="the condition 'not said', and this one is 'assisted'"):
        sit("y", assist=advice)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"condition": "helped"}, "no condition 'helped'"),
        ({"condition": "assisted"}, "goes with --assist"),
        ({"condition": "alone", "assist": "x"}, "goes without --assist"),
        ({"assist": "nowhere"}, "no job 'nowhere'"),
        ({"assist": "record:nowhere/advice.jsonl"}, "no job 'nowhere'"),
    ],
)
def test_conditions_that_make_no_sense(sit, tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        sit("y", ledger=tmp_path / "ledger", **options)
