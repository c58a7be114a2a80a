"""Votes: which of two outputs a rater prefers; see ``answers`` for the file.

    {"item": "q1", "rater": "ann", "first": "b", "choice": "second", "repeat": false}

``first`` says which side, a or b, was shown first; ``repeat`` marks a hidden second showing.

What is compared is held as a ``Pair``: side a in ``chosen``, side b in ``rejected``. Its file has the columns
``prompt``, ``a`` and ``b``, or is a file of preference pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from calibrant.core.digest import canonical
from calibrant.core.errors import InputError, nearest
from calibrant.data.answers import Answer, Answers, Showing, circumstances, replayed
from calibrant.data.cells import as_boolean, as_text, found_in
from calibrant.data.columns import ignoring
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.readers import read
from calibrant.data.rows import Pair, Preferences

Side = Literal["a", "b"]
Choice = Literal["first", "second", "both good", "both bad", "same"]
"""The side shown first, the one shown second, or one of three ties; 'same' = no difference."""
CHOICES: tuple[Choice, ...] = get_args(Choice)
Winner = Literal["a", "b", "tie"]
"""What a vote comes to: these are the labels of which agreement is measured."""


class Vote(Answer):
    """One rater's answer to one showing of a comparison."""

    kind: ClassVar[str] = "vote"
    about: ClassVar[str] = "comparisons"

    item: str
    """Id of the comparison."""
    first: Side
    """Which side was shown first."""
    choice: Choice
    """What was answered."""
    repeat: bool = False
    """True for a hidden second showing, which only serves to see whether the rater agrees with himself."""

    @property
    def winner(self) -> Winner:
        """The preferred side; all three ties are 'tie'."""
        if self.choice == "first":
            return self.first
        if self.choice == "second":
            return "b" if self.first == "a" else "a"
        return "tie"

    @property
    def row(self) -> str:
        """Id of the comparison."""
        return self.item

    @property
    def showing(self) -> Showing:
        """What was answered, by whom: unique among standing votes."""
        return self.item, self.rater, self.repeat


class Votes(Answers[Vote]):
    """Standing votes."""


def read_votes(path: Path) -> Votes:
    """Read a file of votes.

    Raises:
        InputError: see ``raw_rows`` and ``votes_from``.
    """
    return votes_from(raw_rows(path), str(path))


def votes_from(rows: Iterable[RawRow], source: str) -> Votes:
    """Replay lines of votes and undos.

    Raises:
        InputError: see ``replayed``.
    """
    return replayed(rows, source, Votes, Vote, _vote)


def read_comparisons(path: Path, ignore: Collection[str] = ()) -> Preferences:
    """Read what is to be compared; side a stands in ``chosen`` and side b in ``rejected``.

    Raises:
        InputError: see ``raw_rows``, ``ignoring`` and ``read``; there is no comparison in it.
    """
    try:
        return read(Preferences, _renamed(ignoring(raw_rows(path), ignore)), str(path))
    except InputError as error:
        if "missing column" not in error.message:
            raise
        raise InputError(
            error.message,
            hint="a comparison needs the columns prompt, a and b, or those of a preference pair",
        ) from None


def ratings_of(votes: Iterable[Vote]) -> list[tuple[str, str, str]]:
    """(item, rater, winner) of every first showing, for ``stats.agreement.ratings``."""
    return [(vote.item, vote.rater, vote.winner) for vote in votes if not vote.repeat]


def consensus(votes: Votes) -> dict[str, Winner]:
    """Item -> the answer that most raters gave, repeats aside; 'tie' where no answer leads."""
    winners: dict[str, Counter[Winner]] = {}
    for vote in votes:
        if not vote.repeat:
            winners.setdefault(vote.item, Counter())[vote.winner] += 1
    return {item: _leader(answers) for item, answers in winners.items()}


def pairs_from(comparisons: Preferences, votes: Votes) -> list[Pair]:
    """The comparisons on which the raters' consensus prefers a side, as pairs, in the order given.

    Raises:
        InputError: the votes are on other comparisons.
    """
    known = {row.id for row in comparisons}
    foreign = next((vote.item for vote in votes if vote.item not in known), None)
    if foreign is not None or votes.data not in ("", comparisons.digest):
        raise InputError(
            f"{votes.source} holds votes on other comparisons than {comparisons.source}"
            + (f": '{foreign}' is not among them" if foreign else ""),
            hint="name the file that was voted on, unchanged",
        )
    agreed = consensus(votes)
    people = {"chosen_probability": 1.0, "principle": ""}  # whatever a model said of them before
    return [
        row.model_copy(update=people)
        if agreed[row.id] == "a"
        else row.model_copy(update={**people, "chosen": row.rejected, "rejected": row.chosen})
        for row in comparisons
        if agreed.get(row.id, "tie") != "tie"
    ]


def pair_line(pair: Pair) -> bytes:
    """One pair as a line in TRL's conversational format, with its id; the reader of pairs opens it."""
    replies = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    return canonical({"id": pair.id, "prompt": pair.prompt.messages, **replies}) + b"\n"


def comparison_line(pair: Pair) -> bytes:
    """One comparison as a line that ``read_comparisons`` opens."""
    row = {"id": pair.id, "prompt": pair.prompt.messages, "a": pair.chosen, "b": pair.rejected}
    return canonical(row) + b"\n"


def _leader(answers: Counter[Winner]) -> Winner:
    (best, most), *rest = answers.most_common()
    return "tie" if rest and rest[0][1] == most else best


def _renamed(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Columns a and b under the names that the reader of pairs knows."""
    for line, raw in rows:
        if isinstance(raw, Mapping) and "a" in raw and "b" in raw:
            rest = {name: value for name, value in raw.items() if name not in ("a", "b")}
            yield line, {**rest, "chosen": raw["a"], "rejected": raw["b"]}
        else:
            yield line, raw


def _vote(raw: Mapping[str, Any]) -> Vote:
    """Shape one line."""
    first, choice = _text(raw, "first"), _text(raw, "choice")
    if first not in get_args(Side):
        raise InputError(f"'first' is {first!r}, neither 'a' nor 'b'")
    if choice not in CHOICES:
        near = nearest(choice, CHOICES)
        raise InputError(f"'choice' is {choice!r}{near}, none of: {', '.join(CHOICES)}")
    repeat = as_boolean("repeat", raw.get("repeat", False))
    return Vote(
        item=_text(raw, "item"),
        rater=_text(raw, "rater"),
        first=first,
        choice=choice,
        repeat=repeat,
        **circumstances(raw, get_args(Winner)),
    )


def _text(raw: Mapping[str, Any], name: str) -> str:
    if name not in raw:
        raise InputError(f"no '{name}'{nearest(name, raw)}; found: {found_in(raw)}")
    return as_text(name, raw[name])
