"""How much of a reply so far may leave, so that no part of a match ever does.

A match of a pattern guard covers at most so many characters of what the guard reads. What it does not see
does not count: invisible characters, marks, all but the first of several blanks. What may be base64 is held
until it ends, since it is decoded whole, and so are single letters, which may be a word letter by letter.
Where a character has more than one reading, all of them count.
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
_CLASSES = re.compile(r"\\[pP]\{[^}]*\}|\\[pP][A-Z]|\[:\^?\w+:\]|\\x\{[^}]*\}|\\C|(\\.)")
_JAMO = re.compile("[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")
"""Parts of Korean syllables: several make one character."""


def longest(pattern: str) -> int | None:
    """Most characters that a match of an RE2 pattern covers; None where no bound is known.

    What ends with the text (``$``) may end with a reply in the making, too: no bound holds for it.
    """
    bare = re.sub(r"\\[^z]", "", pattern)
    if "\\Q" in pattern or "{," in bare or "$" in bare or "\\z" in bare:
        return None
    plain = _CLASSES.sub(lambda found: found[1] or "w", pattern)
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
    reversed: bool = False
    """Whether words are read backwards."""

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
        return cls(max(lengths) + 2, phrase, "base64" in views, "reverse" in views)

    def held(self, text: str) -> int:
        """Where in ``text`` the part begins that must not leave yet."""
        place = min(self._by_count(text), self._letter_by_letter(text))
        if self.words:
            place = min(place, _before_words(text, self.words))
        if self.reversed and 0 < place < len(text) and _in_word(text[place - 1]) and _in_word(text[place]):
            start, end = _run(text, place, _in_word), _run_on(text, place, _in_word)
            if "_" in text[start:end]:  # backwards, its ends may stand by themselves
                place = start
        return place

    def _by_count(self, text: str) -> int:
        """Behind the last characters, as many as a match has; what is in a code counts nothing."""
        place, left, run = len(text), self.chars, len(text) + 1
        blank = alone = False
        while place and left:
            char = text[place - 1]
            if self.coded and place < run and _part_of_code(char):
                run = _run(text, place, _part_of_code)
                if place == len(text) or _decodes(text[run:place]):
                    place, blank, alone = run, False, False
                    continue
            place -= 1
            kind = _kind(char)
            if kind == _LETTER:
                alone, blank = _isolated(text, place), False
                left -= _counts(char)
            elif kind != _UNSEEN and kind != _MARK:
                left -= not (alone or (blank and _blank(char)))  # 'l-a-m-p' may be 'lamp' in a phrase
                blank = _blank(char)
        return place

    def _letter_by_letter(self, text: str) -> int:
        """Where the single letters begin that end the text: they may be a word in the making."""
        first = place = len(text)
        while place:
            char = text[place - 1]
            if self.coded and _part_of_code(char):
                start = _run(text, place, _part_of_code)
                if place == len(text) or _decodes(text[start:place]):
                    first = place = start
                    continue
            kind = _kind(char)
            if kind == _LETTER and not _isolated(text, place - 1):
                start, end = _run(text, place, _in_word), _run_on(text, place, _in_word)
                if not self.reversed or "_" not in text[start:end]:
                    break
                first = place = start
                continue
            place -= 1
            if kind in (_LETTER, _EITHER_WAY):
                first = place
        return first


_UNSEEN, _MARK, _LETTER, _GAP, _EITHER_WAY = range(5)


@lru_cache(maxsize=65536)
def _kind(char: str) -> int:
    """What a guard may take it for; a mark joins letters in one reading, and parts them in another."""
    seen, looks = visible(char), alike(char)
    if not seen:
        return _UNSEEN
    if not unmarked(seen):
        return _MARK
    letters = {part.isalnum() or part in "\ue000\ue001" for part in (*seen, *looks)}
    if letters == {True} and looks and not _blank(char):
        return _LETTER
    return _EITHER_WAY if True in letters else _GAP


def _isolated(text: str, place: int) -> bool:
    """Whether the letter at ``place`` may stand by itself: no letter is next to it, what is unseen apart."""
    before, after = place - 1, place + 1
    while before >= 0 and _kind(text[before]) == _UNSEEN:
        before -= 1
    while after < len(text) and _kind(text[after]) == _UNSEEN:
        after += 1
    sides = [text[at] for at in (before, after) if 0 <= at < len(text)]
    return _LETTER not in map(_kind, sides)


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


def _run_on(text: str, start: int, belongs: Callable[[str], bool]) -> int:
    """Where the run of such characters ends that goes on at ``start``."""
    while start < len(text) and belongs(text[start]):
        start += 1
    return start


def _decodes(run: str) -> bool:
    """Whether it may be base64 of a text: what holds look-alikes is not tried."""
    seen = "".join(char for char in run if _kind(char) not in (_UNSEEN, _MARK))
    return len(seen) >= 8 and (not seen.isascii() or CODECS["base64"].decode(seen) is not None)


@lru_cache(maxsize=65536)
def _in_word(char: str) -> bool:
    return char == "_" or char.isalnum() or _kind(char) in (_UNSEEN, _MARK)


@lru_cache(maxsize=65536)
def _counts(char: str) -> int:
    return 0 if _JAMO.search(unicodedata.normalize("NFKC", char)) else 1


@lru_cache(maxsize=65536)
def _blank(char: str) -> bool:
    """What may be read as a space: several of them are one."""
    category = unicodedata.category(char)
    return char.isspace() or (not char.isascii() and (category in ("No", "Lm") or category[0] == "S"))


@lru_cache(maxsize=65536)
def _part_of_code(char: str) -> bool:
    """Whether base64 may go on through it, look-alikes and what is not seen included."""
    if not unmarked(visible(char)):
        return True
    looks = alike(char)
    return bool(looks) and all(c in "+/=\ue000\ue001" or (c.isascii() and c.isalnum()) for c in looks)
