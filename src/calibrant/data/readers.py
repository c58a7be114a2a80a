"""Readers: files and streams of rows become the tables that techniques take.

    pairs = read_file(Preferences, Path("pairs.jsonl"))
    pairs = read(Preferences, rows_from_parquet(Path("pairs.parquet")), "pairs.parquet")
    describe(pairs)   # {'rows': 1690, 'refused': 10, 'reasons': {'equal replies': 10}, ...}

Every row is taken or refused with its line number and the reason; nothing is dropped in silence. A file
of which no row can be used is an error. Columns that were not read are named in ``unused``; those that
change what a row means are an error, see ``data.columns``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from calibrant.core.errors import InputError
from calibrant.data import distinct
from calibrant.data.choices import Choices
from calibrant.data.columns import Columns, Seen
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.rows import (
    CheckedAnswers,
    ClassedTexts,
    Contrasts,
    Examples,
    Facts,
    Goals,
    Items,
    LabelledReplies,
    LabelledTexts,
    Preferences,
    Prompts,
    Questions,
    Refused,
    Table,
)
from calibrant.data.shapes import (
    checked_of,
    choice_of,
    classed_of,
    contrast_of,
    example_of,
    fact_of,
    goal_of,
    item_of,
    labelled_of,
    pair_of,
    prompt_of,
    question_of,
    text_of,
    tree_of,
)
from calibrant.data.task_tree import TaskTrees

T = TypeVar("T", bound=Table[Any])

SHAPES: dict[type[Table[Any]], Callable[[int, dict[str, Any], str], Any]] = {
    Preferences: pair_of,
    Examples: example_of,
    Prompts: prompt_of,
    LabelledReplies: labelled_of,
    Goals: goal_of,
    Items: item_of,
    Contrasts: contrast_of,
    Facts: fact_of,
    LabelledTexts: text_of,
    ClassedTexts: classed_of,
    CheckedAnswers: checked_of,
    Questions: question_of,
    TaskTrees: tree_of,
    Choices: choice_of,
}
"""Kind of rows -> what makes one of them."""

_REMEDIES = {
    "missing column": "rename the columns to those wanted above",
    "malformed JSON": "write one JSON object a line; a file that is one JSON document should be named *.json",
    "not UTF-8": "save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8",
    "wrong number of cells": "quote cells that hold the delimiter, or name a file with tabs *.tsv",
    "not an object": "write one object a row; a file that is one JSON document should be named *.json",
    "another prompt": "take the prompt from chosen and rejected where both hold it: ignore = ['prompt']",
    "unclear": "add a column 'harmful' (true, false)",
    "no common prompt": "give the prompt in a column of its own named 'prompt'",
}


def read_file(kind: type[T], path: Path, limit: int | None = None) -> T:
    """Read a .jsonl, .ndjson, .json, .csv or .tsv file as a table of ``kind``.

    Raises:
        InputError: see ``raw_rows`` and ``read``.
    """
    return read(kind, raw_rows(path), str(path), limit)


def read(kind: type[T], rows: Iterable[RawRow], source: str, limit: int | None = None) -> T:
    """Shape raw rows into a table of ``kind``, and stop once ``limit`` of them are taken.

    A row without an id is named '<stem of source>:<line>'; an id seen before gets ':<line>' appended, so
    that ids are unique in a table. Of goals or items that ask the same (``data.distinct``) the first is
    taken and the copies are refused, so that n counts distinct ones.

    Raises:
        InputError: there are no rows, or all are refused; the message counts the reasons. A column that
            changes what the rows mean was not read; see ``columns.ignoring``.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit} takes no rows", hint="give 1 or more, or leave it out")
    shape = SHAPES[kind]
    # Without the scheme, so that "jsonl:x.jsonl" and the path "x.jsonl" name their rows alike.
    stem = PurePosixPath(source.rpartition(":")[2]).stem
    taken: dict[str, Any] = {}
    earlier: dict[object, str] = {}
    refused: list[Refused] = []
    columns = Columns(kind)
    for line, raw in rows:
        if isinstance(raw, Refused):
            refused.append(raw)
            continue
        seen = Seen(raw)
        row = shape(line, seen, stem)
        if isinstance(row, Refused):
            refused.append(row)
            continue
        columns.note(line, seen)
        asks = distinct.asks(row)
        if asks in earlier:
            refused.append(Refused(line=line, reason=f"copy: asks the same as '{earlier[asks]}'"))
            continue
        while row.id in taken:
            row = row.model_copy(update={"id": f"{row.id}:{line}"})
        taken[row.id] = row
        if asks is not None:
            earlier[asks] = row.id
        if len(taken) == limit:
            break
    if not taken:
        raise _useless(kind, source, refused)
    unused = columns.unused(source)
    return kind(rows=tuple(taken.values()), source=source, refused=tuple(refused), unused=unused)


def describe(table: Table[Any]) -> dict[str, Any]:
    """Count what was taken and left out, for a record: rows, refused, reasons, unused columns, digest."""
    return {
        "source": table.source,
        "digest": table.digest,
        "rows": len(table.rows),
        "refused": len(table.refused),
        "reasons": dict(_reasons(table.refused).most_common()),
        "unused": list(table.unused),
    }


def _reasons(refused: Iterable[Refused]) -> Counter[str]:
    """Count refusals by kind: the words before the first colon."""
    return Counter(row.reason.split(":", 1)[0] for row in refused)


def _useless(kind: type[Table[Any]], source: str, refused: Sequence[Refused]) -> InputError:
    """Say why nothing could be taken, with the first line of each kind of refusal."""
    if not refused:
        return InputError(f"{source} holds no rows", hint="was it written to the end? Fetch or make it again")
    counts = _reasons(refused).most_common(3)
    parts = []
    for reason, count in counts:
        first = next(row for row in refused if row.reason.split(":", 1)[0] == reason)
        parts.append(f"{count} x, first on line {first.line}: {first.reason}")
    return InputError(
        f"{source}: none of {len(refused)} rows can be read as {kind.__name__}:\n  " + ";\n  ".join(parts),
        hint=_REMEDIES.get(counts[0][0], "fix the rows named above, or read them as another kind of table"),
    )
