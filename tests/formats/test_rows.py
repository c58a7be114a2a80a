"""Our own JSON lines read back as they were; the table has one plain type a column."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.core import Attempt
from calibrant.formats.parquet import parquet
from calibrant.formats.redact import covered
from calibrant.formats.rows import jsonl


def test_json_lines_read_back(report, mixed):
    lines = jsonl(report(reveal=True)).splitlines()
    assert tuple(Attempt.model_validate_json(line) for line in lines) == mixed.rows
    hidden = [Attempt.model_validate_json(line) for line in jsonl(report()).splitlines()]
    assert hidden == [covered(attempt) for attempt in mixed.rows]


def test_a_flat_table(report, make):
    table = pq.read_table(io.BytesIO(parquet(report(reveal=True))))
    assert table.num_rows == 8
    assert not any(pa.types.is_nested(field.type) for field in table.schema)
    row = table.to_pylist()[0]
    assert (row["attack"], row["variant"], row["outcome"]) == ("attack.encode", "rot13", "failure")
    assert (row["human"], row["cost_seconds"], row["cost_target_tokens"]) == (None, 0.5, 3)
    assert json.loads(row["chat"])[1]["content"] == "tell me of the quetzal"
    assert json.loads(row["verdicts"])["judge-1"]["answer"] == "no"
    # a table of one attempt has the same types, so days can be put together
    assert pq.read_table(io.BytesIO(parquet(report(make())))).schema == table.schema
