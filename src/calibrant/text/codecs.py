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
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple

from calibrant.text.quick import flat, from_bytes, to_bytes

_LEET = ("aeiost", "431057")
_SPELLED = re.compile(r"(?<![\w-])[^\W\d_](?:-[^\W\d_])+(?![\w-])")
_WORD = re.compile(r"(\w+)")
_BASE64 = re.compile(r"(?<![\w+/=])(?=[A-Za-z0-9+/=]{8})[A-Za-z0-9+/]+={0,2}(?![\w+/=])")

_IN_BASE64 = bytes(
    97 if chr(code) in ascii_letters + digits + "+/=" else code if code == ord("_") else 32
    for code in range(256)
)
_RUN = re.compile(b"(?<![a_])a{8,}+(?!_)")
"""Where ``_BASE64`` may find something, 'a' for each of its characters."""


def _ascii(source: str, to: str) -> Callable[[str], str]:
    """Replaces ASCII characters by ASCII ones: on bytes, where a table is quick; UTF-8 keeps all others."""
    table = bytes.maketrans(source.encode(), to.encode())
    return lambda text: from_bytes(to_bytes(text).translate(table))


def _shift(by: int) -> Callable[[str], str]:
    """Moves each ASCII letter ``by`` places round the alphabet."""
    moved = "".join(letters[by:] + letters[:by] for letters in (ascii_lowercase, ascii_uppercase))
    return _ascii(ascii_lowercase + ascii_uppercase, moved)


def _each_word(text: str, change: Callable[[str], str]) -> str:
    return re.sub(r"\w+", lambda match: change(match.group()), text)


def _spell(text: str) -> str:
    return _each_word(text, "-".join)


def _reversed(text: str) -> str:
    parts = _WORD.split(text)
    parts[1::2] = [word[::-1] for word in parts[1::2]]
    return "".join(parts)


def _unspell(text: str) -> str | None:
    if "-" not in text or not _SPELLED.search(text):
        return None
    return _SPELLED.sub(lambda match: match.group().replace("-", ""), text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _unbase64(text: str) -> str | None:
    seen = flat(text, _IN_BASE64, ("_", " "))
    if seen is None:
        changed = _BASE64.sub(lambda match: _decoded(match.group()), text)
        return changed if changed != text else None
    done, parts = 0, []
    for run in _RUN.finditer(seen):
        start, end = run.span()
        if (end - start) % 4 and text[end - 1] != "=":
            continue  # most words
        code = text[start:end]
        if (found := _decoded(code)) != code:
            parts += [text[done:start], found]
            done = end
    return "".join(parts) + text[done:] if parts else None


def _decoded(code: str) -> str:
    """A word in base64; as it is, where it is none."""
    bare = code.rstrip("=")
    padding = len(code) - len(bare)
    if "=" in bare or padding > 2 or (len(code) % 4 and len(bare) % 4):
        return code
    raw = binascii.a2b_base64(code)
    # Ordinary words of 8 letters are valid base64 too; what they decode to is no text.
    return text if raw.isascii() and (text := raw.decode()).isprintable() else code


class Codec(NamedTuple):
    """An encoding with its inverse."""

    encode: Callable[[str], str]
    decode: Callable[[str], str | None]


CODECS: dict[str, Codec] = {
    "spell": Codec(_spell, _unspell),
    "reverse": Codec(_reversed, _reversed),
    "rot13": Codec(_shift(13), _shift(-13)),
    "caesar": Codec(_shift(3), _shift(-3)),
    "leet": Codec(_ascii(*_LEET), _ascii(*_LEET[::-1])),
    "base64": Codec(_base64, _unbase64),
}
"""Name -> codec. 'caesar' shifts by three; 'spell' puts a hyphen between the letters of each word."""
