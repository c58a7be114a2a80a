"""Which rows of which file an input holds, so that reading a part or a copy counts as a look."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from calibrant.core.record import Input
from calibrant.data.references import SUFFIXES, whole_and_parts

_ALL = 2**63


def share_rows(one: Any, other: Any) -> bool:
    """Whether two references name one file, however its path is spelt, and parts of it that overlap."""
    file, same = _file(one), _file(other)
    return bool(file) and file == same and _overlap(_span(one), _span(other))


def read_same(one: Input, other: Input) -> bool:
    """Whether two inputs hold the same bytes, or parts that overlap of files with the same bytes."""
    if one.digest == other.digest:
        return True
    whole = one.parts.get("whole", one.digest)
    return whole == other.parts.get("whole", other.digest) and _overlap(
        _span(one.reference), _span(other.reference)
    )


def _text(reference: Any) -> str:
    """The words that name file and part; "" where there are none."""
    text = reference.get("file", "") if isinstance(reference, Mapping) else reference
    return text if isinstance(text, str) else ""


def _file(reference: Any) -> str:
    whole = whole_and_parts(_text(reference))[0]
    scheme, colon, path = whole.partition(":")
    if colon and f".{scheme}" in SUFFIXES:
        whole = path
    return posixpath.normpath(whole) if whole and ":" not in whole else whole


def _span(reference: Any) -> tuple[int, int]:
    """The first row, and the one after the last."""
    first, end = 0, _ALL
    for start, stop in whole_and_parts(_text(reference))[1]:
        first, end = first + (start or 0), end if stop is None else min(end, first + stop)
    return first, end


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])
