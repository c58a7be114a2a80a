"""Detect duplicate goals and items, so that no rate counts them twice.

Two texts are the same when they differ in case, in spaces (at the ends, doubled, of another width, line
ends), in invisible characters, or in how Unicode spells one character (NFKC). A copy with one other word or
mark is another text: give such rows one ``cluster``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from calibrant.core.behaviours import Goal
from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.core.lm import Chat
from calibrant.data.choices import Choice
from calibrant.data.rows import ClassedText, Contrast, Fact, Goals, Item, LabelledText, Question
from calibrant.data.task_tree import TaskTree


def normal(text: str) -> str:
    """The text as copies of it are compared."""
    if text.isascii():
        return " ".join(text.casefold().split())
    seen = "".join(mark for mark in unicodedata.normalize("NFKC", text) if unicodedata.category(mark) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen.casefold()).split())


def plain(text: str) -> str:
    """An answer as it is compared: no case, single spaces, no final mark (unless it is all there is)."""
    text = " ".join(text.split()).casefold()
    return text.rstrip(".,;:!? ") or text


def normal_chat(chat: Chat) -> tuple[tuple[str, str], ...]:
    """The chat as copies of it are compared: every turn, by role."""
    return tuple((turn.role, normal(turn.content)) for turn in chat.messages)


def asks(row: Frozen) -> object | None:
    """What a row asks, equal for copies; None for kinds of rows whose copies are no fault.

    Labelled texts are compared as they are, but for their labels: a probe may be of case or spaces. Classed
    texts are copies whatever their class: a text of two classes is right for neither.
    """
    if isinstance(row, Goal):
        return normal(row.text), row.harmful
    if isinstance(row, Item):
        return normal_chat(row.chat), normal(row.answer)
    if isinstance(row, Contrast):
        return normal_chat(row.clean), normal_chat(row.corrupt), row.answer, row.foil
    if isinstance(row, Fact):
        return normal_chat(row.prompt), row.subject, row.answer, row.foil, row.other
    if isinstance(row, ClassedText):
        return normal_chat(row.prompt)
    if isinstance(row, LabelledText):
        return row.prompt, row.reply
    if isinstance(row, Question):
        return tuple(map(normal, (row.question, row.correct, row.wrong, row.passage)))
    if isinstance(row, TaskTree):
        return normal(row.question), row.nodes
    if isinstance(row, Choice):
        return normal(row.question), tuple(sorted(map(normal, row.options))), row.trait
    return None


def check_distinct(rows: Sequence[Goal] | Sequence[Item] | Sequence[Choice], kind: str) -> None:
    """Refuse no rows at all, and rows of which two share an id or ask the same.

    Raises:
        InputError: there are none; or names the first two. A file's copies are refused as it is read.
    """
    if not rows:
        raise InputError(f"there are no {kind}s", hint=f"give a table with at least one {kind}")
    ids: set[str] = set()
    first: dict[object, str] = {}
    for row in rows:
        if row.id in ids:
            raise InputError(f"two {kind}s share the id '{row.id}'", hint=f"give each {kind} its own id")
        ids.add(row.id)
        other = first.setdefault(asks(row), row.id)
        if other != row.id:
            raise InputError(f"{kind}s '{other}' and '{row.id}' have the same text", hint="keep one of them")


def check_goals(goals: Goals, *, harmful: bool) -> None:
    """Refuse goals over which a rate would mean nothing.

    Raises:
        InputError: no goals, a shared id or text, or a goal that is not ``harmful`` (False: not benign).
    """
    check_distinct(goals.rows, "goal")
    wrong = [goal.id for goal in goals if goal.harmful != harmful]
    if wrong:
        kind, other = ("benign", "measure.over_refusal") if harmful else ("harmful", "measure.refusal")
        raise InputError(
            f"{len(wrong)} of {len(goals)} goals are {kind}, the first is '{wrong[0]}'",
            hint=f"put {kind} goals into a file of their own, and measure them with {other}",
        )


def only(goals: Goals, *, harmful: bool) -> Goals:
    """The goals of one kind of a table that holds both. Raises InputError where there is none of it."""
    rows = tuple(goal for goal in goals if goal.harmful == harmful)
    if not rows:
        kind = "harmful" if harmful else "benign"
        raise InputError(f"none of {len(goals)} goals is {kind}", hint=f"give a table with {kind} goals")
    return goals.model_copy(update={"rows": rows})
