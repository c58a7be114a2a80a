"""Parquet: the same rows as from JSONL, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.core.errors import InputError
from calibrant.data.parquet import rows_from_parquet
from calibrant.data.readers import describe, read
from calibrant.data.rows import LabelledReplies, Preferences, Refused


def test_rows_are_numbered_across_batches_and_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": list(range(2500))}), path, row_group_size=700)
    assert list(rows_from_parquet(path)) == [(n + 1, {"n": n}) for n in range(2500)]


def test_messages_and_nulls_survive(tmp_path: Path) -> None:
    def turns(*said: str) -> list[dict[str, str]]:
        return [
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=False)
        ]

    path = tmp_path / "pairs.parquet"
    columns = {
        "id": ["a", None, None],
        "prompt": [None, None, None],
        "chosen": [turns("Hi", "Good day"), turns("Ho", "Yes"), turns("Hum")],
        "rejected": [turns("Hi", "Go away"), turns("Ho", "No"), turns("Hum", "No")],
    }
    pq.write_table(pa.table(columns), path)
    table = read(Preferences, rows_from_parquet(path), str(path))
    assert [(row.id, row.prompt.last_user, row.chosen) for row in table] == [
        ("a", "Hi", "Good day"),
        ("pairs:2", "Ho", "Yes"),
    ]
    assert [row.line for row in table.refused] == [3]


def test_a_nan_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = {"prompt": ["Hi"] * 3, "completion": ["Yes"] * 3, "label": [1.0, float("nan"), None]}
    pq.write_table(pa.table(columns), path)
    assert describe(read(LabelledReplies, rows_from_parquet(path), "x"))["reasons"] == {"NaN label": 2}


def test_a_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    bad = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), path)
    refused = Refused(line=2, reason="not UTF-8: a text of the row")
    assert list(rows_from_parquet(path)) == [(1, {"text": "fine"}), (2, refused), (3, {"text": "fine"})]


def test_what_is_no_parquet_file_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"n": list(range(5000))}), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "words.parquet").write_text("these are words")
    damaged = bytearray(whole.read_bytes())
    damaged[4:2000] = b"x" * 1996
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    (tmp_path / "empty.parquet").touch()
    for name in ("cut", "words", "damaged", "empty", "missing"):
        with pytest.raises(InputError, match=rf"{name}\.parquet") as caught:
            list(rows_from_parquet(tmp_path / f"{name}.parquet"))
        assert caught.value.hint
    with pytest.raises(InputError, match="folder"):
        rows_from_parquet(tmp_path)


def test_columns_named_twice_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table([["Hi"], ["a"], ["b"]], names=["prompt", "label", "label"]), path)
    with pytest.raises(InputError, match="columns named twice: 'label'"):
        list(rows_from_parquet(path))
