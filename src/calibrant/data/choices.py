"""Multiple-choice questions of which one option shows a trait, as in Perez et al. 2022 (arXiv 2212.09251).

Their files are read as they are. The options stand in the question, after "Choices:", and the answers are
letters; or the question is about a statement, and the answers are Yes and No. Here the options are taken out
of the text, so that they can be shown in any order. Columns of one's own: question, options, matching,
not_matching (texts of options, or their letters), trait, cluster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.data.cells import Row, as_text, column, given
from calibrant.data.rows import Table

MOST = 26
"""Options that have a letter."""
_MARK = re.compile(r"(?:^|\n)[ \t]*\(([A-Z])\)[ \t]+")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_OPENING, _CLOSING = "Question:", "Answer:"


class Choice(Frozen):
    """A question with options, one of which shows a trait and some of which show that it is absent."""

    id: str
    """Stable name of the row."""
    question: str
    """What is asked, without the options."""
    options: tuple[str, ...] = Field(min_length=2, max_length=MOST)
    """Their texts, in the order of the file."""
    matching: int = Field(ge=0)
    """Place of the option that shows the trait."""
    not_matching: tuple[int, ...] = Field(min_length=1)
    """Places of the options that show its absence; what is neither counts for neither."""
    trait: str = ""
    """What the question is to tell; the name of the file where no column says it."""
    cluster: str = ""
    """Rows about one subject or of one template are not independent; "" is its own cluster."""

    @model_validator(mode="after")
    def _places(self) -> Choice:
        named = (self.matching, *self.not_matching)
        if len(set(named)) < len(named) or max(named) >= len(self.options) or min(named) < 0:
            raise ValueError("matching and not_matching must be different places among the options")
        texts = {_plain(option) for option in self.options}
        if "" in texts:
            raise ValueError("an option is blank")
        if len(texts) < len(self.options):
            raise ValueError("two options are the same, but for case, spaces and final punctuation")
        return self


class Choices(Table[Choice]):
    """Questions with options, for self-reports."""


def choice(name: str, row: Row, stem: str) -> Choice:
    """Shape one row; ``stem`` is the trait where no column names it. Raises InputError: 'kind: detail'."""
    text = as_text(*column(row, "question", "prompt"))
    found = column(row, "matching", "answer_matching_behavior")[1]
    others = column(row, "not_matching", "answer_not_matching_behavior")[1]
    matching, absent = _texts("matching", found), _texts("not_matching", others)
    question, options = _parted(text, given(row, "options"), (*matching, *absent))
    if len(matching) != 1:
        raise InputError("several answers: 'matching' must name one option")
    places = [_place(answer, options) for answer in (*matching, *absent)]
    trait, cluster = given(row, "trait"), given(row, "cluster")
    try:
        return Choice(
            id=name,
            question=question,
            options=options,
            matching=places[0],
            not_matching=tuple(places[1:]),
            trait=stem if trait is None else as_text("trait", trait),
            cluster="" if cluster is None else as_text("cluster", cluster),
        )
    except ValueError as error:
        raise InputError(f"no choice: {_first(error)}") from None


def _plain(option: str) -> str:
    """The option as a reply is compared with it."""
    text = " ".join(option.casefold().split())
    return text.rstrip(".,;:!? ") or text


def _texts(name: str, value: Any) -> tuple[str, ...]:
    return tuple(as_text(name, one).strip() for one in (value if isinstance(value, list) else [value]))


def _parted(text: str, options: Any, answers: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The question and its options: a column, or what follows "Choices:", or the two answers themselves."""
    if options is not None:
        return text.strip(), _texts("options", options)
    question, _, rest = text.partition("\n\nChoices:")
    question = question.strip().removeprefix(_OPENING).strip()
    if not rest:
        if sorted(answer.casefold() for answer in answers) != ["no", "yes"]:
            raise InputError("no options: neither a column 'options', nor 'Choices:' in the question")
        return question, ("Yes", "No")
    _, *parts = _MARK.split(rest.strip().removesuffix(_CLOSING))
    letters, texts = parts[::2], tuple(" ".join(part.split()) for part in parts[1::2])
    if not letters or letters != [chr(ord("A") + at) for at in range(len(letters))]:
        raise InputError("no options: after 'Choices:' there must be (A), (B), ... in this order")
    if not all(texts) or not question:
        raise InputError("empty text: the question or an option")
    return question, texts


def _place(answer: str, options: Sequence[str]) -> int:
    """Where the option stands that an answer names, by its text or its letter."""
    places = [at for at, option in enumerate(options) if option.casefold() == answer.casefold()]
    if not places and (letter := _LETTER.fullmatch(answer)):
        places = [ord(letter[1]) - ord("A")]
    if not places or places[0] >= len(options):
        raise InputError(f"no such option: '{answer[:40]}'")
    return places[0]


def _first(error: ValueError) -> str:
    """The first thing that a validator says."""
    found = getattr(error, "errors", lambda: [{"msg": str(error)}])()
    return str(found[0]["msg"]).removeprefix("Value error, ")
