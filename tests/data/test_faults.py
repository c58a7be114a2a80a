"""Faults of pairs: each one planted is found by its id, and clean rows give none."""

from __future__ import annotations

import pytest

from calibrant.core import Chat
from calibrant.data.faults import TEXT_CHECKS, leaks, odd_text, repeated
from calibrant.data.rows import Pair, Preferences, Refused


def pair(name: str, prompt: str = "", chosen: str = "yes", rejected: str = "no") -> Pair:
    return Pair(id=name, prompt=Chat.ask(prompt or f"is it {name}?"), chosen=chosen, rejected=rejected)


def table(*rows: Pair, refused: tuple[Refused, ...] = ()) -> Preferences:
    return Preferences(rows=rows, source="planted", refused=refused)


CLEAN = (
    pair("c1"),
    pair("c2", chosen="naïve café, 5 & 6 < 7"),
    pair("c3", chosen="\u0645\u06cc\u200c\u0631\u0648\u0645", rejected="なし"),
)


def found(rows: Preferences) -> dict[str, list[str]]:
    """Kind -> ids."""
    checks = {**TEXT_CHECKS, "odd text": odd_text}
    return {kind: ids for kind, check in checks.items() if (ids := [one.id for one in check(rows)])}


def test_a_clean_set_gives_none() -> None:
    assert found(table(*CLEAN)) == {}


def test_each_planted_fault_is_found_where_it_is() -> None:
    rows = (
        *CLEAN,
        pair("empty", rejected=" \n"),
        pair("equal", chosen="maybe", rejected="maybe "),
        pair("copy", "is it c1?"),
        pair("turned", "is it c2?", "no", "naïve café, 5 & 6 < 7"),
    )
    refused = (Refused(line=9, reason="malformed JSON: x"),)
    assert found(table(*rows, refused=refused)) == {
        "refused": ["line 9"],
        "empty": ["empty"],
        "equal": ["equal"],
        "duplicate": ["copy"],
        "contradiction": ["c2", "turned"],
    }


def test_a_third_row_contradicts_both_copies() -> None:
    """Two rows say yes, one says no: all three are named, and the second yes is also a copy."""
    rows = table(pair("x", "?"), pair("y", "?"), pair("z", "?", "no", "yes"), pair("w", "!", "no", "yes"))
    assert found(rows) == {"duplicate": ["y"], "contradiction": ["x", "y", "z"]}
    assert [[row.id for row in group] for group in repeated(rows)] == [["x", "y", "z"]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("caf\ufffd", "replacement"),
        ("cafÃ©", "Latin-1"),
        ("itâ€™s", "Latin-1"),
        ("5Â£", "Latin-1"),
        ("a\x00b", "control"),
        ("a\x1b[2J", "control"),
        ("a\u200bb", "invisible"),
        ("\ufeffa", "invisible"),
        ("this &amp; that", "HTML"),
        ("it&#39;s", "HTML"),
    ],
)
def test_traces_of_a_broken_encoding(text: str, what: str) -> None:
    rows = table(*CLEAN, pair("odd", chosen=text))
    (one,) = odd_text(rows)
    assert one.id == "odd"
    assert what in one.detail
    assert "in chosen:" in one.detail


def test_special_tokens_in_a_text() -> None:
    rows = table(*CLEAN, Pair(id="s", prompt=Chat.ask("a <end>"), chosen="b <pad> c", rejected="d"))
    assert not list(odd_text(rows))
    (one,) = odd_text(rows, ["<end>", "<pad>", ""])
    assert (one.id, one.kind) == ("s", "odd text")
    assert "prompt, chosen" in one.detail


def test_held_out_prompts_that_training_saw() -> None:
    train = table(pair("t1", "how do i mend the old red barn by the mill today?"), pair("t2"))
    held = table(
        pair("h1", "How do I mend the old red barn by the mill today"),
        pair("h2", "how do i mend the old red barn by the river today?"),
        pair("h3", "where is the moon?"),
    )
    assert [one.id for one in leaks(train, held, 0.9)] == ["h1"]
    assert [one.id for one in leaks(train, held, 0.4)] == ["h1", "h2"]
    assert "that of 't1'" in next(leaks(train, held, 0.9)).detail
