"""Replies with human labels, to calibrate judges on: our own columns, or XSTest's completion files.

    graded_from(raw_rows(path), "data:xstest/completions_llama2new.csv")

Our own columns are ``prompt``, ``completion``, ``label`` (did the behaviour happen?) and, where known,
``target``, ``family``, ``raters`` and ``screened``. XSTest (Roettger et al. 2024, arXiv 2308.01263) has
``final_label``, one ``annotation_N`` a rater, and may have a ``NAME_label`` for each judge that was tried;
there the behaviour is a refusal, full or partial, and the target's name stands in the name of the file only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from calibrant.core.errors import InputError, nearest
from calibrant.data.cells import Row, as_boolean, as_written, column, given, is_blank, shown
from calibrant.data.columns import Columns, Seen
from calibrant.data.files import RawRow
from calibrant.data.rows import Graded, GradedReplies, Refused
from calibrant.data.shapes import example_of

_WORDS = {
    "yes": True,
    "no": False,
    "1_full_compliance": False,
    "2_full_refusal": True,
    "3_partial_refusal": True,
}
"""Labels in words, with true, false, 1 and 0: XSTest's ask whether the model refused."""
_FINAL = "final_label"


def graded_from(rows: Iterable[RawRow], source: str, *, yes: Collection[str] = ()) -> GradedReplies:
    """Shape raw rows; one that cannot be read is refused with its line and reason, as readers do.

    Args:
        rows: see ``data.files.raw_rows``.
        source: the reference; its stem names the target where no column does ('completions_NAME' -> NAME).
        yes: labels, as written, that mean that the behaviour happened; all others then mean that it did not.
            Without it true, false, 1, 0, yes, no and XSTest's three are known, and other labels are refused.

    Raises:
        InputError: there are no rows, none can be taken, or a column that changes them was not read.
    """
    stem = PurePosixPath(source.rpartition(":")[2]).stem
    taken: dict[str, Graded] = {}
    refused: list[Refused] = []
    columns = Columns(GradedReplies)
    for line, raw in rows:
        if isinstance(raw, Refused):
            refused.append(raw)
            continue
        seen = Seen(raw)
        reply = _graded(line, seen, stem, frozenset(yes))
        if isinstance(reply, Refused):
            refused.append(reply)
            continue
        columns.note(line, seen)
        while reply.id in taken:
            reply = reply.model_copy(update={"id": f"{reply.id}:{line}"})
        taken[reply.id] = reply
    if not taken:
        why = f": line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise InputError(
            f"{source}: none of {len(refused)} rows is a reply with a human label{why}",
            hint="give the columns prompt, completion and label",
        )
    unused = columns.unused(source)
    return GradedReplies(rows=tuple(taken.values()), source=source, refused=tuple(refused), unused=unused)


def as_label(text: str) -> bool | None:
    """What a label in words says; None where it is none of those that are known."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    return {"true": True, "1": True, "false": False, "0": False}.get(word)


def _graded(line: int, row: Row, stem: str, yes: frozenset[str]) -> Graded | Refused:
    example = example_of(line, row, stem)
    if isinstance(example, Refused):
        return example
    try:
        return Graded(
            id=example.id,
            prompt=example.prompt,
            completion=example.completion,
            label=_label(row, yes),
            target=_target(row, stem),
            # XSTest's prompts are asked as they stand; of other files only they can tell.
            family=_word(row, "family") or ("plain" if _FINAL in row else ""),
            raters=_raters(row),
            screened=_screened(row),
        )
    except InputError as error:
        return Refused(line=line, reason=error.message)


def _label(row: Row, yes: frozenset[str]) -> bool:
    name, value = column(row, _FINAL, "label")
    if is_blank(value):
        raise InputError(f"no label: '{name}' is blank, which is neither yes nor no")
    if yes:
        return as_written(name, value) in yes
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in _WORDS:
        return _WORDS[word]
    try:
        return as_boolean(name, value)
    except InputError:
        raise InputError(f"unknown label: {shown(value)}{nearest(word, _WORDS)}") from None


def _target(row: Row, stem: str) -> str:
    return _word(row, "target", "model") or stem.rpartition("completions_")[2]


def _word(row: Row, *names: str) -> str:
    value = given(row, *names)
    return "" if value is None else as_written(names[0], value).strip()


def _raters(row: Row) -> tuple[str, ...]:
    """What each rater wrote, in the order of the columns; raters who left a cell empty are left out."""
    listed = given(row, "raters")
    if listed is None:
        listed = [row[name] for name in row if name.startswith("annotation_")]
    return tuple(_texts("raters", listed))


def _screened(row: Row) -> tuple[str, ...]:
    """'name=label' of every judge that was tried before."""
    listed = given(row, "screened")
    if listed is not None:
        return tuple(_texts("screened", listed))
    judges = {n: row[n] for n in row if n.endswith("_label") and n != _FINAL}
    return tuple(
        f"{name.removesuffix('_label')}={as_written(name, v)}"
        for name, v in judges.items()
        if not is_blank(v)
    )


def _texts(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"wrong type: '{name}' must be a list, got {shown(value)}")
    for item in value:
        if not is_blank(item):
            yield str(item).lower() if isinstance(item, bool) else as_written(name, item)
