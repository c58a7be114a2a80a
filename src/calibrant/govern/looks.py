"""Which part of which file a reference to rows names, so that a look at a part is known for a look."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

_PART = re.compile(r"\[([0-9]{0,18}):([0-9]{0,18})\]\Z")
_ALL = 2**63


def share_rows(one: Any, other: Any) -> bool:
    """Whether two references name one file, however its path is spelt, and parts of it that overlap."""
    (file, start, stop), (same, begin, end) = _rows(one), _rows(other)
    return bool(file) and file == same and max(start, begin) < min(stop, end)


def _rows(reference: Any) -> tuple[str, int, int]:
    """File, first row, and the row after the last; "" for the file where it is none."""
    whole = reference.get("file", "") if isinstance(reference, Mapping) else reference
    parts = []
    while isinstance(whole, str) and (part := _PART.search(whole)):
        parts.append((int(part[1] or 0), int(part[2] or _ALL)))
        whole = whole[: part.start()]
    start, stop = 0, _ALL
    for first, last in reversed(parts):
        start, stop = start + first, min(stop, start + last)
    if not isinstance(whole, str):
        return "", 0, 0
    scheme, colon, path = whole.partition(":")
    if colon and f".{scheme}" in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"):
        whole = path
    return (posixpath.normpath(whole) if whole and ":" not in whole else whole), start, stop
