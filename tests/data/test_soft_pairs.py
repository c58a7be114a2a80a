"""Pairs with soft labels, categories and principles: read from files, and as before where they have none."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Chat, InputError
from calibrant.core.digest import canonical
from calibrant.data.readers import read_file
from calibrant.data.rows import Pair, Preferences


def stored(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", **r}) + "\n" for r in rows)
    )
    return read_file(Preferences, path)


def test_the_columns_are_read(tmp_path):
    table = stored(tmp_path, {"chosen_probability": 0.75, "category": "bias", "principle": "fair"}, {})
    assert table.rows[0].chosen_probability == 0.75
    assert (table.rows[0].category, table.rows[0].principle) == ("bias", "fair")
    assert (table.rows[1].chosen_probability, table.rows[1].category) == (1.0, "")
    assert table.unused == ()


@pytest.mark.parametrize("value", [0.2, 1.5, -1, "x", True, [0.7]])
def test_what_is_no_probability_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="chosen_probability"):
        stored(tmp_path, {"chosen_probability": value})


def test_a_blank_cell_is_a_hard_label(tmp_path):
    assert [r.chosen_probability for r in stored(tmp_path, {"chosen_probability": None})] == [1.0]


def test_rows_without_them_have_the_digest_that_they_had():
    pair = Pair(id="x", prompt=Chat.ask("p"), chosen="a", rejected="b")
    assert set(json.loads(canonical(pair))) == {"id", "prompt", "chosen", "rejected"}
    soft = pair.model_copy(update={"chosen_probability": 0.7})
    assert Preferences(rows=(pair,)).digest != Preferences(rows=(soft,)).digest
