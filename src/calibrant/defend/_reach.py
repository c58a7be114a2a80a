"""How much of a reply so far may leave, so that no part of a match ever does.

A match of a pattern guard covers at most so many characters of what the guard reads. What it does not see
does not count: invisible characters, marks, all but the first of several blanks. What may be base64 is held
until it ends, since it is decoded whole, and so are single letters, which may be a word letter by letter.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from calibrant.text.codecs import CODECS
from calibrant.text.decodings import alike, fold, unmarked, visible

LONGEST = 2000
"""Most characters of a match that are held back; a pattern whose matches can be longer is not bounded."""
_CLASSES = re.compile(r"\\p\{[^}]*\}|\\[pP][A-Z]|\[:\^?\w+:\]|\\x\{[^}]*\}|\\C")
_JAMO = re.compile("[\u1160-\u11ff\ud7b0-\ud7ff]")
"""Korean letters that join the one before."""


def longest(pattern: str) -> int | None:
    """Most characters that a match of an RE2 pattern covers; None where no bound is known."""
    if "\\Q" in pattern:
        return None
    plain = _CLASSES.sub("w", pattern).replace("\\z", "\\Z")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            most: int = re._parser.parse(plain).getwidth()[1]  # type: ignore[attr-defined]
    except (re.error, AttributeError, OverflowError, RecursionError):  # RE2 takes it, Python does not
        return None
    return most if most <= LONGEST else None


class Reach(NamedTuple):
    """What a match covers at most."""

    chars: int
    """Characters that are read, those at its edges included."""
    words: int = 0
    """Of a phrase whose words may each be reversed: words. 0: characters are enough."""
    coded: bool = False
    """Whether base64 is read."""

    @classmethod
    def of(cls, words: Iterable[str], patterns: Iterable[str], views: Sequence[str]) -> Reach | None:
        """Of the rules of a pattern guard; None where one of them has no bound."""
        lengths, spans = [1], [0]
        for word in words:
            lengths.append(len(fold(word)))
            spans.append(len(re.findall(r"\w+", fold(word))))
        for pattern in patterns:
            most = longest(pattern)
            if most is None:
                return None
            lengths.append(most)
            spans.append(1 if re.fullmatch(r"\w*", pattern) else most + 1)
        phrase = max(spans) if "reverse" in views and max(spans) > 1 else 0
        return cls(max(lengths) + 2, phrase, "base64" in views)

    def held(self, text: str) -> int:
        """Where in ``text`` the part begins that must not leave yet."""
        place = min(self._by_count(text), self._letter_by_letter(text))
        return min(place, _before_words(text, self.words)) if self.words else place

    def _by_count(self, text: str) -> int:
        """Behind the last characters, as many as a match has; what is in a code counts nothing."""
        place, left, after, run = len(text), self.chars, "", len(text) + 1
        while place and left:
            char = text[place - 1]
            if self.coded and place < run and _part_of_code(char):
                run = _run(text, place, _part_of_code)
                if place == len(text) or _decodes(text[run:place]):
                    place, after = run, ""
                    continue
            place -= 1
            if _seen(char):
                left -= not (_blank(char) and after and _blank(after))
                after = char
        return place

    def _letter_by_letter(self, text: str) -> int:
        """Where the single letters begin that end the text: they may be a word in the making."""
        first = place = len(text)
        while place:
            if not _letter(text[place - 1]):
                place -= 1
                continue
            start = _run(text, place, _joins)
            if sum(map(_letter, text[start:place])) > 1:
                if not self.coded:
                    break
                start = _run(text, place, _part_of_code)
                if start == place or (place < len(text) and not _decodes(text[start:place])):
                    break
            first = place = start
        return first


def _before_words(text: str, words: int) -> int:
    """Where the last so many words begin, and one more that may have begun before them."""
    place = len(text)
    for _ in range(words + 1):
        while place and not _in_word(text[place - 1]):
            place -= 1
        place = _run(text, place, _in_word)
    return place


def _run(text: str, end: int, belongs: Callable[[str], bool]) -> int:
    """Where the run of such characters begins that ends at ``end``."""
    while end and belongs(text[end - 1]):
        end -= 1
    return end


def _decodes(run: str) -> bool:
    """Whether it may be base64 of a text: what holds look-alikes is not tried."""
    seen = "".join(filter(_seen, run))
    return len(seen) >= 8 and (not seen.isascii() or CODECS["base64"].decode(seen) is not None)


@lru_cache(maxsize=65536)
def _in_word(char: str) -> bool:
    return char == "_" or char.isalnum() or not _seen(char)


@lru_cache(maxsize=65536)
def _letter(char: str) -> bool:
    return char.isalnum() and _seen(char) and not _blank(char)


def _joins(char: str) -> bool:
    return _letter(char) or not _seen(char)


@lru_cache(maxsize=65536)
def _seen(char: str) -> bool:
    """Whether the guard reads it as a character of its own."""
    return bool(unmarked(visible(char))) and not _JAMO.match(char)


@lru_cache(maxsize=65536)
def _blank(char: str) -> bool:
    """What may be read as a space: several of them are one."""
    category = unicodedata.category(char)
    return char.isspace() or (not char.isascii() and (category in ("No", "Lm") or category[0] == "S"))


@lru_cache(maxsize=65536)
def _part_of_code(char: str) -> bool:
    """Whether base64 may go on through it, look-alikes and what is not seen included."""
    looks = alike(char)  # "" for a blank, too
    if not looks:
        return not char.isspace() and not _blank(char)
    return all(c in "+/=\ue000\ue001" or (c.isascii() and c.isalnum()) for c in looks)
