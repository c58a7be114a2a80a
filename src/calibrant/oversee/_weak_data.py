"""What weak-to-strong training is given: three splits without a text in common, classes, weak labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrant.core import InputError, NumericalError, OpenLM
from calibrant.data.distinct import normal_chat
from calibrant.data.rows import ClassedText, ClassedTexts

_SUM = 1e-3  # how far a row's probabilities may be from adding up to 1


@dataclass(frozen=True)
class Task:
    """The checked splits."""

    classes: tuple[str, ...]
    """Names, sorted: the order of all probabilities."""
    student: tuple[ClassedText, ...]
    """What the supervisor labels for the student."""
    test: tuple[ClassedText, ...]
    """What decides."""
    weak: tuple[ClassedText, ...]
    """What the supervisor was trained on; () where that is not known."""
    trained: bool
    """Whether the supervisor is a model that is trained here, or labels that came with the texts."""

    def truth(self, rows: Sequence[ClassedText]) -> Tensor:
        """(N,) int64 places of the true classes."""
        places = {name: at for at, name in enumerate(self.classes)}
        return torch.tensor([places[row.label] for row in rows])

    def exact(self, rows: Sequence[ClassedText]) -> Tensor:
        """(N, K) float64: 1 at the true class."""
        return torch.nn.functional.one_hot(self.truth(rows), len(self.classes)).double()

    def given(self, rows: Sequence[ClassedText]) -> Tensor:
        """(N, K) float64 probabilities that came with the texts, each row adding up to 1."""
        table = torch.tensor(
            [[row.weak.get(name, 0.0) for name in self.classes] for row in rows], dtype=torch.float64
        )
        return table / table.sum(1, keepdim=True)

    @property
    def clusters(self) -> list[str] | None:
        """Of the test texts; None where none is named."""
        named = [row.cluster for row in self.test]
        return named if any(named) else None


def checked(
    student: ClassedTexts, test: ClassedTexts, weak: OpenLM | None, weak_texts: ClassedTexts | None
) -> Task:
    """The splits, or what is wrong with them; nothing is computed.

    Raises:
        InputError: an empty split, a text that two splits or two rows share, one class, a class that a split
            lacks, a supervisor that is missing or given twice, or labels that are no probabilities of the
            classes. NumericalError: a probability is NaN or infinite.
    """
    splits = {"student": student.rows, "test": test.rows}
    if weak_texts is not None:
        splits = {"weak": weak_texts.rows, **splits}
    for name, rows in splits.items():
        if not rows:
            raise InputError(f"the {name} split has no texts", hint="give it some, of every class")
    _check_apart(splits)
    classes = _classes(splits)
    labelled = [row for row in (*student.rows, *test.rows) if row.weak]
    if weak is not None and weak_texts is None:
        raise InputError(
            "the weak model has no texts to learn from", hint="give weak_texts, apart from all others"
        )
    if weak is not None and labelled:
        raise InputError(
            f"there are two supervisors: a weak model, and labels in {len(labelled)} rows, "
            f"'{labelled[0].id}' the first",
            hint="give one: leave out the weak model, or the column 'weak'",
        )
    if weak is None:
        _check_given((*student.rows, *test.rows), classes)
    return Task(classes, student.rows, test.rows, splits.get("weak", ()), weak is not None)


def _check_apart(splits: dict[str, tuple[ClassedText, ...]]) -> None:
    """No text twice, up to case, spaces and Unicode's spellings."""
    seen: dict[object, tuple[str, str]] = {}
    for split, rows in splits.items():
        for row in rows:
            text = normal_chat(row.prompt)
            if text not in seen:
                seen[text] = (split, row.id)
                continue
            other, name = seen[text]
            if other == split:
                raise InputError(
                    f"the {split} split has a text twice: '{name}' and '{row.id}'", hint="keep one of them"
                )
            raise InputError(
                f"leakage: '{row.id}' of the {split} split is the text of '{name}' in the {other} split",
                hint="take it out of one of them: what a model was trained on cannot test or label it",
            )


def _classes(splits: dict[str, tuple[ClassedText, ...]]) -> tuple[str, ...]:
    counts = {split: Counter(row.label for row in rows) for split, rows in splits.items()}
    classes = tuple(sorted({name for count in counts.values() for name in count}))
    if len(classes) < 2:
        raise InputError(
            f"all texts are of the class '{classes[0]}'", hint="give texts of two classes or more"
        )
    for split, count in counts.items():
        missing = [name for name in classes if not count[name]]
        if missing:
            raise InputError(
                f"class '{missing[0]}' never occurs in the {split} split",
                hint="give every split texts of every class, or take the class out of the others",
            )
    return classes


def _check_given(rows: Sequence[ClassedText], classes: tuple[str, ...]) -> None:
    """Probabilities of the classes in every row."""
    bare = [row.id for row in rows if not row.weak]
    if bare:
        raise InputError(
            f"{len(bare)} of {len(rows)} student and test texts have no weak label, '{bare[0]}' the first",
            hint="give a weak model with weak_texts, or a column 'weak' in both splits",
        )
    for row in rows:
        unknown = [name for name in row.weak if name not in classes]
        if unknown:
            raise InputError(
                f"'{row.id}': the weak label '{unknown[0]}' is none of the classes {', '.join(classes)}",
                hint="spell labels and classes alike",
            )
        values = list(row.weak.values())
        odd = [value for value in values if not math.isfinite(value)]
        if odd:
            raise NumericalError(
                f"'{row.id}': the weak label has a probability of {odd[0]}",
                hint="find out why the supervisor broke; leave out texts that it could not read",
            )
        if min(values) < 0 or abs(sum(values) - 1) > _SUM:
            raise InputError(
                f"'{row.id}': {values} are no probabilities that add up to 1",
                hint="give a probability of each class, or the name of one class",
            )
