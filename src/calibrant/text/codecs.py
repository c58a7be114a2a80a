"""Text encodings, as pure functions: attacks write them, guards read them, the testbed teaches them.

Each codec is lossless on the words that it is meant for (lower-case ASCII for the letter shifts) and
leaves every other character as it is. ``decode`` returns None where it can tell that a text is not in
that encoding; a letter shift, a reversal and leet can be undone on any text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple

_LEET = ("aeiost", "431057")
_SPELLED = re.compile(r"(?<![\w-])[^\W\d_](?:-[^\W\d_])+(?![\w-])")
_BASE64 = re.compile(r"(?<![\w+/=])(?=[A-Za-z0-9+/=]{8})[A-Za-z0-9+/]+={0,2}(?![\w+/=])")


def _ascii(text: str, source: str, to: str) -> str:
    """Replace ASCII characters by ASCII ones: on bytes, where a table is quick and UTF-8 keeps all others."""
    table = bytes.maketrans(source.encode(), to.encode())
    return text.encode("utf-8", "surrogatepass").translate(table).decode("utf-8", "surrogatepass")


def _shift(text: str, by: int) -> str:
    """Move each ASCII letter ``by`` places round the alphabet."""
    moved = "".join(letters[by:] + letters[:by] for letters in (ascii_lowercase, ascii_uppercase))
    return _ascii(text, ascii_lowercase + ascii_uppercase, moved)


def _each_word(text: str, change: Callable[[str], str]) -> str:
    return re.sub(r"\w+", lambda match: change(match.group()), text)


def _spell(text: str) -> str:
    return _each_word(text, "-".join)


def _unspell(text: str) -> str | None:
    if not _SPELLED.search(text):
        return None
    return _SPELLED.sub(lambda match: match.group().replace("-", ""), text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _unbase64(text: str) -> str | None:
    def read(match: re.Match[str]) -> str:
        try:
            text = base64.b64decode(match.group(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return match.group()
        # Ordinary words of 8 letters are valid base64 too; what they decode to is no text.
        return text if text.isprintable() and text.isascii() else match.group()

    changed = _BASE64.sub(read, text)
    return changed if changed != text else None


class Codec(NamedTuple):
    """An encoding with its inverse."""

    encode: Callable[[str], str]
    decode: Callable[[str], str | None]


CODECS: dict[str, Codec] = {
    "spell": Codec(_spell, _unspell),
    "reverse": Codec(
        lambda text: _each_word(text, lambda word: word[::-1]),
        lambda text: _each_word(text, lambda word: word[::-1]),
    ),
    "rot13": Codec(lambda text: _shift(text, 13), lambda text: _shift(text, -13)),
    "caesar": Codec(lambda text: _shift(text, 3), lambda text: _shift(text, -3)),
    "leet": Codec(lambda text: _ascii(text, *_LEET), lambda text: _ascii(text, *_LEET[::-1])),
    "base64": Codec(_base64, _unbase64),
}
"""Name -> codec. 'caesar' shifts by three; 'spell' puts a hyphen between the letters of each word."""
