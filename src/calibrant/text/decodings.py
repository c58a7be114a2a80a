"""How a guard reads a text: without what nobody sees, look-alikes as ASCII, and decoded.

Pure: texts in, texts out. Tables: ``unicode.json``, made by ``tools/unicode_tables.py`` from ICU
(Default_Ignorable_Code_Point, and the confusables of UTS #39).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from calibrant.text.codecs import CODECS
from calibrant.text.quick import FEW, flat, from_bytes, others, to_bytes

_BLANK = frozenset("\u2800")
"""Drawn as a blank, though Unicode files it neither under spaces nor under what is ignored: Braille's."""
_TYPED = str.maketrans("‘’‚‛′“”„‟−", "'''''\"\"\"\"-")
"""What typesetting makes of what is typed."""
_MARKS = 30
"""Most marks on a letter, as in UAX #15: normalising takes time quadratic in their number."""
_EITHER = {"l": "\ue000", "rn": "\ue001"}
"""What a skeleton writes for several letters: l for l, I, 1 and |; rn for m. Private characters here, which
no text that is read holds."""
_LOOKS_LIKE = {"0": "o", "i": "\ue000", "l": "\ue000", "1": "\ue000", "m": "\ue001"}
_SPELLED = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,8}[^\W_]){2,}(?![^\W_])")
_LETTERS = bytes(97 if chr(code).isalnum() and code < 128 else 32 for code in range(256))
_ALONE = re.compile(b" a {1,8}a {1,8}a ")
"""Three letters by themselves, 'a' for each: where ``_SPELLED`` finds anything."""
_RESOLVED = (str.maketrans({"\ue000": "l", "\ue001": "m"}), str.maketrans({"\ue000": "i", "\ue001": "m"}))


@cache
def tables() -> dict[str, Any]:
    """``unicode.json``: ``source``, ``unicode`` (its version), ``digest``, and the tables themselves."""
    found: dict[str, Any] = json.loads((files("calibrant.text") / "unicode.json").read_text("utf-8"))
    return found


_RUN = re.compile(f"[\u0300-\U0010ffff]{{{_MARKS + 1},}}")
"""Where too many marks may stand: no mark is below U+0300."""


class _Table(dict[int, str | None]):
    """For ``str.translate``: what a rule says of each character, asked once. ASCII stays, or is dropped."""

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        self._rule = rule
        self._dropped = bytes(code for code in range(128) if self[code] is None)

    def __missing__(self, code: int) -> str | None:
        found = self[code] = self._rule(chr(code))
        return found

    def on(self, text: str) -> str:
        """``text.translate(self)``; quick where few kinds of characters change, which is nearly always."""
        plain = text.isascii()
        if plain and not self._dropped:
            return text
        raw = to_bytes(text)
        if len(kept := raw.translate(None, self._dropped)) < len(raw):
            text = from_bytes(kept)
        if plain:
            return text
        changed = {char: to for char in others(kept) if (to := self[ord(char)]) != char}
        chained = any(self[ord(char)] != char for to in changed.values() for char in to or "")
        if chained or len(changed) > FEW:
            return text.translate(self)
        for char, to in changed.items():
            text = text.replace(char, to or "")
        return text


def readings(text: str, views: Sequence[str]) -> dict[str, str]:
    """The views of a text: 'as written' without what nobody sees, then each decoding that differs.

    Look-alikes hide a code as they hide a word, so it is also decoded with look-alikes as ASCII.
    """
    seen = {"as written": shown(text)}
    plain = unicodedata.normalize("NFKC", seen["as written"])
    sources = {plain: ""}
    if not plain.isascii():
        bare = _look_alikes().on(unmarked(plain))
        for way, note in zip(
            _RESOLVED, (", look-alikes as ASCII", ", look-alikes as ASCII (i)"), strict=True
        ):
            sources.setdefault(bare.translate(way), note)
    # A codec moves what a text has, and writes ASCII that is seen: nothing new is hidden.
    clean = {source for source in sources if shown(source) == source}
    for name in views:
        for source, note in sources.items():
            decoded = CODECS[name].decode(source)
            if decoded is not None and decoded not in (source, *seen.values()):
                seen[f"through {name}{note}"] = decoded if source in clean else shown(decoded)
    return seen


def visible(text: str) -> str:
    """NFKC, dashes and quotes as typed, without the characters that a reader does not see."""
    return unicodedata.normalize("NFKC", shown(text))


def shown(text: str) -> str:
    """``visible`` before NFKC."""
    seen = _shown().on(text)
    return seen if seen.isascii() else _RUN.sub(lambda run: _fewer_marks(run.group()), seen)


def _fewer_marks(text: str) -> str:
    kept, marks = [], 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= _MARKS:
            kept.append(char)
    return "".join(kept)


@cache
def _shown() -> _Table:
    ignored = {code for first, last in tables()["ignorable"] for code in range(first, last + 1)}

    def rule(char: str) -> str | None:
        if ord(char) in _TYPED:
            return chr(_TYPED[ord(char)])
        category = unicodedata.category(char)
        if category == "Cc":
            return char if char in "\t\n\r" else None
        if ord(char) in ignored or char in _BLANK or category in ("Cf", "Cs", "Co", "Cn"):
            return None  # stray surrogates and unassigned characters, too
        return "-" if category == "Pd" else char

    return _Table(rule)


def fold(text: str) -> str:
    """``visible`` without case (NFKC case folding) and with single spaces: what patterns are matched on."""
    return _fold(shown(text))


def _fold(text: str) -> str:
    """Of a text as ``shown`` gives it."""
    seen = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def alike(text: str) -> str:
    """``fold`` without marks, and with letters of any script that look like ASCII as ASCII.

    What may be several letters is a private character, which ``like`` accepts for each of them. ASCII stays:
    1 for l and rn for m are no look-alikes here. Symbols stay, too: they stand between words.
    """
    return _alike(shown(text))


def _alike(text: str) -> str:
    """Of a text as ``shown`` gives it."""
    bare = _look_alikes().on(unmarked(unicodedata.normalize("NFKC", text)))
    return " ".join(_look_alikes().on(unmarked(bare.casefold())).casefold().split())


def unmarked(text: str) -> str:
    """Without marks above, below, through, round or beside letters."""
    return text if text.isascii() else _unmarked().on(unicodedata.normalize("NFD", text))


@cache
def _unmarked() -> _Table:
    return _Table(lambda char: None if unicodedata.category(char)[0] == "M" else char)


@cache
def _look_alikes() -> _Table:
    found: dict[str, str] = {
        char: _EITHER.get(seen, seen) for seen, chars in tables()["look_alikes"].items() for char in chars
    }

    def rule(char: str) -> str | None:
        apart = unicodedata.category(char) == "Lm" and not char.isascii()  # a sign that goes with a letter
        return found.get(char, " " if apart else char)

    return _Table(rule)


def like(phrase: str, escape: Callable[[str], str]) -> str | None:
    """A pattern of ``phrase`` in ``alike``; None where ASCII, marks apart, does not write it.

    Such a phrase is matched in ``fold`` alone: many words of Hindi differ by marks only.
    """
    bare = unmarked(fold(phrase))
    if not bare.isascii():
        return None
    return "".join(f"[{c}{_LOOKS_LIKE[c]}]" if c in _LOOKS_LIKE else escape(c) for c in bare)


def spelled(text: str) -> Iterator[str]:
    """Words written a letter at a time, put together: 'z o r b l e', 'z.o-r b_l*e'."""
    seen = flat(text, _LETTERS, ("a", " "))
    if seen is not None and not _ALONE.search(b" %b " % seen):
        return
    for match in _SPELLED.finditer(text):
        yield "".join(re.findall(r"[^\W_]", match.group()))


class Shape(NamedTuple):
    """A reading as rules look at it."""

    folded: tuple[str, ...]
    """As written; and with symbols and raised digits as spaces, which NFKC makes letters of ('zorble™')."""
    alike: str
    spelled: tuple[str, ...]
    """What stands there letter by letter, as ``alike``."""

    @classmethod
    def of(cls, reading: str) -> Shape:
        """Of a text as ``readings`` gives it."""
        folded = _fold(reading)
        if reading.isascii():
            return cls((folded,), folded, tuple(spelled(folded)))
        bare, looks = _without_symbols().on(reading), _alike(reading)
        ways = (folded,) if bare == reading else tuple(dict.fromkeys((folded, _fold(bare))))
        texts = dict.fromkeys((unmarked(reading), *ways, looks))
        runs = dict.fromkeys(run for text in texts for run in spelled(text))
        return cls(ways, looks, tuple(dict.fromkeys(map(_alike_again, runs))))

    @property
    def resolved(self) -> tuple[str, ...]:
        """``alike`` with what may be several letters as l, and as i."""
        return tuple(self.alike.translate(way) for way in _RESOLVED)


def _alike_again(run: str) -> str:
    """``alike`` keeps what it has made: its private characters would be dropped as unseen."""
    return "".join(
        part if part in _EITHER.values() else alike(part) for part in re.split("([\ue000\ue001])", run)
    )


@cache
def _without_symbols() -> _Table:
    def rule(char: str) -> str:
        category = unicodedata.category(char)
        return " " if not char.isascii() and (category == "No" or category[0] == "S") else char

    return _Table(rule)
