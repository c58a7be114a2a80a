"""Advice beside rows: where it is read from, what it never shows, and what is no advice."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Chat, InputError
from calibrant.data.advice import Advised, advice_from
from calibrant.data.answers import answer_line, header, undo_line
from calibrant.data.files import raw_rows
from calibrant.data.human_labels import HumanLabel, labels_from
from calibrant.data.rows import Pair
from calibrant.data.votes import Vote, votes_from

YES_NO, SIDES = ("yes", "no"), ("a", "b", "tie")


def read(tmp_path, *rows, answers=YES_NO, pairs=()):
    path = tmp_path / "advice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return advice_from(raw_rows(path), "advice.jsonl", answers, pairs)


def verdict(answer, reason=""):
    return {"question": "q?", "answer": answer, "reason": reason}


@pytest.mark.parametrize(
    ("row", "says", "text"),
    [
        ({"advice": "yes", "text": "it helps."}, "yes", "it helps."),
        ({"advice": "No"}, "no", ""),
        ({"advice": True}, "yes", ""),
        ({"advice": None, "text": "hm."}, "", "hm."),
        ({"advice": "unsure"}, "", ""),
        ({"verdicts": {"j": verdict("yes", "it helps.")}}, "yes", "yes: it helps."),
        ({"verdicts": {"j": verdict("unknown", "it is cut.")}}, "", "unknown: it is cut."),
        ({"verdicts": {"j": verdict("yes"), "k": verdict("no")}}, "", "yes\nno"),
        ({"verdicts": {"j": verdict("no"), "k": verdict("no")}}, "no", "no\nno"),
    ],
)
def test_what_is_read(tmp_path, row, says, text):
    assert read(tmp_path, {"id": "q1", **row}) == {"q1": Advised(says=says, text=text)}


def test_a_critique_says_what_it_quotes_and_never_what_was_planted(tmp_path):
    rows = (
        {"id": "1", "flaw": "hay", "named": False, "quotes": ["red"], "reply": "red is wrong."},
        {"id": "2", "flaw": "hay", "named": True, "quotes": [], "reply": "nothing is wrong."},
        {"id": "3", "flaw": "", "named": None, "quotes": [], "reply": None},
    )
    found = read(tmp_path, *rows)
    assert [found[name].says for name in "123"] == ["yes", "no", ""]
    assert all("hay" not in one.text for one in found.values())


def test_pairs_advise_the_side_that_they_prefer(tmp_path):
    ask = Chat.ask("q?")
    compared = [Pair(id=name, prompt=ask, chosen=f"x{name}", rejected=f"y{name}") for name in "1235"]
    rows = [
        {"id": "1", "prompt": "q?", "chosen": "x1", "rejected": "y1"},
        {"id": "2", "prompt": "q?", "chosen": "y2", "rejected": "x2"},
        {"id": "3", "prompt": "q?", "chosen": "x3", "rejected": "another"},
        {"id": "4", "prompt": "q?", "chosen": "x", "rejected": "y"},
        {"id": "5", "prompt": "another?", "chosen": "x5", "rejected": "y5"},
    ]
    found = read(tmp_path, *rows, answers=SIDES, pairs=compared)
    assert [found[name].says for name in "12345"] == ["a", "b", "", "", ""]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"advice": "yes"}], "1: no 'id'"),
        ([{"id": "1"}], "1: it holds no advice"),
        ([{"id": "1", "advice": "a"}], "the advice is 'a'"),
        ([{"id": "1", "advice": "yes"}, {"id": "1", "advice": "no"}], "2: a second advice on '1'"),
        ([{"id": "1", "verdicts": {"j": "yes"}}], "the verdict of 'j'"),
        ([{"id": "1", "chosen": "x", "rejected": "y", "prompt": "q?"}], "it holds no advice"),
    ],
)
def test_what_is_no_advice_says_why(tmp_path, rows, says):
    with pytest.raises(InputError, match=says):
        read(tmp_path, *rows)


def test_no_rows():
    with pytest.raises(InputError, match="holds no advice"):
        advice_from([], "x", YES_NO)


# Answers with their condition


def lines(*rows):
    return [(at, json.loads(row)) for at, row in enumerate(rows, 1)]


def test_condition_and_advice_are_written_and_read_back_and_old_files_are_read():
    old, new = HumanLabel(id="1", human=True, rater="ann"), HumanLabel(
        id="2", human=None, rater="ann", condition="assisted", advice="no"
    )  # fmt: skip
    assert answer_line(old) == b'{"human":true,"id":"1","rater":"ann"}\n'
    assert labels_from(lines(header(HumanLabel, "d", "s"), answer_line(old), answer_line(new)), "x").rows == (
        old,
        new,
    )
    vote = Vote(item="1", rater="ann", first="a", choice="first", condition="assisted", advice="b")
    assert votes_from(lines(answer_line(vote)), "x").rows == (vote,)
    assert not votes_from(lines(answer_line(vote), undo_line(vote)), "x").rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"condition": "helped"}, "'condition' is 'helped'"),
        ({"condition": "assisted", "advice": "a"}, "'advice' is 'a'"),
        ({"condition": "alone", "advice": "yes"}, "the condition is 'alone'"),
        ({"advice": "yes"}, "the condition is 'not said'"),
    ],
)
def test_bad_circumstances(change, says):
    with pytest.raises(InputError, match=says):
        labels_from([(1, {"id": "1", "human": True, "rater": "ann", **change})], "x")


def test_blank_circumstances_say_nothing():
    row = {"id": "1", "human": True, "rater": "ann", "condition": "", "advice": None}
    assert labels_from([(1, row)], "x").rows[0].condition == ""
