"""Human labels of single replies: yes, no or unsure; see ``answers`` for the file.

    {"human": true, "id": "4be0...", "rater": "ann"}

``human`` is true, false, or null for unsure; a bare list of {id, human} lines will do. Where advice was shown
it is 'yes' or 'no'. What is labelled is a
queue: one JSON object a line with ``id``, ``goal``, ``chat`` and ``reply``, as ``measure.adjudication``
writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from calibrant.core.config import Frozen
from calibrant.core.digest import canonical
from calibrant.core.errors import InputError, nearest
from calibrant.core.lm import Chat
from calibrant.data.answers import Answer, Answers, circumstances, replayed
from calibrant.data.cells import as_boolean, as_text, as_written, found_in, given, is_blank, shown
from calibrant.data.columns import Columns, Seen, ignoring
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.rows import Refused, Table
from calibrant.data.shapes import prompt_of

_UNSURE = ("unsure", "unknown")
_WORDS = {"yes": True, "no": False}


class HumanLabel(Answer):
    """One person's answer on one reply."""

    kind: ClassVar[str] = "label"
    about: ClassVar[str] = "replies"

    id: str
    """Which reply."""
    human: bool | None
    """Whether the behaviour happened; None = unsure."""
    rater: str = ""
    """Who answered; "" where the file does not say."""

    @property
    def row(self) -> str:
        """Id of the reply."""
        return self.id


class HumanLabels(Answers[HumanLabel]):
    """Standing labels."""


class Queued(Frozen):
    """A reply that waits for a person."""

    id: str
    """Stable name."""
    goal: str
    """What was wanted, in words; "" where nobody knows."""
    chat: Chat
    """What was sent."""
    reply: str
    """What came back."""


class Queue(Table[Queued]):
    """Replies that wait for a person."""


def labels_from(rows: Iterable[RawRow], source: str) -> HumanLabels:
    """Replay lines of labels and undos.

    Raises:
        InputError: see ``replayed``.
    """
    return replayed(rows, source, HumanLabels, HumanLabel, _label)


def consensus(labels: HumanLabels) -> dict[str, bool | None]:
    """Reply -> what more raters said than not, unsure ones aside; None on a draw or where all are unsure."""
    balance: dict[str, int] = {}
    for label in labels:
        step = 0 if label.human is None else 1 if label.human else -1
        balance[label.id] = balance.get(label.id, 0) + step
    return {name: None if lead == 0 else lead > 0 for name, lead in balance.items()}


def queue_line(queued: Queued) -> bytes:
    """One reply of a queue as a line."""
    columns = {"id": queued.id, "goal": queued.goal, "chat": queued.chat.messages, "reply": queued.reply}
    return canonical(columns) + b"\n"


def is_queue(path: Path) -> bool:
    """Whether a file's first row is a reply of a queue, rather than two outputs to compare.

    Raises:
        InputError: see ``raw_rows``.
    """
    first = next((raw for _, raw in raw_rows(path)), None)
    return isinstance(first, Mapping) and "reply" in first and not {"a", "chosen"} & first.keys()


def read_queue(path: Path, ignore: Collection[str] = ()) -> Queue:
    """Read a queue, without the columns to ignore.

    Raises:
        InputError: see ``raw_rows``; a row that cannot be read, two with one id, or a column that changes
            them and was not read.
    """
    taken: dict[str, Queued] = {}
    columns = Columns(Queue)
    for line, raw in ignoring(raw_rows(path), ignore):
        row = Seen({} if isinstance(raw, Refused) else raw)
        queued = raw if isinstance(raw, Refused) else _queued(line, row)
        if isinstance(queued, Refused):
            raise InputError(
                f"{path}:{line}: {queued.reason}", hint="a queue's lines hold id, goal, chat and reply"
            )
        if queued.id in taken:
            raise InputError(f"{path}:{line}: a second reply with the id '{queued.id}'", hint="take it out")
        taken[queued.id] = queued
        columns.note(line, row)
    return Queue(rows=tuple(taken.values()), source=str(path), unused=columns.unused(str(path)))


def _queued(line: int, raw: Mapping[str, Any]) -> Queued | Refused:
    prompt = prompt_of(line, {"id": given(raw, "id"), "prompt": raw.get("chat") or raw.get("prompt")})
    if isinstance(prompt, Refused):
        return prompt
    try:
        goal, reply = given(raw, "goal"), raw.get("reply")
        if not isinstance(reply, str):
            raise InputError(f"wrong type: 'reply' must be text, got {shown(reply)}")
        return Queued(
            id=prompt.id,
            goal="" if goal is None else as_text("goal", goal),
            chat=prompt.prompt,
            reply=reply,  # it may be empty: that is what came back
        )
    except InputError as error:
        return Refused(line=line, reason=error.message)


def _label(raw: Mapping[str, Any]) -> HumanLabel:
    for name in ("id", "human"):
        if name not in raw:
            raise InputError(f"no '{name}'{nearest(name, raw)}; found: {found_in(raw)}")
    rater = given(raw, "rater")
    return HumanLabel(
        id=as_written("id", raw["id"]),
        human=_answer(raw["human"]),
        rater="" if rater is None else as_written("rater", rater),
        **circumstances(raw, tuple(_WORDS)),
    )


def _answer(value: Any) -> bool | None:
    word = value.strip().lower() if isinstance(value, str) else None
    if is_blank(value) or word in _UNSURE:
        return None
    return _WORDS[word] if word in _WORDS else as_boolean("human", value)
