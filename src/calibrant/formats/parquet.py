"""Attempts as a Parquet table (pyarrow): one row an attempt, every column of one plain type."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.formats.findings import Report
from calibrant.formats.rows import flat

_TYPES = {
    "seed": pa.int64(), "number": pa.int64(), "cut": pa.bool_(), "degraded": pa.bool_(), "human": pa.bool_(),
    "cost_queries": pa.int64(), "cost_target_tokens": pa.int64(), "cost_attacker_tokens": pa.int64(),
    "cost_judge_tokens": pa.int64(), "cost_flops": pa.float64(), "cost_seconds": pa.float64(),
}  # fmt: skip


def parquet(report: Report) -> bytes:
    """The table; types are fixed, so that tables of different days can be put together."""
    rows = [flat(attempt) for attempt in report.attempts]
    names = list(rows[0]) if rows else []
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out, compression="zstd")
    return out.getvalue()
