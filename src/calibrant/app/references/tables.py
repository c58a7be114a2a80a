"""Rows as a study asks for them: which file, which part of it, and which columns are left out.

pairs = "data:hh_rlhf[:1200]"
pairs = { file = "jsonl:orca.jsonl", ignore = ["system"] }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from calibrant.app.references.foreign_attempts import is_foreign
from calibrant.app.references.paths import check_text
from calibrant.core import ConfigError, Frozen, InputError, resolve
from calibrant.data.references import Part, whole_and_parts
from calibrant.data.rows import Table


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

    def of(self, given: Asked) -> str | dict[str, Any]:
        """The reference that asks the same of what a study gave under the name ``whole``."""
        ends = (["" if end is None else str(end) for end in part] for part in given.parts + self.parts)
        file = given.whole + "".join(f"[{start}:{stop}]" for start, stop in ends)
        ignore = given.ignore + self.ignore
        return {"file": file, "ignore": list(ignore)} if ignore else file


def asked(reference: Any) -> Asked:
    """Take a reference to rows apart.

    Raises:
        ConfigError: a table with other keys than ``file`` and ``ignore``, a text that is no reference, or
            columns to ignore where there is no file of ours.
    """
    told = resolve(Rows, reference, where="rows") if isinstance(reference, Mapping) else Rows(file=reference)
    check_text(told.file)
    whole, parts = whole_and_parts(told.file)
    if told.ignore and (whole.startswith("testbed:") or is_foreign(whole)):
        raise ConfigError(
            f"'{whole}' has no columns to ignore", hint="ignore works on files of rows: jsonl:PATH, data:NAME"
        )
    return Asked(whole, told.ignore, parts)


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
