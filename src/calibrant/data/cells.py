"""Cells of a raw row: find a column, and read its value as text, number or truth value, or say why not.

What is wrong is an ``InputError`` whose message reads "kind: detail"; ``shapes.py`` makes it a refusal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from calibrant.core.errors import InputError, nearest

Row = Mapping[str, Any]
"""Column name -> value, as a file gave it."""

_SHOWN = 30
_BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def column(row: Row, *names: str, wanted: str = "") -> tuple[str, Any]:
    """Return the first of the named columns that holds something, with its name."""
    present = [name for name in names if name in row]
    if not present:
        near = next(filter(None, (nearest(name, row) for name in names)), "")
        raise InputError(
            f"missing column: no '{names[0]}'{near}; wanted: {wanted or ' or '.join(names)}; "
            f"found: {found_in(row)}"
        )
    name = next((name for name in present if not is_blank(row[name])), present[0])
    if row[name] is None:
        raise InputError(f"empty text: '{name}' is null")
    return name, row[name]


def found_in(row: Row) -> str:
    """The names of the columns; of very many only the first."""
    shown, more = list(itertools.islice(row, _SHOWN)), len(row) - _SHOWN
    return (", ".join(shown) or "none") + (f" and {more:,} more" if more > 0 else "")


def given(row: Row, *names: str) -> Any:
    """Return the first of some optional columns that is neither absent nor blank, else None."""
    return next((row[name] for name in names if name in row and not is_blank(row[name])), None)


def as_text(name: str, value: Any) -> str:
    """Return text that says something and can be written as UTF-8, unchanged."""
    if not isinstance(value, str):
        raise InputError(f"wrong type: '{name}' must be text, got {shown(value)}")
    if not value.strip():
        raise InputError(f"empty text: '{name}'")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no UTF-8 file can hold
        raise InputError(f"not Unicode text: '{name}' holds a lone surrogate") from None
    return value


def as_written(name: str, value: Any) -> str:
    """Return text, or a finite number as it would be written."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return as_text(name, value)


def as_boolean(name: str, value: Any) -> bool:
    """Return true, false, 1 or 0, as a value or as text in any case."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return _BOOLEANS[value.strip().lower()]
    raise InputError(f"wrong type: '{name}' must be true, false, 1 or 0, got {shown(value)}")


def as_number(name: str, value: Any) -> float:
    """Return a finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InputError(f"wrong type: '{name}' must be a finite number, got {shown(value)}")


def is_blank(value: Any) -> bool:
    """Say whether a cell holds nothing: null, NaN, or space only."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def shown(value: Any) -> str:
    """Describe a value in few words; what is inside a list or an object is not repeated."""
    name = type(value).__name__
    return f"{name} {str(value)[:30]!r}" if isinstance(value, (str, bool, int, float)) else name
