"""Pairs with soft labels, categories and principles: read from files, and as before where they have none."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.app.references.rows import serving_as
from calibrant.core import Chat, InputError
from calibrant.core.digest import canonical
from calibrant.data.parquet import rows_from_parquet
from calibrant.data.readers import read, read_file
from calibrant.data.rows import Examples, LabelledReplies, Pair, Preferences
from calibrant.data.votes import Vote, Votes, pairs_from


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


def test_a_csv_file_and_a_parquet_file_hold_them_too(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,chosen_probability,category\nq,a,b,0.8,x\nr,a,b,,\ns,a,b,high,\n")
    table = read_file(Preferences, path)
    assert [row.chosen_probability for row in table] == [0.8, 1.0]
    assert table.refused[0].reason.startswith("wrong type: 'chosen_probability'")
    columns = {
        "prompt": ["q", "r"],
        "chosen": ["a", "a"],
        "rejected": ["b", "b"],
        "chosen_probability": [0.6, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    rows = read(Preferences, rows_from_parquet(tmp_path / "pairs.parquet"), "pairs.parquet")
    assert [row.chosen_probability for row in rows] == [0.6, 1.0]


def test_a_category_that_is_no_text_stays_unread_and_refuses_nothing(tmp_path):
    table = stored(tmp_path, {"category": ["x"]}, {"principle": {"a": 1}}, {"category": True})
    assert len(table) == 3 and not table.refused
    assert set(table.unused) >= {"category"}


def test_whoever_reads_pairs_as_yes_and_no_says_that_a_soft_label_is_unread(tmp_path):
    table = stored(tmp_path, {"chosen_probability": 0.6})
    assert "chosen_probability" in serving_as(LabelledReplies, table).unused
    assert "chosen_probability" in serving_as(Examples, table).unused
    assert serving_as(LabelledReplies, stored(tmp_path, {})).unused == ()


def test_peoples_votes_replace_what_a_model_said(tmp_path):
    table = stored(tmp_path, {"chosen_probability": 0.95, "principle": "kind", "id": "x"})
    votes = Votes(
        rows=(Vote(item="x", rater="r", first="a", choice="second"),), source="v", data=table.digest
    )
    (row,) = pairs_from(table, votes)
    assert (row.chosen, row.chosen_probability, row.principle) == ("b", 1.0, "")
