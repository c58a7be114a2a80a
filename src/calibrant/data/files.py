"""The raw layer: a text file becomes numbered dictionaries.

JSONL, CSV and TSV are streamed and never held whole; a JSON document has to be. What cannot be read
row by row is ``Refused`` with its line; what makes every later row doubtful (a broken quote in a CSV
file, a UTF-16 file) is an ``InputError``, for a guess there would go unnoticed.

Parquet files and hub datasets yield the same rows from ``data/parquet.py`` and ``data/hub.py``, which
need the extra ``data``.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from calibrant.core.errors import InputError, nearest
from calibrant.core.written import parse_json
from calibrant.data.cells import found_in
from calibrant.data.rows import Refused

RawRow = tuple[int, dict[str, Any] | Refused]
"""Line number (1 = first; row number where a file has no lines) and the row, or why there is none."""

LONGEST_LINE = 100_000_000
"""Bytes in one line, and characters in one CSV cell, beyond which something is wrong with the file."""

_RECODE = "save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8"
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Stream the rows of a .jsonl, .ndjson, .json, .csv or .tsv file, blank lines left out.

    Raises:
        InputError: the file is missing, a folder, empty, unreadable, of another kind, in another
            encoding than UTF-8, or broken in a way that leaves later rows in doubt. The first five are
            raised by the call, the others while the rows are drawn.
    """
    check_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        near = nearest(path.suffix.lower(), _READERS)
        hint = "reference it as parquet:PATH" if path.suffix == ".parquet" else "convert it to JSONL"
        raise InputError(
            f"{path}: no reader for files named '*{path.suffix}'{near}; known: {', '.join(_READERS)}",
            hint=hint,
        )
    return reader(path)


def check_file(path: Path) -> None:
    """Raise InputError unless ``path`` is a file with something in it that may be read."""
    try:
        if path.is_dir():
            names = ", ".join(sorted(item.name for item in path.iterdir())[:5])
            raise InputError(
                f"{path} is a folder, not a file", hint=f"name one file in it: {names or 'none there'}"
            )
        if not path.exists():
            beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(f"{path}: no such file{nearest(path.name, beside)}", hint="check the path")
        with path.open("rb") as file:
            first = file.read(4)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", hint="check its name and permissions"
        ) from error
    if not first:
        raise InputError(f"{path} is empty", hint="was it written to the end? Fetch or make it again")
    if first.startswith(_OTHER_MARKS):
        raise InputError(f"{path} is UTF-16 or UTF-32 text, not UTF-8", hint=_RECODE)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield each line as bytes, without a byte order mark; None for one longer than ``LONGEST_LINE``."""
    line = file.readline(LONGEST_LINE + 1).removeprefix(codecs.BOM_UTF8)
    while line:
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield None
        else:
            yield line
        line = file.readline(LONGEST_LINE + 1)


def _jsonl(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if line is None:
                yield number, Refused(line=number, reason=f"line too long: more than {LONGEST_LINE:,} bytes")
            elif line.strip():
                yield number, _object(number, line)


def _object(number: int, line: bytes) -> dict[str, Any] | Refused:
    """Parse one line of JSONL."""
    try:
        return _row(number, parse_json(line.rstrip().decode()))
    except UnicodeDecodeError as error:
        return Refused(line=number, reason=f"not UTF-8: byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Refused(line=number, reason=f"malformed JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # an integer of thousands of digits; brackets without end; a key twice
        return Refused(line=number, reason=f"malformed JSON: {error}")


def _row(number: int, value: Any) -> dict[str, Any] | Refused:
    """Take a JSON value as a row if it is an object."""
    if isinstance(value, dict):
        return value
    return Refused(line=number, reason=f"not an object: got a {type(value).__name__}")


def _json(path: Path) -> Iterator[RawRow]:
    """Read a list of objects, or the list under "data"; rows are numbered by their place in the list.

    A list of texts is read as one column, 'text'.
    """
    try:
        value = parse_json(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start + 1}", hint=_RECODE) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: malformed JSON: {error.msg} at column {error.colno}",
            hint="fix it there; a file with one object a line should be named *.jsonl",
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: malformed JSON: {error}", hint="fix it, or write JSONL") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        got = (
            f"an object with the keys {found_in(value)}" if isinstance(value, dict) else type(value).__name__
        )
        raise InputError(
            f"{path} holds no list of rows: got {got}",
            hint='write [{...}, {...}] or {"data": [{...}, {...}]}',
        )
    for number, item in enumerate(rows, start=1):
        yield number, _row(number, {"text": item} if isinstance(item, str) else item)


def _cells(path: Path, file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record of a CSV file with the line on which it starts; blank lines are passed over.

    Bytes that are not UTF-8 come through as lone surrogates, so that one bad cell costs one row.
    """
    # A setting of the whole process, so it is only ever raised: the 131,072 characters that Python
    # allows are fewer than a long prompt has.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))

    def text() -> Iterator[str]:
        for line in _lines(file):
            if line is None:
                raise csv.Error(f"a line has more than {LONGEST_LINE:,} bytes")
            yield line.decode("utf-8", "surrogateescape")

    # strict: otherwise an open quote would silently swallow all that follows it.
    reader, start = csv.reader(text(), delimiter=delimiter, strict=True), 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            raise InputError(
                f"{path}: a carriage return alone ends its lines (line {start})",
                hint="save it with Windows or Unix line ends: tr '\\r' '\\n' < OLD > NEW",
            ) from error
        raise InputError(
            f"{path}: the row that starts on line {start} is not well-formed: {error}",
            hint="close each quote, double those inside a quoted cell; later rows cannot be separated",
        ) from error


def _delimiter(path: Path, file: BinaryIO, delimiter: str) -> str:
    """What parts the cells: a header without a comma but with semicolons is one of Excel in half of Europe.

    Raises:
        InputError: the header shows that it is another kind of file.
    """
    header = next(_lines(file), None) or b""
    file.seek(0)
    if header[:4].lower() == b"sep=" and len(header.strip()) <= 5:
        raise InputError(f"{path}: its first line is for Excel alone: 'sep='", hint="take that line out")
    if delimiter == "," and b"," not in header:
        if b"\t" in header:
            raise InputError(f"{path}: tabs part its columns, not commas", hint="name the file *.tsv")
        return ";" if b";" in header else delimiter
    return delimiter


def _csv(path: Path, delimiter: str = ",") -> Iterator[RawRow]:
    with path.open("rb") as file:
        rows = _cells(path, file, _delimiter(path, file, delimiter))
        names = [name.strip() for name in next(rows, (1, [""]))[1]]
        if not all(_is_utf8(name) for name in names):
            raise InputError(f"{path}: the header is not UTF-8", hint=_RECODE)
        twice = sorted(name for name, times in Counter(names).items() if name and times > 1)[:10]
        if twice:
            raise InputError(
                f"{path}: columns named twice: {', '.join(twice)}", hint="rename or drop one of each"
            )
        for number, cells in rows:
            if len(cells) != len(names):
                reason = f"wrong number of cells: {len(cells)}, but the header names {len(names)} columns"
                yield number, Refused(line=number, reason=reason)
            elif not all(_is_utf8(cell) for cell in cells):
                yield number, Refused(line=number, reason="not UTF-8: a cell of the row")
            else:
                yield number, dict(zip(names, cells, strict=True))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tsv(path: Path) -> Iterator[RawRow]:
    return _csv(path, "\t")


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
