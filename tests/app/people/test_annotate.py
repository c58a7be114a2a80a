"""A session without a terminal: blind, resumable, undoable, and what a broken file or disk does to it."""

from __future__ import annotations

import errno
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from calibrant.app.people.annotate import GAP, Session, export_pairs, plan
from calibrant.core import Chat, InputError
from calibrant.data.answers import answer_line, header
from calibrant.data.readers import read_file
from calibrant.data.rows import Pair, Preferences
from calibrant.data.votes import Vote, read_votes


def comparisons(n: int = 20, *, word: str = "") -> Preferences:
    rows = [
        Pair(id=f"q{i}", prompt=Chat.ask(f"{word}question {i}?"), chosen=f"good {i}", rejected=f"poor {i}")
        for i in range(n)
    ]
    return Preferences(rows=tuple(rows), source="made up")


def prefer_good(session: Session, most: int | None = None) -> int:
    """Vote for what reads 'good', wherever it stands; return how many votes that took."""
    given = 0
    while (most is None or given < most) and (shown := session.next()):
        session.vote("first" if shown.first.startswith("good") else "second")
        given += 1
    return given


# The plan


@pytest.mark.parametrize("n", [1, 2, 3, 20, 200])
@pytest.mark.parametrize("repeats", [0.0, 0.2, 1.0])
def test_every_comparison_once_and_a_share_again_later_and_swapped(n: int, repeats: float) -> None:
    made = plan(n, repeats, random.Random(0))
    first = {one.row: (at, one.first) for at, one in enumerate(made) if not one.repeat}
    again = [(at, one) for at, one in enumerate(made) if one.repeat]
    assert sorted(first) == list(range(n))
    assert len(again) == min(round(repeats * n), n - min(GAP, n // 2))
    assert len({one.row for _, one in again}) == len(again)
    for at, one in again:
        assert at - first[one.row][0] >= min(GAP, n // 2)
        assert one.first != first[one.row][1]


def test_sides_and_order_are_by_lot() -> None:
    made = plan(2000, 0.0, random.Random(1))
    assert 900 < Counter(one.first for one in made)["a"] < 1100
    assert [one.row for one in made] != sorted(one.row for one in made)


# A session


def test_what_is_shown_says_nothing_about_which_side_it_is(tmp_path: Path) -> None:
    table = comparisons()
    with Session(table, tmp_path / "v.jsonl", "ann", repeats=0.5) as session:
        starts = []
        while shown := session.next():
            assert shown._fields == ("prompt", "first", "second", "advice")
            assert shown.advice is None
            starts.append(shown.first[:4])
            session.vote("same")
    assert len(starts) == session.total == 30
    assert set(starts) == {"good", "poor"}


def test_the_voter_who_knows_is_recorded_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(), path, "ann", repeats=0.5) as session:
        assert prefer_good(session) == 30
        found = session.consistency()
    assert (found.value, found.n, found.unit) == (1.0, 10, "repeat")
    votes = read_votes(path)
    assert {vote.winner for vote in votes} == {"a"}
    assert {vote.first for vote in votes} == {"a", "b"}
    first = {vote.item: vote.first for vote in votes if not vote.repeat}
    assert all(vote.first != first[vote.item] for vote in votes if vote.repeat)


def test_a_voter_for_the_first_place_contradicts_himself(tmp_path: Path) -> None:
    """Repeats are swapped, so a habit of place shows as no agreement at all."""
    with Session(comparisons(), tmp_path / "v.jsonl", "ann", repeats=0.5) as session:
        while session.next():
            session.vote("first")
        assert session.consistency().value == 0.0


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """Cut anywhere and opened anew, the showings are those of one session."""
    path, whole = tmp_path / "v.jsonl", []
    with Session(comparisons(), tmp_path / "w.jsonl", "ann") as session:
        while shown := session.next():
            whole.append(shown)
            session.vote("second")
    seen = []
    for _ in range(len(whole)):
        with Session(comparisons(), path, "ann") as session:
            assert session.done == len(seen)
            seen.append(session.next())
            session.vote("second")
    with Session(comparisons(), path, "ann") as session:
        assert session.next() is None
    assert seen == whole
    assert path.read_bytes() == (tmp_path / "w.jsonl").read_bytes()


def test_another_seed_midway_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(), path, "ann", repeats=0.3) as session:
        prefer_good(session, most=9)
    with Session(comparisons(), path, "ann", seed=7, repeats=0.3) as session:
        prefer_good(session)
        assert session.consistency().value == 1.0
    votes = read_votes(path)
    first = {vote.item: vote.first for vote in votes if not vote.repeat}
    assert len(first) == 20
    assert all(vote.first != first[vote.item] for vote in votes if vote.repeat)


def test_an_undo_is_a_line_and_brings_the_showing_back(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(3), path, "ann", repeats=0.0) as session:
        assert not session.undo()
        shown = session.next()
        session.vote("both good")
        assert session.next() != shown
        assert session.undo()
        assert session.next() == shown
        assert session.done == 0
        session.vote("both bad")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(line)[0] for line in lines] == ["data", "choice", "rater", "choice"]
    assert [vote.choice for vote in read_votes(path)] == ["both bad"]


def test_an_undo_reaches_back_over_a_restart_but_not_to_another_rater(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    for rater in ("ann", "bob"):
        with Session(comparisons(3), path, rater) as session:
            session.vote("first")
    with Session(comparisons(3), path, "ann") as session:
        assert session.undo()
        assert not session.undo()
    assert [vote.rater for vote in read_votes(path)] == ["bob"]


def test_raters_see_their_own_order_and_agree_or_not(tmp_path: Path) -> None:
    path, orders = tmp_path / "v.jsonl", []
    for rater in ("ann", "bob"):
        with Session(comparisons(), path, rater, repeats=0.0) as session:
            orders.append(session.next())
            prefer_good(session)
            found = session.agreement()
    assert orders[0] != orders[1]
    assert (found.value, found.n) == (1.0, 20)


def test_only_a_choice_is_taken(tmp_path: Path) -> None:
    with Session(comparisons(1), tmp_path / "v.jsonl", "ann") as session:
        with pytest.raises(InputError, match="no choice 'left'") as caught:
            session.vote("left")  # type: ignore[arg-type]
        assert "both good" in caught.value.hint
        session.vote("same")
        with pytest.raises(InputError, match="nothing left"):
            session.vote("same")
        assert session.consistency().value is None


# What breaks


@pytest.mark.parametrize(
    ("rater", "repeats", "said"),
    [("simulated:1", 0.1, "cannot be called"), ("  ", 0.1, "cannot be called"), ("ann", 1.5, "not a share")],
)
def test_a_bad_start_leaves_no_file(tmp_path: Path, rater: str, repeats: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Session(comparisons(), tmp_path / "v.jsonl", rater, repeats=repeats)
    assert not list(tmp_path.iterdir())


def test_votes_on_other_data_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(), path, "ann") as session:
        session.vote("first")
    before = path.read_bytes()
    with pytest.raises(InputError, match="is about other comparisons") as caught:
        Session(comparisons(word="another "), path, "ann")
    assert "new file" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "hi", "a": "x", "b": "y"}',
        '{"item": "q0", "rater": "x", "first": "a", "choice": "same"}\n',
    ],
)
def test_a_file_that_is_no_file_of_votes_is_left_alone(tmp_path: Path, text: str) -> None:
    """The data itself given as --votes; votes without a header."""
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    with pytest.raises(InputError):
        Session(comparisons(), path, "ann")
    assert path.read_text() == text


def test_a_file_of_simulated_votes_takes_no_person(tmp_path: Path) -> None:
    path, table = tmp_path / "v.jsonl", comparisons()
    made = Vote(item="q0", rater="simulated:0", first="a", choice="same")
    path.write_bytes(header(Vote, table.digest, "x") + answer_line(made))
    with pytest.raises(InputError, match="simulated raters"):
        Session(table, path, "ann")


def test_two_sittings_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(), path, "ann"), pytest.raises(InputError, match="is being written by another"):
        Session(comparisons(), path, "bob")
    with Session(comparisons(), path, "bob") as session:
        session.vote("same")


@pytest.mark.parametrize("lost", range(1, 40))
def test_a_line_cut_by_a_kill_was_never_given(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(), path, "ann") as session:
        prefer_good(session, most=3)
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    with Session(comparisons(), path, "ann") as session:
        assert session.done == (3 if lost == 1 else 2)  # the newline alone says nothing
        prefer_good(session, most=4 - session.done)
    assert len(read_votes(path)) == 4
    assert path.read_bytes().startswith(data if lost == 1 else data[: data[:-1].rfind(b"\n")])


def test_a_file_whose_first_line_a_kill_cut_short_is_new(tmp_path: Path) -> None:
    path, table = tmp_path / "v.jsonl", comparisons()
    first = header(Vote, table.digest, table.source)
    for size in range(len(first)):
        path.write_bytes(first[:size])
        with Session(table, path, "ann") as session:
            session.vote("same")
        assert path.read_bytes().startswith(first)
        assert len(read_votes(path)) == 1


def test_a_full_disk_loses_the_vote_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "v.jsonl"
    with Session(comparisons(), path, "ann") as session:
        session.vote("first")
        before, shown, write = path.read_bytes(), session.next(), os.write

        def full(handle: int, data: bytes) -> int:
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(handle, data[:-15])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(InputError, match="disk full") as caught:
                session.vote("second")
        assert "what is finished is kept" in caught.value.hint
        assert path.read_bytes() == before
        assert session.next() == shown
        session.vote("second")
    assert [vote.choice for vote in read_votes(path)] == ["first", "second"]


@pytest.mark.parametrize("name", ["v.txt", "missing/v.jsonl", "."])
def test_a_place_that_cannot_hold_votes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        Session(comparisons(), tmp_path / name, "ann")
    assert caught.value.hint


# Pairs


def test_pairs_are_what_the_raters_agree_on(tmp_path: Path) -> None:
    """Ann and bob prefer the good side; cyd calls the first five showings ties; q9 is nobody's."""
    path, out, table = tmp_path / "v.jsonl", tmp_path / "pairs.jsonl", comparisons(10)
    for rater in ("ann", "bob"):
        with Session(table, path, rater, repeats=0.0) as session:
            while shown := session.next():
                if shown.prompt.last_user == "question 9?":
                    session.vote("both bad")
                else:
                    session.vote("first" if shown.first.startswith("good") else "second")
    assert export_pairs(table, path, out) == (9, 1, 0)
    found = read_file(Preferences, out)
    assert found.rows == table.rows[:9]
    with Session(table, tmp_path / "w.jsonl", "ann") as session:
        session.vote("same")
    assert export_pairs(table, tmp_path / "w.jsonl", out) == (0, 1, 9)
