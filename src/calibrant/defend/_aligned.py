"""Normalised views of a text in which every character knows where it stands in the text as written.

``calibrant.text.decodings`` says how a text is read; here the same rules are applied character by character,
so that a match in a view is a span of the raw text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from calibrant.text.decodings import alike, shown

_ODD = re.compile(r"[\x00-\x1f\x7f]|  ")
_EITHER = {"\ue000": "li", "\ue001": "mm"}
"""What ``alike`` writes for several letters -> the letters that are tried."""
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without blanks between words, or with particles behind them, by the names of their characters."""


class Aligned(NamedTuple):
    """A view of a text."""

    text: str
    """What is matched."""
    starts: Sequence[int]
    """For each character, where its source begins in the raw text."""
    ends: Sequence[int]
    """For each character, where its source ends."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The raw span behind a part, which is not empty; dropped characters inside belong to it."""
        return self.starts[start], self.ends[end - 1]

    def folded(self) -> Aligned:
        """The same without case."""
        pieces = [(c, i) for i, char in enumerate(self.text) for c in char.casefold()]
        starts, ends = [self.starts[i] for _, i in pieces], [self.ends[i] for _, i in pieces]
        return Aligned("".join(c for c, _ in pieces), starts, ends)


def views(text: str) -> list[Aligned]:
    """``text`` without what nobody sees and in NFKC, digits as ASCII, each run of white space as one space.

    Where it is not ASCII, also with look-alikes as ASCII and without marks.
    """
    if text.isascii():
        return [_plain(text)]
    found = [
        _plain(text),
        _view(text, lambda piece: _alike(piece, 0)),
        _view(text, lambda piece: _alike(piece, 1)),
    ]
    return list({view.text: view for view in reversed(found)}.values())[::-1]


def plain(text: str) -> str:
    """The text of the first view."""
    return _plain(text).text


def apart(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` is a whole word or several, as far as its script shows words."""
    return _edge(text[start - 1 : start], text[start]) and _edge(text[end : end + 1], text[end - 1])


def _edge(outside: str, inside: str) -> bool:
    if not outside or unicodedata.category(outside)[0] not in "LMN":
        return True
    return any(unicodedata.name(char, "").startswith(_UNSPACED) for char in (outside, inside))


def _plain(text: str) -> Aligned:
    if text.isascii() and not _ODD.search(text):
        return Aligned(text, range(len(text)), range(1, len(text) + 1))
    return _view(text, _shown)


def _view(text: str, rule: Callable[[str], str]) -> Aligned:
    read: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in _clusters(text):
        for char in rule(text[start:end]):
            if char.isspace() and read and read[-1] == " ":
                ends[-1] = end
                continue
            read.append(" " if char.isspace() else char)
            starts.append(start)
            ends.append(end)
    return Aligned("".join(read), starts, ends)


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """Each character with the marks, vowels and final consonants that compose with it."""
    start = 0
    for place in range(1, len(text) + 1):
        if place < len(text) and (unicodedata.combining(text[place]) or "\u1160" <= text[place] <= "\u11ff"):
            continue
        if start < len(text):
            yield start, place
        start = place


@lru_cache(maxsize=8192)
def _shown(piece: str) -> str:
    """Seen, in NFKC, with the digits of every script as ASCII."""
    seen = unicodedata.normalize("NFKC", shown(piece))
    return "".join(
        char if (digit := unicodedata.decimal(char, None)) is None else str(digit) for char in seen
    )


@lru_cache(maxsize=8192)
def _alike(piece: str, way: int) -> str:
    """``_shown``, with look-alikes as ASCII in their own case."""
    seen = _shown(piece)
    if seen.isascii():
        return seen
    read = "".join(_EITHER.get(char, char * 2)[way] for char in alike(seen))
    return read.upper() if seen.isupper() else read
