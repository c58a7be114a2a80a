"""Rows of a file as the wanted kind of table; ``jsonl:PATH`` and similar name a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrant.app import catalog
from calibrant.core import CalibrantError, Chat, InputError
from calibrant.data import readers
from calibrant.data.attempts import attempts_from
from calibrant.data.audits import Audits, audits_from
from calibrant.data.canaries import Canaries, canaries_from, planted_examples
from calibrant.data.columns import ignoring
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.goal_probes import GoalProbes, goal_probes_from
from calibrant.data.graded import graded_from
from calibrant.data.human_labels import HumanLabels, labels_from
from calibrant.data.rows import (
    Attempts,
    Example,
    Examples,
    GradedReplies,
    Labelled,
    LabelledReplies,
    Preferences,
    Prompt,
    Prompts,
    Table,
)
from calibrant.data.votes import Votes, votes_from
from calibrant.formats.redact import is_covered

_OWN: dict[Any, Callable[..., Any]] = {
    Votes: votes_from,
    Attempts: attempts_from,
    Audits: audits_from,
    Canaries: canaries_from,
    GoalProbes: goal_probes_from,
    GradedReplies: graded_from,
    HumanLabels: labels_from,
}
"""Kinds of rows with a reader of their own."""
TABLES = (*readers.SHAPES, *_OWN)


def read(
    wanted: type[Table[Any]], path: Path, reference: str, ignore: Sequence[str] = (), stored_as: str = ""
) -> Any:
    """Read rows; pairs also serve as demonstrations and as labelled replies, attempts as demonstrations.

    ``stored_as`` is the name of a ledger's file, see ``named``.
    """
    if stored_as:
        with named(path, stored_as) as file:
            try:
                return read(wanted, file, reference, ignore)
            except CalibrantError as error:  # the link is gone when this is read
                told = error.message.replace(str(file), f"'{reference}'")
                raise type(error)(told, hint=error.hint) from None
    table = _read(wanted, path, reference, ignore)
    return table.model_copy(update={"unused": (*table.unused, *ignore)}) if ignore else table


@contextmanager
def named(path: Path, name: str) -> Iterator[Path]:
    """A ledger's file under its own name: it is stored by digest, and readers go by the suffix."""
    with tempfile.TemporaryDirectory() as room:
        link = Path(room) / Path(name).name
        link.symlink_to(path.resolve())
        yield link


def _read(wanted: type[Table[Any]], path: Path, reference: str, ignore: Sequence[str]) -> Any:
    def stream(path: Path) -> Iterator[RawRow]:
        parquet = path.suffix == ".parquet" and wanted not in _OWN
        rows = catalog.load("calibrant.data.parquet:rows_from_parquet") if parquet else raw_rows
        return ignoring(rows(path), ignore)

    if wanted in _OWN:
        return _OWN[wanted](stream(path), reference)
    kind = wanted
    if wanted in (Examples, LabelledReplies):
        first = next((row for _, row in stream(path) if isinstance(row, dict)), {})
        if wanted is Examples and {"goal_id", "chat", "outcome"} <= first.keys():
            return serving_as(wanted, attempts_from(stream(path), reference))
        kind = Preferences if "chosen" in first else wanted
    return serving_as(wanted, readers.read(kind, stream(path), reference))


def serving_as(wanted: type[Table[Any]], table: Table[Any]) -> Table[Any]:
    """Pairs as demonstrations of their chosen replies, as replies with a thumb up or down, or as prompts.

    Canaries as demonstrations, each as often as it is planted; attempts as those of what succeeded. Any other
    table as it is.
    """
    if isinstance(table, Attempts) and wanted is Examples:
        return _hits(table)
    if isinstance(table, Canaries) and wanted is Examples:
        return planted_examples(table)
    if not isinstance(table, Preferences) or wanted is Preferences:
        return table
    rows: list[Any] = []
    for p in table.rows:
        if wanted is Examples:
            rows.append(Example(id=p.id, prompt=p.prompt, completion=p.chosen))
        elif wanted is Prompts:
            rows.append(Prompt(id=p.id, prompt=p.prompt))
        elif wanted is LabelledReplies:
            for label, reply in ((True, p.chosen), (False, p.rejected)):
                name = f"{p.id}/{'chosen' if label else 'rejected'}"
                rows.append(Labelled(id=name, prompt=p.prompt, completion=reply, label=label))
    soft = wanted is not Prompts and any(p.chosen_probability < 1 for p in table.rows)
    unused = (*table.unused, *(["chosen_probability"] if soft else []))  # what is read here is yes or no
    account = {"source": table.source, "refused": table.refused, "unused": unused}
    return wanted(rows=tuple(rows), **account) if rows else table


def _hits(attempts: Attempts) -> Examples:
    """The attempts that succeeded, by human label where there is one: what was asked, and the reply.

    Words that were put into the model's mouth (prefill) belong to the reply.

    Raises:
        InputError: none succeeded, or replies are covered.
    """
    hits = [a for a in attempts if (a.outcome == "success" if a.human is None else a.human)]
    if not hits:
        raise InputError(
            f"{attempts.source}: none of {len(attempts)} attempts succeeded, so none is a demonstration",
            hint="give the attempts of an attack that got through",
        )
    if hidden := sum(is_covered(a.completion.text) or is_covered(a.chat.last_user) for a in hits):
        raise InputError(
            f"{attempts.source}: {hidden} of {len(hits)} successful attempts are redacted",
            hint="give attempts.jsonl as the ledger holds it",
        )
    rows = []
    for a in hits:
        chat, reply = a.chat, a.completion.text
        if chat.messages and chat.messages[-1].role == "assistant":
            chat, reply = Chat(messages=chat.messages[:-1]), chat.messages[-1].content + reply
        rows.append(Example(id=a.id, prompt=chat, completion=reply))
    return Examples(rows=tuple(rows), source=attempts.source, refused=attempts.refused)
