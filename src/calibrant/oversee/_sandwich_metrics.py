"""Means over answers of annotators about items, crossed: both vary, and both are in every interval.

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
UNIT = "answer"
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
    ) -> Estimate:
        """Mean of ``one``, less that of ``other`` where it is given; ``none`` says why there is none."""
        tables = [one] if other is None else [one, other]
        if not all(tables):
            return unknown(none, n=n, unit=UNIT)
        signs = [1.0, -1.0][: len(tables)]
        known, low, high = (self._figure(tables, signs, side) for side in (None, -1.0, 1.0))
        raters = _people(tables)
        items = min(len({mark.item for mark in table}) for table in tables)
        if items == 1:
            return unknown("one item shows nothing of how items differ", n=len(one), unit=UNIT)
        halves = [self._half(side, items, raters) for side in (known, low, high)]
        bounds = (0.0, 1.0) if other is None else (-1.0, 1.0)
        value: float | None = known[0]
        lost = sum(mark.value is None for mark in one)
        reason = [_ONE if raters == 1 else ""]
        moved = max(known[0] - low[0], high[0] - known[0])
        if moved > halves[0] or lost == len(one):
            value = None
            reason.append(f"{lost} of {len(one)} are unsure: they could move {known[0]:.3f} by {moved:.3f}")
        return Estimate(
            value=value,
            low=max(bounds[0], min(low[0] - halves[1], known[0])),
            high=min(bounds[1], max(high[0] + halves[2], known[0])),
            level=self.level,
            n=len(one),
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
        arms = [self._figure([arm], [1.0], None) for arm in three]
        means = np.array([value for value, _, _ in arms])
        whole = float(means[2] - means[0])
        by_item = np.stack([items for _, items, _ in arms]) - means[:, None]
        by_rater = np.stack([people for _, _, people in arms]) - means[:, None]
        chance = np.sqrt(k / self._rng.chisquare(k - 1, RESAMPLES))  # student's t: annotators are few
        drawn = means[:, None] + by_item + by_rater * chance
        told = unresolved(whole, float(np.nanstd(drawn[2] - drawn[0])), gap)
        if told:
            return unknown(told, n=n, unit="share of the gap")
        ends = ratio_ends(np.nan_to_num(drawn, nan=-np.inf), self.level)
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
            method="joint draws of items and annotators",
            unit="share of the gap",
            better="higher",
            null_value=0.0,
        )

    def _figure(
        self, tables: Sequence[Sequence[Mark]], signs: Sequence[float], side: float | None
    ) -> tuple[float, Floats, Floats]:
        """The figure, and its values in draws of items and of annotators. ``side``: what is unsure counts as
        not at all (None), or as what makes the figure least (-1) or greatest (1)."""
        value, by_item, by_rater = 0.0, np.zeros(RESAMPLES), np.zeros(RESAMPLES)
        for table, sign in zip(tables, signs, strict=True):
            kept = [mark for mark in table if side is not None or mark.value is not None]
            filled = None if side is None else float(side * sign > 0)
            x = np.array([filled if mark.value is None else float(mark.value) for mark in kept], dtype=float)
            items = np.array([self._items[mark.item] for mark in kept], dtype=int)
            raters = np.array([self._raters[mark.rater] for mark in kept], dtype=int)
            value += sign * (float(x.mean()) if x.size else 0.0)
            by_item += sign * _means(x, items, self._by_item)
            by_rater += sign * _means(x, raters, self._by_rater)
        return value, by_item, by_rater

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


def _people(tables: Sequence[Sequence[Mark]]) -> int:
    """Annotators of the table that has fewest, of those whose annotators are drawn; 0 where none are."""
    counts = [len({mark.rater for mark in table} - {FIXED}) for table in tables]
    return min((count for count in counts if count), default=0)


def _drawn(k: int, rng: np.random.Generator) -> Floats:
    return rng.multinomial(k, [1 / k] * k, RESAMPLES).astype(float) if k > 1 else np.ones((RESAMPLES, k))


def _means(x: Floats, codes: np.ndarray[tuple[int], np.dtype[np.int_]], weights: Floats) -> Floats:
    """(r,) mean in each draw; NaN where nothing was drawn."""
    if not x.size:
        return np.zeros(len(weights))
    size = weights.shape[1]
    sums, counts = np.bincount(codes, x, size), np.bincount(codes, minlength=size)
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ sums) / (weights @ counts))
