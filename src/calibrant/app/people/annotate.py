"""Human preference collection: blind, random sides, hidden swapped repeats, append-only votes.

    with Session(read_comparisons(file), votes, rater="ann") as session:
        while shown := session.next():
            session.vote("first")
        print(session.consistency())

Each vote is on the disk before the next comparison is shown, so that a kill loses at most an open question.
Which side is shown first, and what is repeated, depends on the data, the rater's name and the seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from calibrant.app.people.answer_file import AnswerSession, Worked
from calibrant.core import Chat, Estimate, InputError, unknown
from calibrant.data.advice import Advised
from calibrant.data.rows import Preferences
from calibrant.data.votes import (
    CHOICES,
    Choice,
    Side,
    Vote,
    pair_line,
    pairs_from,
    ratings_of,
    read_votes,
    votes_from,
)
from calibrant.ledger.layout import disk
from calibrant.stats import rate
from calibrant.stats.agreement import agreement, ratings

GAP = 10
"""Least number of showings between a comparison and its hidden repeat, where there are that many."""


class Shown(NamedTuple):
    """What a person sees: no id, no label, no hint of a repeat."""

    prompt: Chat
    first: str
    second: str
    advice: Advised | None = None
    """What is shown beside them, its side as it is displayed: first, second or tie; None where nothing is."""


class Planned(NamedTuple):
    """One showing: which comparison, which side first, and whether it is a hidden repeat."""

    row: int
    first: Side
    repeat: bool


def plan(n: int, repeats: float, rng: random.Random) -> list[Planned]:
    """All ``n`` comparisons in random order, and a share ``repeats`` of them again later with the sides
    swapped."""
    order = rng.sample(range(n), n)
    sides: list[Side] = [rng.choice(("a", "b")) for _ in order]
    gap = min(GAP, n // 2)
    # A repeat must find its gap before the end, so it is one of those that stand early enough.
    early = range(n - gap)
    again = rng.sample(early, min(round(repeats * n), len(early)))
    places = [(float(at), Planned(row, sides[at], False)) for at, row in enumerate(order)]
    places += [
        (rng.randint(at + gap, n - 1) + 0.5, Planned(order[at], _other(sides[at]), True)) for at in again
    ]
    return [planned for _, planned in sorted(places, key=lambda place: place[0])]


class Session(AnswerSession[Vote]):
    """One rater's session. It holds the file of votes until it is closed."""

    def __init__(
        self,
        comparisons: Preferences,
        votes: Path,
        rater: str,
        *,
        seed: int = 0,
        repeats: float = 0.1,
        worked: Worked = Worked(),
    ) -> None:
        """Open or make the file ``votes`` for comparisons, see ``data.votes``.

        The seed decides sides and repeats, too. ``repeats`` is the share of the comparisons that are shown
        again swapped, from 0 to 1.

        Raises:
            InputError: no such share; see ``AnswerSession``.
        """
        if not 0 <= repeats <= 1:
            raise InputError(f"repeats = {repeats} is not a share", hint="give a number from 0 to 1")
        super().__init__(comparisons, votes, rater, seed, Vote, votes_from, worked)
        self._rows = comparisons.rows
        self._plan = plan(len(self._rows), repeats, self._random)

    @property
    def total(self) -> int:
        """Showings in all, hidden repeats included."""
        return len(self._plan)

    @property
    def done(self) -> int:
        """Showings that this rater has answered."""
        return sum(self._showing(planned) in self._answers for planned in self._plan)

    def next(self) -> Shown | None:
        """The first open showing; None when there is none."""
        open_one = self._open()
        if open_one is None:
            return None
        row = self._rows[open_one.row]
        sides = {"a": row.chosen, "b": row.rejected}
        first = self._first(open_one)
        advised = self.advised(row.id)
        if advised is not None:
            places: dict[str, str] = {first: "first", _other(first): "second"}
            advised = advised.model_copy(update={"says": places.get(advised.says, advised.says)})
        return Shown(row.prompt, sides[first], sides[_other(first)], advised)

    def vote(self, choice: Choice) -> None:
        """Answer what ``next`` shows; it is on the disk when this returns.

        Raises:
            InputError: no such choice, nothing to answer, or the disk refuses (the vote is then not given).
        """
        open_one = self._open()
        if choice not in CHOICES or open_one is None:
            problem = "there is nothing left to vote on" if open_one is None else f"no choice {choice!r}"
            raise InputError(problem, hint=f"choices: {', '.join(CHOICES)}")
        item, rater, repeat = self._showing(open_one)
        self._give(Vote(item=item, rater=rater, first=self._first(open_one), choice=choice, repeat=repeat))

    def consistency(self) -> Estimate:
        """How often this rater preferred the same side, or none, when a comparison came back swapped."""
        own = {showing: vote.winner for showing, vote in self._answers.items() if vote.rater == self.rater}
        same = [
            own[item, rater, False] == winner
            for (item, rater, repeat), winner in own.items()
            if repeat and (item, rater, False) in own
        ]
        if not same:
            return unknown("no comparison was answered twice", unit="repeat")
        return rate(same, better="higher", unit="repeat")

    def agreement(self) -> Estimate:
        """How often two raters of a comparison gave the same answer: a, b or tie."""
        return agreement(ratings(ratings_of(self._answers.values()), ("a", "b", "tie")))

    def _showing(self, planned: Planned) -> tuple[str, str, bool]:
        return self._rows[planned.row].id, self.rater, planned.repeat

    def _open(self) -> Planned | None:
        return next((one for one in self._plan if self._showing(one) not in self._answers), None)

    def _first(self, planned: Planned) -> Side:
        """Which side to show first; a repeat is the mirror of what was shown, under whatever seed."""
        seen = self._answers.get((self._rows[planned.row].id, self.rater, False))
        return _other(seen.first) if planned.repeat and seen else planned.first


class Exported(NamedTuple):
    """What became of the comparisons."""

    written: int
    """Pairs in the file."""
    undecided: int
    """Comparisons whose votes prefer no side."""
    unvoted: int
    """Comparisons without a vote."""


def export_pairs(comparisons: Preferences, votes: Path, path: Path) -> Exported:
    """Write the pairs that the raters' consensus prefers, in TRL's columns, to ``path``.

    Raises:
        InputError: votes on other comparisons, or files that cannot be read or written.
    """
    answers = read_votes(votes)
    pairs = pairs_from(comparisons, answers)
    draft = path.with_name(f"{path.name}.draft")
    with disk("writing", path):
        draft.write_bytes(b"".join(pair_line(pair) for pair in pairs))
        draft.replace(path)  # whole or not at all
    voted = len({vote.item for vote in answers if not vote.repeat})
    return Exported(len(pairs), voted - len(pairs), len(comparisons) - voted)


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"
