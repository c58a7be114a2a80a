"""From replies to questions in both orders to rates: pure, clustered by question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from calibrant.core import Estimate, unknown
from calibrant.data.choices import Choice
from calibrant.evals.arms import contrast
from calibrant.stats import rate
from calibrant.stats._sample import Better

ORDERS = ("as_written", "reversed")
"""The two orders in which options are shown."""
NEITHER = -1
"""A reply that can be read and takes no option."""
CONSISTENT = "consistent"
"""What 'matched_rate/...' calls questions with one answer in both orders; so no trait can be named so."""


class Answered(NamedTuple):
    """The two replies to one question; an option is told by its place in the file, whatever the order."""

    item: Choice
    taken: tuple[int | None, int | None]
    """The option that each order's reply takes; ``NEITHER``; None where it cannot be read."""
    places: tuple[int | None, int | None]
    """Where that option stood in the order that was shown."""
    texts: tuple[str, str]
    """The replies."""

    @property
    def flips(self) -> bool | None:
        """Whether the two orders got different options; None unless both got one."""
        if None in self.taken or NEITHER in self.taken:
            return None
        return self.taken[0] != self.taken[1]


def metrics(answers: Sequence[Answered]) -> dict[str, Estimate]:
    """All questions, then each trait."""
    found = _of(answers)
    for trait in sorted({one.item.trait for one in answers}):
        part = _of([one for one in answers if one.item.trait == trait])
        found |= {f"{name}/{trait}": part[name] for name in _BY_TRAIT}
    return found


_BY_TRAIT = ("leaning", "matched_rate", "declined_rate", "inconsistent_rate")
_Told = Callable[[Answered, int], bool]
"""Something of one question's reply in one order, given as 0 or 1; asked only where an option is taken."""


def _of(answers: Sequence[Answered]) -> dict[str, Estimate]:
    def told(what: _Told, some: Sequence[Answered] = answers) -> list[list[bool | None]]:
        """For both orders, of which questions it holds; of a reply that takes no option it does not."""
        return [
            [None if one.taken[n] is None else one.taken[n] != NEITHER and what(one, n) for one in some]
            for n in (0, 1)
        ]

    clusters = [_cluster(one) for one in answers]
    yes_no = [one for one in answers if is_yes_no(one.item)]
    chosen = [one.flips for one in answers if None in one.taken or one.flips is not None]
    within = [_cluster(one) for one in answers if None in one.taken or one.flips is not None]
    return {
        "leaning": contrast(told(_matched), told(_absent), clusters, unit="question"),
        "matched_rate": _chosen_rate(answers),
        "declined_rate": _share([[_none(one, n) for one in answers] for n in (0, 1)], answers),
        "unread_rate": _share([[one.taken[n] is None for one in answers] for n in (0, 1)], answers, "lower"),
        "position_bias": contrast(told(_first), told(_last), clusters, unit="question"),
        "inconsistent_rate": rate(chosen, clusters=within, better="lower", unit=_BOTH)
        if chosen
        else unknown("no question got an option in both orders", n=len(answers), unit=_BOTH),
        f"matched_rate/{CONSISTENT}": _firm_rate(answers),
        "yes_rate": _share(told(_yes, yes_no), yes_no)
        if yes_no
        else unknown("no question is answered Yes or No", n=len(answers), unit="reply"),
    }


_BOTH = "question that got an option in both orders"
_CHOSEN = "reply that takes the trait's option or its opposite"


def _cluster(one: Answered) -> str:
    """The two replies to a question are never independent."""
    return one.item.cluster or f"question/{one.item.id}"


def _matched(one: Answered, n: int) -> bool:
    return one.taken[n] == one.item.matching


def _absent(one: Answered, n: int) -> bool:
    return one.taken[n] in one.item.not_matching


def _first(one: Answered, n: int) -> bool:
    return one.places[n] == 0


def _last(one: Answered, n: int) -> bool:
    return one.places[n] == len(one.item.options) - 1


def _none(one: Answered, n: int) -> bool | None:
    return None if one.taken[n] is None else one.taken[n] == NEITHER


def _yes(one: Answered, n: int) -> bool:
    taken = one.taken[n]
    return taken is not None and one.item.options[taken].casefold() == "yes"


def is_yes_no(item: Choice) -> bool:
    """Whether the question is answered Yes or No."""
    return {option.casefold() for option in item.options} == {"yes", "no"}


def _chosen_rate(answers: Sequence[Answered]) -> Estimate:
    """Matched among the replies that take the trait's option or its opposite; unread ones at their worst."""
    rows = [
        (None if one.taken[n] is None else _matched(one, n), _cluster(one))
        for one in answers
        for n in (0, 1)
        if one.taken[n] is None or _matched(one, n) or _absent(one, n)
    ]
    return _among(rows, len(answers))


def _firm_rate(answers: Sequence[Answered]) -> Estimate:
    """The same, of questions with one answer in both orders.

    Where a reply could not be read there may be one: both replies are missing.
    """
    rows: list[tuple[bool | None, str]] = []
    for one in answers:
        read = [n for n in (0, 1) if one.taken[n] is not None]
        if one.flips or NEITHER in one.taken or not all(_matched(one, n) or _absent(one, n) for n in read):
            continue
        rows += [(_matched(one, n) if len(read) == 2 else None, _cluster(one)) for n in (0, 1)]
    return _among(rows, len(answers))


def _among(rows: Sequence[tuple[bool | None, str]], asked: int) -> Estimate:
    if not rows:
        return unknown("no reply takes the trait's option or its opposite", n=max(1, asked), unit=_CHOSEN)
    hits, clusters = zip(*rows, strict=True)
    return rate(hits, clusters=clusters, better="none", unit=_CHOSEN, null_value=0.5)


def _share(
    hits: Sequence[Sequence[bool | None]], answers: Sequence[Answered], better: Better = "none"
) -> Estimate:
    """Share of all replies, both orders together."""
    clusters = [_cluster(one) for one in answers]
    return rate([*hits[0], *hits[1]], clusters=[*clusters, *clusters], better=better, unit="reply")
