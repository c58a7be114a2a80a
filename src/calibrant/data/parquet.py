"""Rows of a Parquet file, streamed batch by batch, and columns written as one (pyarrow)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.core.errors import InputError
from calibrant.data.columns import listed
from calibrant.data.files import RawRow, check_file
from calibrant.data.rows import Refused

_BATCH = 1024


def rows_from_parquet(path: Path) -> Iterator[RawRow]:
    """Stream the rows of a Parquet file, numbered from 1; texts that are not UTF-8 refuse their row.

    Raises:
        InputError: the file is missing, a folder, empty, not Parquet, or damaged.
    """
    check_file(path)
    return _rows(path)


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write equally long columns; equal columns give equal bytes under one version of pyarrow."""
    pq.write_table(pa.table(dict(columns)), path, compression="zstd")


def _rows(path: Path) -> Iterator[RawRow]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            twice = [name for name, times in Counter(file.schema_arrow.names).items() if times > 1]
            if twice:
                raise InputError(f"{path}: columns named twice: {listed(twice)}", hint="rename one of each")
            for batch in file.iter_batches(batch_size=_BATCH):
                for at in range(batch.num_rows):
                    number += 1
                    yield number, _row(number, batch.slice(at, 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"after row {number}" if number else "at its start"
        raise InputError(
            f"{path} cannot be read as Parquet {where}: {error}", hint="fetch it again, or write it again"
        ) from error


def _row(number: int, batch: pa.RecordBatch) -> dict[str, Any] | Refused:
    """Turn a batch of one row into a dictionary."""
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError:
        return Refused(line=number, reason="not UTF-8: a text of the row")
    return row
