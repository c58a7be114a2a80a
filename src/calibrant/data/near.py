"""Near-duplicates of texts, between two sets or in one: exact, by the overlap of word shingles.

A text is the set of its runs of three words, case and punctuation aside. Two texts are alike when the Jaccard
similarity of their sets reaches a threshold (Broder 1997). All such pairs are found without comparing each
with each: sets that similar must share one of their rarest shingles (prefix filter; Bayardo, Ma & Srikant
2007, "Scaling up all pairs similarity search"), so nothing is missed and nothing is drawn at random.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

_WORDS = re.compile(r"\w+")
_RUN = 3


class Alike(NamedTuple):
    """Two texts that are nearly the same."""

    query: int
    """Place in the first list."""
    match: int
    """Place in the second list of the text that is most like it, the first of several."""
    similarity: float
    """Jaccard similarity of their shingles, from the threshold to 1."""


def shingles(text: str) -> frozenset[str]:
    """Runs of three words; a shorter text is one run, and one without words is itself."""
    words = _WORDS.findall(text.casefold())
    if len(words) <= _RUN:
        return frozenset([" ".join(words) or text])
    return frozenset(" ".join(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared shingles over all shingles."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def near(queries: Sequence[str], texts: Sequence[str], threshold: float) -> list[Alike]:
    """For each query that is like some text, the text that it is most like; in the order of the queries."""
    wanted, known = [shingles(text) for text in queries], [shingles(text) for text in texts]
    often = Counter(shingle for group in (wanted, known) for one in group for shingle in one)
    index: dict[str, list[int]] = defaultdict(list)
    for at, one in enumerate(known):
        for shingle in _rarest(one, often, threshold):
            index[shingle].append(at)
    pairs = []
    for at, one in enumerate(wanted):
        candidates = {match for shingle in _rarest(one, often, threshold) for match in index.get(shingle, ())}
        best = max(((jaccard(one, known[match]), -match) for match in candidates), default=(0.0, 0))
        if best[0] >= threshold:
            pairs.append(Alike(at, -best[1], best[0]))
    return pairs


def near_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the number of its group: texts that a chain of pairs, each alike, joins share one.

    A group has the number of its first text.
    """
    first: dict[frozenset[str], int] = {}
    copies = [first.setdefault(shingles(text), at) for at, text in enumerate(texts)]
    often = Counter(shingle for one in first for shingle in one)
    index: dict[str, list[int]] = defaultdict(list)
    known = {at: one for one, at in first.items()}
    above = dict.fromkeys(known, -1)

    def top(at: int) -> int:
        while above[at] >= 0:
            at = above[at]
        return at

    for at, one in known.items():
        rare = _rarest(one, often, threshold)
        for match in sorted({match for shingle in rare for match in index.get(shingle, ())}):
            low, high = sorted((top(at), top(match)))
            if low != high and jaccard(one, known[match]) >= threshold:
                above[high] = low
        for shingle in rare:
            index[shingle].append(at)
    return [top(at) for at in copies]


def _rarest(one: frozenset[str], often: Counter[str], threshold: float) -> list[str]:
    """The shingles of which a text that is like this one must hold at least one."""
    must_share = math.ceil(threshold * len(one) - 1e-9)
    ranked = sorted(one, key=lambda shingle: (often[shingle], shingle))
    return ranked[: len(one) - must_share + 1]
