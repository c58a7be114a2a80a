"""Labelled texts to train a classifier on: what makes them useless, which belong together, and as numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.core import Chat, InputError, Run
from calibrant.data.near import near_groups
from calibrant.data.rows import LabelledText, LabelledTexts
from calibrant.data.text_classifier import Over, Reading
from calibrant.defend._classifier_fits import Table
from calibrant.defend._pieces import all_pieces, lessons, whole
from calibrant.defend._vectors import Vectors
from calibrant.text.decodings import alike

_LEAST = 10
"""Fewest texts of either label."""
_MOST = 6000
"""Most texts of n-grams to train on, chunks and beginnings counted: fits take their products."""
_CHUNK = 64
"""Texts between two looks at budget and progress."""


class Texts(NamedTuple):
    """Rows that can be learnt from."""

    rows: tuple[LabelledText, ...]
    labels: NDArray[np.bool_]
    """(N,) True: may not pass."""
    over: Over
    """What is read of each row."""
    groups: list[str]
    """(N,) the name of each row's group; "" where it is alone."""
    copies: int
    """Rows that are near-duplicates of another one."""
    folded: dict[str, str]
    """What is read of a row, folded -> the row's id."""

    def find(self, text: str) -> str | None:
        """The row with this text, case, marks and look-alikes aside."""
        return self.folded.get(alike(text))


def checked(texts: LabelledTexts, exchange: bool, near: float, limit: int | None, seed: int) -> Texts:
    """The rows, at most ``limit`` of them, drawn at random, and their groups.

    Raises:
        InputError: too few of a label, replies in some rows only (or none for an ``exchange``), an id that
            comes twice, a text that is empty or has both labels, or all rows in one group.
    """
    rows = texts.rows
    if limit is not None and len(rows) > limit:
        rows = tuple(rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit)))
    labels = np.array([row.label for row in rows], np.bool_)
    for label in (True, False):
        if (count := int((labels == label).sum())) < _LEAST:
            raise InputError(
                f"{count} of {len(rows)} texts are labelled {'yes' if label else 'no'}",
                hint=f"a classifier needs {_LEAST} of either label to say anything; 200 say something",
            )
    replied = sum(bool(row.reply) for row in rows)
    if 0 < replied < len(rows):
        raise InputError(
            f"{replied} of {len(rows)} rows have a reply", hint="give all rows a reply to read, or none"
        )
    if exchange and not replied:
        raise InputError("exchange = true reads replies, and no row has one", hint="give all rows a reply")
    over: Over = "exchange" if exchange else "reply" if replied else "prompt"
    read = [whole(chat_of(row), over) for row in rows]
    folded = _folded(rows, read)
    alone, copies = _near(read, near)
    groups = _groups(rows, alone)
    if len(set(groups)) == 1 and groups[0]:
        raise InputError(
            f"all {len(rows)} texts are one group, by template, task and near-duplicates",
            hint="leave the column template or task out, or raise 'near'",
        )
    return Texts(rows, labels, over, groups, copies, folded)


def chat_of(row: LabelledText) -> Chat:
    """What a guard would be asked about: the prompt, and the reply where there is one."""
    return row.prompt.then("assistant", row.reply) if row.reply else row.prompt


def _folded(rows: Sequence[LabelledText], read: Sequence[str]) -> dict[str, str]:
    ids: set[str] = set()
    first: dict[str, LabelledText] = {}
    for row, text in zip(rows, read, strict=True):
        if row.id in ids:
            raise InputError(f"two texts are called '{row.id}'", hint="give each an id of its own")
        ids.add(row.id)
        same = alike(text)
        if not same:
            raise InputError(f"text '{row.id}' is empty", hint="leave it out")
        other = first.setdefault(same, row)
        if other.label != row.label:
            raise InputError(
                f"texts '{other.id}' and '{row.id}' are the same, and have different labels",
                hint="find out which label is right, and leave the other row out",
            )
    return {text: row.id for text, row in first.items()}


def _near(read: Sequence[str], near: float) -> tuple[list[int], int]:
    """The number of each text's group of near-duplicates, and how many texts have others in theirs."""
    numbers = near_groups([alike(text) for text in read], near)
    sizes = np.bincount(numbers, minlength=len(numbers))
    return numbers, int(sum(sizes[number] > 1 for number in numbers))


def _groups(rows: Sequence[LabelledText], numbers: Sequence[int]) -> list[str]:
    """Rows that share a template, a task or a group of near-duplicates, or are joined by a chain of such."""
    above = list(range(len(rows)))

    def top(at: int) -> int:
        while above[at] != at:
            above[at] = above[above[at]]
            at = above[at]
        return at

    first: dict[tuple[str, object], int] = {}
    for at, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        for key in (("template", row.template), ("task", row.task), ("near", number)):
            if key[1] != "":
                low, high = sorted((top(at), top(first.setdefault(key, at))))
                above[high] = low
    tops = [top(at) for at in range(len(rows))]
    sizes = np.bincount(tops)
    return [rows[at].id if sizes[at] > 1 else "" for at in tops]


class _Read(NamedTuple):
    text: str
    taught: bool


def table_of(texts: Texts, reading: Reading, vectors: Vectors, run: Run) -> Table:
    """Every text of every row as numbers.

    Raises:
        InputError: a row has nothing to read, or n-grams of too many texts.
        BudgetError: a model or encoder would be asked too often.
    """
    read: list[_Read] = []
    starts = []
    for row in texts.rows:
        chat = chat_of(row)
        taught = {piece.text for piece in lessons(chat, reading, vectors.fits)}
        if not taught:
            raise InputError(f"text '{row.id}' has no visible character", hint="leave it out")
        starts.append(len(read))
        # What is decoded is scored and not learnt from: its label is that of the text as written.
        scored = [piece.text for piece in all_pieces(chat, reading, vectors.fits)]
        read += [_Read(text, text in taught) for text in scored]
    lessons_ = sum(one.taught for one in read)
    if vectors.digest == "" and lessons_ > _MOST:
        raise InputError(
            f"{len(texts.rows)} rows are {lessons_} texts in chunks and beginnings, more than {_MOST}",
            hint="raise 'chunk' or 'every', or lower 'limit'",
        )
    return Table(
        _rows(vectors, [one.text for one in read], run),
        np.array(starts, np.intp),
        np.array([one.taught for one in read], np.bool_),
        texts.labels,
    )


def _rows(vectors: Vectors, texts: Sequence[str], run: Run) -> object:
    """Rows of all texts; a model is read in parts, within the budget."""
    if vectors.digest == "":
        return vectors.rows(texts)
    found = []
    for start in range(0, len(texts), _CHUNK):
        some = texts[start : start + _CHUNK]
        run.spend(queries=len(some))
        found.append(vectors.rows(some))
        run.progress(start + len(some), len(texts), "reading texts")
    return np.concatenate(found)
