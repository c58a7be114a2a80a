"""Row references of a study: file, slice, and ignored columns.

pairs = "data:hh_rlhf[:1200]"
pairs = { file = "jsonl:orca.jsonl", ignore = ["system"] }
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrant.app.references.given import stands_for
from calibrant.app.references.locate import check_text
from calibrant.app.references.opened import Opened
from calibrant.app.references.scheme import Reference
from calibrant.core import Frozen, InputError, digest, resolve
from calibrant.data.references import whole_and_parts


class Rows(Frozen):
    """A table of rows, where a reference alone does not say enough."""

    file: str
    """A reference to rows: 'jsonl:PATH', 'data:NAME', 'record:JOB/pairs.jsonl[:100]', 'given:NAME'."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out knowingly, 'messages.tool_calls' for a key inside messages."""


def rows(reference: Any, wanted: Any, base: Path, given: Mapping[str, Any]) -> Reference:
    """Take a reference to rows apart; what is given under its name takes the name's place.

    Raises:
        ConfigError: a table with other keys than ``file`` and ``ignore``, a text that is no reference, or a
            name of nothing that is given.
    """
    if not isinstance(reference, (str, Mapping)):
        return Reference(reference, wanted, base)
    table = Rows(file=reference) if isinstance(reference, str) else resolve(Rows, reference, where="rows")
    check_text(table.file)
    text, parts = whole_and_parts(table.file)
    meant = stands_for(text, given)
    if meant is text:
        return Reference(reference, wanted, base, text, ignore=table.ignore, parts=parts)
    inner = rows(meant, wanted, base, given)
    if isinstance(reference, str) and not parts:
        return inner
    ignore, parts = inner.ignore + table.ignore, inner.parts + parts
    slices = (["" if end is None else str(end) for end in part] for part in parts)
    file = inner.text + "".join(f"[{start}:{stop}]" for start, stop in slices)
    written = {"file": file, "ignore": list(ignore)} if ignore else file
    return inner._replace(written=written, ignore=ignore, parts=parts)


def part(whole: Opened, reference: Reference) -> Opened:
    """The part of a table that a reference asks for: each slice is taken of the rows before it.

    Raises:
        InputError: when it is loaded, and no row is left.
    """
    if not reference.ignore and not reference.parts:
        return whole
    written = reference.written
    source = written if isinstance(written, str) else written["file"]
    key = digest([whole.digest, {"ignore": sorted(reference.ignore)}]) if reference.ignore else whole.digest
    for ends in reference.parts:
        key = digest([key, *ends])

    def load() -> Any:
        table = whole.load()
        for start, stop in reference.parts:
            chosen = table.rows[start:stop]
            if not chosen:
                raise InputError(f"'{source}' holds no row", hint=f"the whole holds {len(table.rows)} rows")
            table = table.model_copy(update={"rows": chosen, "source": source})
        return table

    return Opened(key, "data", load, name=source, parts={"whole": whole.digest})
