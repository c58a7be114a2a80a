"""Rows as a study asks for them: which file, which part of it, and which columns are left out.

pairs = "data:hh_rlhf[:1200]"
pairs = { file = "jsonl:orca.jsonl", ignore = ["system"] }
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from calibrant.app.attempt_files import is_foreign
from calibrant.app.paths import check_text
from calibrant.core import ConfigError, Frozen, InputError, resolve
from calibrant.data.rows import Table

Part = tuple[int | None, int | None]
"""First row and the one after the last, as in a Python slice."""
_PART = re.compile(r"\[([0-9]*):([0-9]*)\]\Z")


class Rows(Frozen):
    """A table of rows, where a reference alone does not say enough."""

    file: str
    """A reference to rows: 'jsonl:PATH', 'data:NAME', 'record:JOB/pairs.jsonl[:100]', 'given:NAME'."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out knowingly, 'messages.tool_calls' for a key inside messages."""


class Asked(NamedTuple):
    """A reference to rows, taken apart."""

    whole: str
    """The file that the rows are in."""
    ignore: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    """Slices, to be taken one after the other."""


def asked(reference: Any) -> Asked:
    """Take a reference to rows apart.

    Raises:
        ConfigError: a table with other keys than ``file`` and ``ignore``, a text that is no reference, or
            columns to ignore where there is no file of ours.
    """
    told = resolve(Rows, reference, where="rows") if isinstance(reference, Mapping) else Rows(file=reference)
    check_text(told.file)
    whole, parts = told.file, list[Part]()
    while part := _PART.search(whole):
        start, stop = (int(digits) if digits else None for digits in part.groups())
        parts.append((start, stop))
        whole = whole[: part.start()]
    if told.ignore and (whole.startswith("testbed:") or is_foreign(whole)):
        raise ConfigError(
            f"'{whole}' has no columns to ignore", hint="ignore works on files of rows: jsonl:PATH, data:NAME"
        )
    return Asked(whole, told.ignore, tuple(reversed(parts)))


def sliced(table: Table[Any], source: str, parts: tuple[Part, ...]) -> Table[Any]:
    """The rows that are left after each part was taken of those before, in the file's order.

    Raises:
        InputError: none is left.
    """
    for start, stop in parts:
        kept = table.rows[start:stop]
        if not kept:
            raise InputError(f"'{source}' holds no row", hint=f"the whole holds {len(table.rows)} rows")
        table = table.model_copy(update={"rows": kept, "source": source})
    return table
