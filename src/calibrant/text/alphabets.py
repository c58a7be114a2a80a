"""Letters written as other letters: the tables and codes behind ``calibrant.text.converters``.

Every function is pure, text -> text. What a table does not hold stays as it is.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

LOWER, UPPER = string.ascii_lowercase, string.ascii_uppercase
Change = Callable[[str], str]


class Table(NamedTuple):
    """A letter for a letter, there and back."""

    there: dict[int, str]
    back: dict[int, str]

    def write(self, text: str) -> str:
        """Into the other letters."""
        return text.translate(self.there)

    def read(self, text: str) -> str:
        """Back from them."""
        return text.translate(self.back)


def _table(plain: str, other: str) -> Table:
    pairs = [(a, b) for a, b in zip(plain, other, strict=True) if a != b]
    return Table({ord(a): b for a, b in pairs}, {ord(b): a for a, b in pairs})


def _turned(row: str) -> str:
    return row[1:] + row[0]


_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_KEYS = "".join(_ROWS)
_NEXT_KEYS = "".join(map(_turned, _ROWS))
_VISIBLE = "".join(map(chr, range(33, 127)))

ATBASH = _table(LOWER + UPPER, LOWER[::-1] + UPPER[::-1])
ROT47 = _table(_VISIBLE, _VISIBLE[47:] + _VISIBLE[:47])
KEYBOARD = _table(_KEYS + _KEYS.upper(), _NEXT_KEYS + _NEXT_KEYS.upper())
FULL_WIDTH = _table(" " + _VISIBLE, "\u3000" + "".join(chr(ord(char) + 0xFEE0) for char in _VISIBLE))
BOLD = _table(
    UPPER + LOWER + string.digits,
    "".join(map(chr, [*range(0x1D400, 0x1D434), *range(0x1D7CE, 0x1D7D8)])),
)
SMALL_CAPS = _table(LOWER, "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘǫʀꜱᴛᴜᴠᴡxʏᴢ")
UPSIDE_DOWN = _table(LOWER + ".?!,'", "ɐqɔpǝɟƃɥᴉɾʞlɯuodbɹsʇnʌʍxʎz˙¿¡',")
LOOK_ALIKES = _table("acdehijopqsuvwxyABCEHIKMNOPTXYZ", "асԁеһіјорԛѕυνԝхуАВСЕНІКМΝОРТХΥΖ")
"""Cyrillic and Greek letters that look like Latin ones."""

_MORSE = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- "
    "--.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. "
    ".-.-.- --..-- ..--.. .----. -.-.-- -..-. -.--. -.--.- .-... ---... -...- .-.-. -....- .-..-."
)
_NATO = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa "
    "quebec romeo sierra tango uniform victor whiskey xray yankee zulu"
)
_THINGS = (
    "apple bread cloud daisy egg fern garden hill island jam kettle lamp maple nest orchard pear quilt "
    "river stone tea umbrella violet window xylophone yarn zebra"
)
MORSE = dict(zip(LOWER + string.digits + ".,?'!/()&:=+-\"", _MORSE.split(), strict=True))
NATO = {word[0]: word for word in _NATO.split()}
THINGS = {word[0]: word for word in _THINGS.split()}
"""A gentle word for each letter."""
_DOTS = "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵"
_NUMBER = "⠼"
BRAILLE = dict(zip(LOWER, _DOTS, strict=True)) | {
    digit: _NUMBER + dots for digit, dots in zip("1234567890", _DOTS[:10], strict=True)
}
_BRAILLE = re.compile(f"{_NUMBER}[{_DOTS[:10]}]|[{_DOTS}]")
_MARKS = "\u0301\u0308\u0323\u0332"
_MARKED = re.compile(f"[{_MARKS}]")
_HIDDEN = "\u200b"


def in_words(code: Mapping[str, str]) -> tuple[Change, Change]:
    """A word of ``code`` for each letter, ' ' between letters and ' / ' between words."""
    back = {word: letter for letter, word in code.items()}

    def write(text: str) -> str:
        return " / ".join(" ".join(code.get(c, c) for c in word) for word in text.lower().split(" "))

    def read(text: str) -> str:
        return " ".join("".join(back.get(c, c) for c in word.split(" ")) for word in text.split(" / "))

    return write, read


def braille(text: str) -> str:
    """Grade 1 braille; a digit has its own number sign."""
    return "".join(BRAILLE.get(char, char) for char in text.lower())


def from_braille(text: str) -> str:
    """What ``braille`` wrote."""
    back = {dots: letter for letter, dots in BRAILLE.items()}
    return _BRAILLE.sub(lambda found: back[found.group()], text)


def marked(text: str) -> str:
    """One combining mark after each letter, above and below in turn."""
    letters = iter(range(len(text)))
    return "".join(c + _MARKS[next(letters) % len(_MARKS)] if c.isalpha() else c for c in text)


def unmarked(text: str) -> str:
    """Without those marks."""
    return _MARKED.sub("", text)


def interleaved(text: str) -> str:
    """A zero-width space between the letters of each word."""
    return re.sub(r"(?<=\w)(?=\w)", _HIDDEN, text)


def joined(text: str) -> str:
    """Without zero-width spaces."""
    return text.replace(_HIDDEN, "")


def to_bytes(text: str) -> bytes:
    """UTF-8; half a surrogate pair becomes '?'."""
    return text.encode("utf-8", "replace")


def base32(text: str) -> str:
    """RFC 4648."""
    return base64.b32encode(to_bytes(text)).decode()


def from_base32(text: str) -> str:
    """Raises ValueError where it is none."""
    return base64.b32decode(text).decode()


def hexadecimal(text: str) -> str:
    """Two digits a byte."""
    return to_bytes(text).hex()


def from_hexadecimal(text: str) -> str:
    """Raises ValueError where it is none."""
    return bytes.fromhex(text).decode()


def binary(text: str) -> str:
    """Eight bits a byte, a space between bytes."""
    return " ".join(f"{byte:08b}" for byte in to_bytes(text))


def from_binary(text: str) -> str:
    """Raises ValueError where it is none."""
    return bytes(int(bits, 2) for bits in text.split()).decode()


def percent(text: str) -> str:
    """Every byte percent-encoded, as no browser would do with letters."""
    return "".join(f"%{byte:02X}" for byte in to_bytes(text))


def from_percent(text: str) -> str:
    """Raises ValueError where the bytes are no text."""
    return unquote_to_bytes(text).decode()


def entities(text: str) -> str:
    """A numeric HTML entity for every character."""
    return "".join(f"&#{ord(char)};" for char in text)


def from_entities(text: str) -> str:
    """What ``entities`` wrote; raises ValueError for a number that is no character."""
    return re.sub(r"&#(\d{1,7});", lambda found: chr(int(found[1])), text)
