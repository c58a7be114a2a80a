"""Votes: a file replayed, line by line; what it comes to; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibrant.core import Chat, InputError
from calibrant.data.answers import answer_line, header, undo_line
from calibrant.data.readers import read_file
from calibrant.data.rows import Pair, Preferences
from calibrant.data.votes import (
    Vote,
    Votes,
    comparison_line,
    consensus,
    pair_line,
    pairs_from,
    ratings_of,
    read_comparisons,
    read_votes,
)

PAIRS = Preferences(
    rows=tuple(
        Pair(id=f"q{n}", prompt=Chat.ask(f"what is {n}?"), chosen=f"a{n}", rejected=f"b{n}") for n in range(4)
    ),
    source="made up",
)


def vote(item: str, rater: str = "ann", choice: str = "first", **more: Any) -> Vote:
    return Vote.model_validate({"item": item, "rater": rater, "first": "a", "choice": choice, **more})


def table(*votes: Vote, data: str = "") -> Votes:
    return Votes(rows=votes, source="told", data=data)


def write(path: Path, *lines: bytes | dict[str, Any] | str) -> Path:
    def told(line: bytes | dict[str, Any] | str) -> bytes:
        return (
            line
            if isinstance(line, bytes)
            else (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"
        )

    path.write_bytes(b"".join(told(line) for line in lines))
    return path


@pytest.mark.parametrize(
    ("first", "choice", "winner"),
    [
        ("a", "first", "a"),
        ("a", "second", "b"),
        ("b", "first", "b"),
        ("b", "second", "a"),
        ("a", "both good", "tie"),
        ("b", "both bad", "tie"),
        ("b", "same", "tie"),
    ],
)
def test_the_winner_is_a_side_and_not_a_place(first: str, choice: str, winner: str) -> None:
    assert vote("q", first=first, choice=choice).winner == winner


def test_a_file_is_replayed(tmp_path: Path) -> None:
    """Two votes of ann, the second taken back and given anew; bob in between; a repeat of the first."""
    votes = [vote("q1"), vote("q2", "bob", "both bad"), vote("q2"), vote("q2", choice="second")]
    path = write(
        tmp_path / "v.jsonl",
        header(Vote, PAIRS.digest, "made up"),
        answer_line(votes[0]),
        answer_line(votes[1]),
        answer_line(votes[2]),
        undo_line(votes[2]),
        answer_line(votes[3]),
        answer_line(vote("q1", first="b", choice="second", repeat=True)),
    )
    found = read_votes(path)
    assert found.data == PAIRS.digest
    assert found.rows[:3] == (votes[0], votes[1], votes[3])
    assert found.rows[3].repeat
    assert not found.simulated
    assert ratings_of(found) == [("q1", "ann", "a"), ("q2", "bob", "tie"), ("q2", "ann", "b")]


def test_files_of_two_raters_can_be_joined(tmp_path: Path) -> None:
    one, two = (header(Vote, "d", "x") + answer_line(vote("q1", rater)) for rater in ("ann", "bob"))
    assert len(read_votes(write(tmp_path / "v.jsonl", one, two))) == 2
    with pytest.raises(InputError, match="other comparisons"):
        read_votes(write(tmp_path / "w.jsonl", one, header(Vote, "e", "y")))


GOOD = {"item": "q1", "rater": "ann", "first": "a", "choice": "first"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "v.jsonl:1: malformed JSON"),
        ([{**GOOD, "choice": "frist"}], r"none of: first, second, both good, both bad, same"),
        ([{**GOOD, "choice": "frist"}], r"did you mean 'first'"),
        ([{**GOOD, "first": "left"}], "neither 'a' nor 'b'"),
        (
            [{"item": "q1", "ratr": "ann", "first": "a", "choice": "same"}],
            r"no 'rater' \(did you mean 'ratr'",
        ),
        ([{**GOOD, "rater": " "}], "empty text: 'rater'"),
        ([{**GOOD, "repeat": "maybe"}], "'repeat' must be true"),
        ([GOOD, GOOD], r"v.jsonl:2: rater 'ann' gives a second vote on 'q1'"),
        ([GOOD, {"undo": "q2", "rater": "ann"}], "an undo of 'q2', but the latest vote of 'ann' is on 'q1'"),
        ([GOOD, {"undo": "q1", "rater": "bob"}], "the latest vote of 'bob' is none"),
        ([{"votes": 2, "data": "d"}], "version 2"),
        ([b'{"item": "q\xff"}\n'], "not UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, lines: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_votes(write(tmp_path / "v.jsonl", *lines))
    assert caught.value.hint


def test_people_and_simulated_raters_are_never_mixed(tmp_path: Path) -> None:
    people, made = vote("q1"), vote("q1", "simulated:0")
    path = write(tmp_path / "v.jsonl", answer_line(people), answer_line(made))
    with pytest.raises(InputError, match="mixes votes of people") as caught:
        read_votes(path)
    assert "two files" in caught.value.hint
    assert read_votes(write(tmp_path / "s.jsonl", answer_line(made))).simulated


def test_the_consensus_leads_or_is_a_tie() -> None:
    votes = [
        *(vote("q0", rater) for rater in ("ann", "bob")),
        vote("q0", "cyd", "second"),
        vote("q1"),
        vote("q1", "bob", "second"),
        vote("q2"),
        vote("q2", "bob", "both good"),
        vote("q2", "cyd", "same"),
        vote("q3", choice="second"),
        vote("q3", choice="first", repeat=True),
    ]
    assert consensus(table(*votes)) == {"q0": "a", "q1": "tie", "q2": "tie", "q3": "b"}


def test_pairs_follow_the_consensus() -> None:
    votes = table(vote("q3", choice="second"), vote("q0"), vote("q1", choice="same"), data=PAIRS.digest)
    found = pairs_from(PAIRS, votes)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in found] == [
        ("q0", "a0", "b0"),
        ("q3", "b3", "a3"),
    ]


def test_votes_on_other_data_are_refused() -> None:
    with pytest.raises(InputError, match="'elsewhere' is not among them"):
        pairs_from(PAIRS, table(vote("elsewhere")))
    with pytest.raises(InputError, match="other comparisons"):
        pairs_from(PAIRS, table(vote("q0"), data="0" * 64))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    chat = Chat.ask("hi", system="be brief").then("assistant", "hello").then("user", "and now?")
    odd = Pair(id="odd", prompt=chat, chosen="Human: no\n\nAssistant: yes", rejected=" café ")
    rows = (*PAIRS.rows, odd)
    pairs = read_file(Preferences, write(tmp_path / "p.jsonl", *map(pair_line, rows)))
    assert pairs.rows == rows
    told = json.loads(pair_line(odd))
    assert told["chosen"] == [{"role": "assistant", "content": "Human: no\n\nAssistant: yes"}]
    assert [turn["role"] for turn in told["prompt"]] == ["system", "user", "assistant", "user"]
    assert read_comparisons(write(tmp_path / "c.jsonl", *map(comparison_line, rows))).rows == rows


def test_comparisons_have_sides_or_are_pairs(tmp_path: Path) -> None:
    sides = write(tmp_path / "c.jsonl", {"prompt": "hi", "a": "x", "b": "y", "chosen": "z"})
    assert [(row.chosen, row.rejected) for row in read_comparisons(sides)] == [("x", "y")]
    pairs = write(tmp_path / "p.jsonl", {"prompt": "hi", "chosen": "x", "rejected": "y"})
    assert [(row.chosen, row.rejected) for row in read_comparisons(pairs)] == [("x", "y")]
    with pytest.raises(InputError, match="missing column") as caught:
        read_comparisons(write(tmp_path / "w.jsonl", {"prompt": "hi", "left": "x", "right": "y"}))
    assert "prompt, a and b" in caught.value.hint
