"""Rows are kept whole or left out whole, and the count says so."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, InputError
from calibrant.data.rows import Example, Examples, Pair, Preferences
from calibrant.models.fitting import dropped, fitting, length

PROMPT = Chat.ask("The cat")
SHORT, LONG = "sat", "sat on the mat and the dog sat on the log"


def pairs(*sides):
    rows = [Pair(id=str(i), prompt=PROMPT, chosen=a, rejected=b) for i, (a, b) in enumerate(sides)]
    return Preferences(rows=tuple(rows), source="mats")


def both(row):
    return [row.chosen, row.rejected]


def test_length_is_that_of_the_encoded_row(lm):
    for reply in (SHORT, LONG, ""):
        assert length(lm, PROMPT, reply) == int(lm.encode([PROMPT], [reply]).mask.sum())


def test_the_longest_reply_decides(tiny):
    lm = tiny()
    table = pairs((SHORT, SHORT), (LONG, SHORT), (SHORT, LONG), (SHORT, ""))
    limit = length(lm, PROMPT, SHORT)
    assert [row.id for row in fitting(lm, table, both, limit)] == ["0", "3"]
    assert len(fitting(lm, table, both, length(lm, PROMPT, LONG))) == 4
    assert len(fitting(lm, table, both, length(lm, PROMPT, LONG) - 1)) == 2


def test_the_context_is_a_limit_too(tiny):
    """What is kept can be encoded; a limit beyond the context changes nothing."""
    lm = tiny(max_position_embeddings=10)
    table = pairs((SHORT, SHORT), (LONG, SHORT))
    for limit in (None, 1000):
        kept = fitting(lm, table, both, limit)
        assert [row.id for row in kept] == ["0"]
        lm.encode([row.prompt for row in kept], [row.chosen for row in kept])


def test_without_any_limit_all_rows_stay(tiny, monkeypatch):
    lm = tiny()
    monkeypatch.setattr(type(lm), "max_length", None)
    assert len(fitting(lm, pairs((LONG * 50, SHORT)), both, None)) == 1


def test_rows_come_back_untouched(tiny):
    table = Examples(rows=(Example(id="a", prompt=PROMPT, completion=SHORT),))
    assert fitting(tiny(), table, lambda row: [row.completion], None) == list(table.rows)


def test_nothing_fits(tiny):
    with pytest.raises(InputError, match="mats: none of 2 rows fits 4 tokens") as caught:
        fitting(tiny(), pairs((LONG, LONG), (LONG, SHORT)), both, 4)
    assert "max_length" in caught.value.hint


def test_no_rows_at_all(tiny):
    """Said as it is, whatever the limit: nothing was too long."""
    for limit in (None, 5):
        with pytest.raises(InputError, match="mats: there are no rows"):
            fitting(tiny(), pairs(), both, limit)


def test_dropped_counts():
    table = pairs(*[(SHORT, SHORT)] * 8)
    found = dropped(table, table.rows[:6])
    assert (found.value, found.n, found.method) == (0.25, 8, "point")
    assert dropped(table, table.rows).value == 0.0
