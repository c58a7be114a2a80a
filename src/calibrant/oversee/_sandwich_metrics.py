"""Means over answers of annotators about items, crossed: both vary, and both are in every interval.

Where two conditions are compared on the same items, answers are averaged within an item first, so that each
item weighs the same in both, however many answered it (else Simpson's paradox: hard items that more people
answered with advice look like harm of the advice).

The items' part is the spread of the figure where items are drawn with replacement, the annotators' part where
annotators are; each goes by Student's t, and they are added in quadrature (as in ``stats.seeded``). What both
share is counted twice, so the sum is a little wide, never narrow. All figures use the same draws, so that
differences are paired by item and, where the same people answered, by annotator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from calibrant.core import Estimate, unknown
from calibrant.stats._sample import Better, Floats, sentence
from calibrant.stats.gap import ratio_ends, unresolved

RESAMPLES = 1000
_ALIKE = 1e-12
_BLOCK = 100
UNIT = "answer"
Codes = np.ndarray[tuple[int], np.dtype[np.int_]]
FIXED = ""
"""Who is not drawn: an expert, who is taken as given, or the advice."""
_ONE = "one annotator: nothing shows how annotators differ"


class Mark(NamedTuple):
    """One yes or no about one answer; None where it cannot be said."""

    rater: str
    item: str
    value: bool | None


class Draws:
    """Items and annotators, and how often each is drawn."""

    def __init__(self, raters: Mapping[str, str], items: Sequence[str], level: float) -> None:
        """``raters``: name -> the conditions in which somebody answered; people are drawn within these."""
        rng = np.random.default_rng(0)
        self._items = {name: at for at, name in enumerate(sorted(set(items)))}
        self._by_item = _drawn(len(self._items), rng)
        self._raters = {name: at for at, name in enumerate(sorted(raters))}
        self._by_rater = np.ones((RESAMPLES, len(raters)))
        for group in sorted(set(raters.values())):
            places = [self._raters[name] for name in sorted(raters) if raters[name] == group]
            self._by_rater[:, places] = _drawn(len(places), rng)
        self._raters[FIXED] = len(raters)
        self._by_rater = np.concatenate([self._by_rater, np.ones((RESAMPLES, 1))], axis=1)
        self._rng, self.level = rng, level

    def difference(
        self,
        one: Sequence[Mark],
        other: Sequence[Mark] | None = None,
        *,
        better: Better,
        null: float | None = None,
        none: str,
        n: int,
        even: bool = False,
    ) -> Estimate:
        """Mean of ``one``, less that of ``other`` where it is given; ``none`` says why there is none.

        ``even``: both are on the same items, and each item weighs the same in both.
        """
        tables = [one] if other is None else [one, other]
        return self.contrast(tables, [1.0, -1.0], better=better, null=null, none=none, n=n, even=even)

    def contrast(
        self,
        tables: Sequence[Sequence[Mark]],
        signs: Sequence[float],
        *,
        better: Better,
        null: float | None = None,
        none: str,
        n: int,
        even: bool = False,
    ) -> Estimate:
        """Sum of the tables' means times their ``signs``, see ``difference``."""
        if not all(tables):
            return unknown(none, n=n, unit=UNIT)
        signs = signs[: len(tables)]
        known, low, high = (self._figure(tables, signs, side, even) for side in (None, -1.0, 1.0))
        raters = _people(tables)
        items = min(len({mark.item for mark in table}) for table in tables)
        if items == 1:
            return unknown("one item shows nothing of how items differ", n=len(tables[0]), unit=UNIT)
        halves = [self._half(side, items, raters) for side in (known, low, high)]
        bounds = (0.0, 1.0) if len(tables) == 1 else (-1.0, 1.0)
        value: float | None = known[0]
        lost = sum(mark.value is None for table in tables for mark in table)
        every = sum(map(len, tables))
        reason = [_ONE if raters == 1 else ""]
        moved = max(known[0] - low[0], high[0] - known[0])
        if not all(_said(tables, even)):
            value = None
            reason.append(f"{lost} of {every} are unsure, and nothing is left to compare")
        elif moved > halves[0]:
            value = None
            reason.append(f"{lost} of {every} are unsure: they could move {known[0]:.3f} by {moved:.3f}")
        inside = known[0] if value is not None else low[0]
        return Estimate(
            value=value,
            low=max(bounds[0], min(low[0] - halves[1], inside)),
            high=min(bounds[1], max(high[0] + halves[2], inside)),
            level=self.level,
            n=max(len(tables[0]), lost),
            clusters=items,
            missing=lost,
            reason=sentence(reason),
            method="items and annotators, student-t",
            unit=UNIT,
            better=better,
            null_value=null,
        )

    def recovered(self, three: Sequence[Sequence[Mark]], gap: Estimate) -> Estimate:
        """(between - floor) / (ceiling - floor) of ``three``, where the gap below the line is resolved."""
        n, k = len(three[1]), max(2, _people(three))
        if not all(_said(three, even=True)):
            told = "no item has an answer that is not unsure in all three conditions"
            return unknown(told, n=n, unit="share of the gap")
        arms = self._parts(three, [1.0] * len(three), None, even=True)
        means = np.array([value for value, _, _ in arms])
        whole = float(means[2] - means[0])
        by_item = np.stack([items for _, items, _ in arms]) - means[:, None]
        by_rater = np.stack([people for _, _, people in arms]) - means[:, None]
        chance = np.sqrt(k / self._rng.chisquare(k - 1, RESAMPLES))  # student's t: annotators are few
        drawn = means[:, None] + by_item + by_rater * chance
        drawn = drawn[:, np.isfinite(drawn).all(0)]  # not those whose annotators share no item
        if drawn.shape[1] < RESAMPLES // 10:
            told = "annotators share too few items: in most draws of them, none has all three conditions"
            return unknown(told, n=n, unit="share of the gap")
        told = unresolved(whole, float(np.std(drawn[2] - drawn[0])), gap)
        if told:
            return unknown(told, n=n, unit="share of the gap")
        ends = ratio_ends(drawn, self.level)
        if isinstance(ends, float):
            told = f"the gap of {whole:.3f} is not above 0 in {ends:.1%} of the draws of items and annotators"
            return unknown(told, n=n, unit="share of the gap")
        value = float(means[1] - means[0]) / whole
        lost = sum(mark.value is None for arm in three for mark in arm)
        if lost:
            told = f"{lost} answers are unsure, and no end holds what they could be"
            return unknown(told, n=max(n, lost), unit="share of the gap")
        return Estimate(
            value=value,
            low=min(ends[0], value),
            high=max(ends[1], value),
            level=self.level,
            n=n,
            clusters=len({mark.item for mark in three[1]}),
            reason=_ONE if _people(three) == 1 else "",
            method="joint draws of items and annotators",
            unit="share of the gap",
            better="higher",
            null_value=0.0,
        )

    def _figure(
        self, tables: Sequence[Sequence[Mark]], signs: Sequence[float], side: float | None, even: bool
    ) -> tuple[float, Floats, Floats]:
        """The figure, and its values in draws of items and of annotators. ``side``: what is unsure counts as
        not at all (None), or as what makes the figure least (-1) or greatest (1)."""
        parts = self._parts(tables, signs, side, even)
        value, items, people = (
            sum(sign * one[at] for sign, one in zip(signs, parts, strict=True)) for at in range(3)
        )
        return float(value), np.asarray(items), np.asarray(people)

    def _parts(
        self, tables: Sequence[Sequence[Mark]], signs: Sequence[float], side: float | None, even: bool
    ) -> list[tuple[float, Floats, Floats]]:
        """Of each table what ``_figure`` holds of all."""
        held: list[_Held] = []
        for table, sign in zip(_known(tables, even) if side is None else tables, signs, strict=True):
            filled = None if side is None else float(side * sign > 0)
            x = np.array([filled if mark.value is None else float(mark.value) for mark in table], dtype=float)
            items = np.array([self._items[mark.item] for mark in table], dtype=int)
            raters = np.array([self._raters[mark.rater] for mark in table], dtype=int)
            each = 1.0 / np.bincount(items)[items] if even and x.size else np.ones(x.size)
            held.append(_Held(x, items, raters, each))
        if even and all(one.x.size for one in held):
            people = _within(held, len(self._items), self._by_rater)
        else:
            people = [_means(one.x, one.raters, one.each, self._by_rater) for one in held]
        return [
            (
                float(np.average(one.x, weights=one.each)) if one.x.size else 0.0,
                _means(one.x, one.items, one.each, self._by_item),
                drawn,
            )
            for one, drawn in zip(held, people, strict=True)
        ]

    def _half(self, figure: tuple[float, Floats, Floats], items: int, raters: int) -> float:
        """Half of the interval: the items' part, and the annotators' where there are two or more."""
        parts = []
        for drawn, k in ((figure[1], items), (figure[2], raters)):
            if k > 1:
                times = float(stdtrit(k - 1, (1 + self.level) / 2)) * math.sqrt(k / (k - 1))
                parts.append(times * float(np.nanstd(drawn)))
        if parts[0] <= _ALIKE:  # all items agree: allow for those that differ unseen
            parts[0] = 1.0 - ((1 - self.level) / 2) ** (1 / items)
        return math.hypot(*parts)


class _Held(NamedTuple):
    """Answers of a table: 0 or 1, places of items and annotators, and what each weighs."""

    x: Floats
    items: Codes
    raters: Codes
    each: Floats


def _known(tables: Sequence[Sequence[Mark]], even: bool) -> list[list[Mark]]:
    """What is not unsure; with ``even``, on items where every table holds such an answer."""
    sure = [[mark for mark in table if mark.value is not None] for table in tables]
    return _common(sure) if even else sure


def _common(tables: Sequence[Sequence[Mark]]) -> list[list[Mark]]:
    items = set.intersection(*({mark.item for mark in table if mark.value is not None} for table in tables))
    return [[mark for mark in table if mark.item in items] for table in tables]


def _said(tables: Sequence[Sequence[Mark]], even: bool) -> list[bool]:
    return [bool(table) for table in _known(tables, even)]


def _people(tables: Sequence[Sequence[Mark]]) -> int:
    """Annotators of the table that has fewest, of those whose annotators are drawn; 0 where none are."""
    counts = [len({mark.rater for mark in table} - {FIXED}) for table in tables]
    return min((count for count in counts if count), default=0)


def _drawn(k: int, rng: np.random.Generator) -> Floats:
    return rng.multinomial(k, [1 / k] * k, RESAMPLES).astype(float) if k > 1 else np.ones((RESAMPLES, k))


def _within(held: Sequence[_Held], items: int, drawn: Floats) -> list[Floats]:
    """(r,) mean over items of their means in each draw of annotators, on items that all tables have in it."""
    people = drawn.shape[1]
    sums, counts = [], []
    for one in held:
        at = one.items + items * one.raters
        sums.append(np.bincount(at, one.x, items * people).reshape(people, items))
        counts.append(np.bincount(at, minlength=items * people).reshape(people, items).astype(float))
    found: list[list[Floats]] = [[] for _ in held]
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, len(drawn), _BLOCK):
            block = drawn[start : start + _BLOCK]
            means = [(block @ one) / (block @ count) for one, count in zip(sums, counts, strict=True)]
            shared = np.all([np.isfinite(one) for one in means], axis=0)
            for place, one in enumerate(means):
                found[place].append(np.where(shared, one, 0.0).sum(1) / shared.sum(1))
    return [np.concatenate(one) for one in found]


def _means(x: Floats, codes: Codes, each: Floats, drawn: Floats) -> Floats:
    """(r,) mean in each draw, of answers that weigh ``each``; NaN where nothing was drawn."""
    if not x.size:
        return np.zeros(len(drawn))
    size = drawn.shape[1]
    sums, counts = np.bincount(codes, x * each, size), np.bincount(codes, each, size)
    with np.errstate(invalid="ignore"):
        return np.asarray((drawn @ sums) / (drawn @ counts))
