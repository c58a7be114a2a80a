"""Converters: a text in another form, and back where that can be done.

    converter("rot13").encode("brew tea")               # "oerj grn"
    converter("caesar(7)+spell").encode("brew tea")     # Caesar by seven, then hyphens: "i-y-l-d a-l-h"

A *spec* names one, or several to be applied in turn with '+' between them; a key stands in brackets. Every
one is a pure function of text and key: one that draws has a number for a key, its seed.

1. What is written on its ``domain`` is read back exactly. ``decode`` answers None for a text that the
   converter could not have written, as far as that can be told, and always where it loses something.
2. The six of ``calibrant.text.codecs``, which guards undo and the testbed teaches, are here as they are
   there; unlike the others they are also read in the middle of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal, NamedTuple

from calibrant.core import ConfigError
from calibrant.core.errors import nearest
from calibrant.text import alphabets as a
from calibrant.text import rewriting as r
from calibrant.text.codecs import CODECS, Codec

Kind = Literal["cipher", "encoding", "spacing", "homoglyph", "splitting", "language", "noise"]
Domain = Literal["text", "ASCII", "lower case", "words", "long text", "nothing"]
"""Where what is written is read back: any text; ASCII; lower-case ASCII on one line; lower-case words of
letters, one of them of two or more; printable ASCII of six and more characters; nowhere."""
Keyed = Callable[[str, str], str]
"""(text, key) -> text."""


class Converter(NamedTuple):
    """How a text is written and read."""

    encode: Keyed
    decode: Callable[[str, str], str | None] | None
    """None where something is lost."""
    kind: Kind
    note: str
    """What it does, in words."""
    domain: Domain
    key: str = ""
    """Its key where none is given; "" for one that has no key."""
    keys: str = ""
    """Pattern of its keys."""


_RAILS, _PARTS, _SHIFT, _LETTERS = r"[2-9]", r"[2-9]", r"[1-9]|1\d|2[0-5]", r"[a-z]{1,40}"
SEED = r"\d{1,18}"
"""Pattern of the keys of a converter that draws."""


def _plain(
    kind: Kind, note: str, write: a.Change, read: a.Change | None = None, domain: Domain = "nothing"
) -> Converter:
    """One without a key."""
    back = None if read is None else _exact(lambda text, key: write(text), lambda text, key: read(text))
    return Converter(lambda text, key: write(text), back, kind, note, domain)


def _keyed(
    kind: Kind,
    note: str,
    key: tuple[str, str],
    write: Keyed,
    read: Keyed | None = None,
    domain: Domain = "nothing",
) -> Converter:
    """One with a key: its default and its pattern."""
    return Converter(write, read and _exact(write, read), kind, note, domain, *key)


def _table(kind: Kind, note: str, table: a.Table, domain: Domain) -> Converter:
    """A letter for a letter: can be undone on any text."""
    return Converter(
        lambda text, key: table.write(text), lambda text, key: table.read(text), kind, note, domain
    )


def _codec(name: str, kind: Kind, note: str, domain: Domain) -> Converter:
    codec = CODECS[name]
    return Converter(
        lambda text, key: codec.encode(text), lambda text, key: codec.decode(text), kind, note, domain
    )


def _exact(write: Keyed, read: Keyed) -> Callable[[str, str], str | None]:
    """Reads only what ``write`` could have written."""

    def decode(text: str, key: str) -> str | None:
        try:
            found = read(text, key)
        except (ValueError, OverflowError):  # digits, bits or bytes that are none
            return None
        return found if write(found, key) == text else None

    return decode


CONVERTERS: dict[str, Converter] = {
    "rot13": _codec("rot13", "cipher", "each letter moved by 13", "text"),
    "caesar": _keyed(
        "cipher", "each letter moved by the key", ("3", _SHIFT),
        lambda text, key: r.shifted(text, a.LOWER[int(key)]),
        lambda text, key: r.shifted(text, a.LOWER[int(key)], -1), "text",
    ),
    "vigenere": _keyed(
        "cipher", "each letter moved by a letter of the key in turn", ("lemon", _LETTERS),
        r.shifted, partial(r.shifted, sign=-1), "text",
    ),
    "atbash": _table("cipher", "the alphabet backwards", a.ATBASH, "text"),
    "rot47": _table("cipher", "each visible ASCII character moved by 47", a.ROT47, "text"),
    "keyboard": _table("cipher", "the next key to the right", a.KEYBOARD, "text"),
    "rail_fence": _keyed(
        "cipher", "written in a zigzag over rails, read rail by rail", ("3", _RAILS),
        r.fence, r.unfence, "text",
    ),
    "reverse": _codec("reverse", "cipher", "each word backwards", "text"),
    "base64": _codec("base64", "encoding", "base64 of the UTF-8 bytes", "long text"),
    "base32": _plain("encoding", "base32 of the UTF-8 bytes", a.base32, a.from_base32, "text"),
    "hex": _plain("encoding", "two hexadecimal digits a byte", a.hexadecimal, a.from_hexadecimal, "text"),
    "binary": _plain("encoding", "eight bits a byte", a.binary, a.from_binary, "text"),
    "url": _plain("encoding", "percent signs, as in a web address", a.percent, a.from_percent, "text"),
    "html": _plain("encoding", "numeric HTML entities", a.entities, a.from_entities, "text"),
    "morse": _plain("encoding", "Morse code", *a.in_words(a.MORSE), "lower case"),
    "nato": _plain("encoding", "the NATO spelling alphabet", *a.in_words(a.NATO), "words"),
    "braille": _plain("encoding", "braille, grade 1", a.braille, a.from_braille, "lower case"),
    "spell": _codec("spell", "spacing", "a hyphen between the letters of a word", "words"),
    "apart": _plain("spacing", "a space between letters, three between words", r.apart, r.together, "text"),
    "zero_width": _plain(
        "spacing", "invisible spaces between the letters of a word", a.interleaved, a.joined, "ASCII"
    ),
    "leet": _codec("leet", "homoglyph", "digits for a, e, i, o, s, t", "words"),
    "look_alikes": _table("homoglyph", "Cyrillic and Greek letters that look alike", a.LOOK_ALIKES, "ASCII"),
    "full_width": _table("homoglyph", "the wide letters of East Asian type", a.FULL_WIDTH, "ASCII"),
    "bold": _table("homoglyph", "bold letters of mathematics", a.BOLD, "ASCII"),
    "small_caps": _table("homoglyph", "small capitals", a.SMALL_CAPS, "ASCII"),
    "upside_down": _plain(
        "homoglyph", "turned by half a circle",
        lambda text: a.UPSIDE_DOWN.write(text)[::-1], lambda text: a.UPSIDE_DOWN.read(text)[::-1],
        "lower case",
    ),
    "zalgo": _plain("homoglyph", "a combining mark on each letter", a.marked, a.unmarked, "ASCII"),
    "variables": _keyed(
        "splitting", "cut into quoted variables that are to be joined", ("3", _PARTS),
        r.variables, lambda text, key: r.from_variables(text), "text",
    ),
    "acrostic": _plain(
        "splitting", "words whose first letters spell it, a line for each word", r.acrostic, r.from_acrostic,
        "lower case",
    ),
    "word_order": _plain("splitting", "the last word first", r.turned_round, r.turned_round, "text"),
    "pig_latin": _plain("language", "pig latin, with a hyphen", r.pig, r.from_pig, "words"),
    "made_up": _keyed(
        "language", "a language of syllables that nobody speaks; the key is its seed", ("0", SEED),
        r.made_up, r.from_made_up, "text",
    ),
    "random_case": _keyed("noise", "random capitals; the key is a seed", ("0", SEED), r.random_case),
    "mixed": _keyed("noise", "inner letters of words mixed; the key is a seed", ("0", SEED), r.mixed),
    "noise": _keyed("noise", "now and then a neighbour in ASCII; the key is a seed", ("0", SEED), r.noisy),
    "typos": _keyed("noise", "slips of the finger; the key is a seed", ("0", SEED), r.mistyped),
    "no_vowels": _plain("noise", "vowels left out, but those that begin a word", r.vowels_dropped),
}  # fmt: skip
"""Name -> converter."""

_STEP = re.compile(r"([a-z0-9_]+)(?:\(([^()+/]*)\))?")


@lru_cache(256)
def converter(spec: str) -> Codec:
    """The converter that ``spec`` names: 'rot13', 'caesar(7)', 'rot13+spell'.

    Raises:
        ConfigError: an unknown name, or a key that the converter does not take.
    """
    steps = [_step(part.strip(), spec) for part in spec.split("+")]

    def encode(text: str) -> str:
        for known, key in steps:
            text = known.encode(text, key)
        return text

    def decode(text: str) -> str | None:
        found: str | None = text
        for known, key in reversed(steps):
            if found is None or known.decode is None:
                return None
            found = known.decode(found, key)
        return found

    return Codec(encode, decode)


def _step(part: str, spec: str) -> tuple[Converter, str]:
    found = _STEP.fullmatch(part)
    name, key = (found[1], found[2]) if found else (part, None)
    if name not in CONVERTERS:
        raise ConfigError(
            f"unknown encoding '{part}'{nearest(name, CONVERTERS)}; known: {', '.join(CONVERTERS)}",
            hint="write a name, name(key), or several with '+' between them",
        )
    known = CONVERTERS[name]
    if key is None:
        return known, known.key
    if not known.key:
        raise ConfigError(f"'{spec}': {name} takes no key", hint=f"write '{name}'")
    if not re.fullmatch(known.keys, key):
        raise ConfigError(
            f"'{spec}': '{key}' is no key of {name}",
            hint=f"its keys match {known.keys}; the default is {known.key}",
        )
    return known, key
