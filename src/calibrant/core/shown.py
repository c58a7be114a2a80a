"""Text on its way to a terminal or a page: it steers neither, and holds no key."""

from __future__ import annotations

import re

from calibrant.core.secrets import strike

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but tab and line feed, marks that turn the direction of writing, halves of surrogate pairs."""


def harmless(text: str) -> str:
    """``text`` with what steers a terminal or a reader's eye spelt out ('\\x1b'), and keys struck."""
    return _STEERS.sub(_spelt, str(strike(text)))


def harmless_json(text: str) -> str:
    """The same for JSON text, which still reads as what was written."""
    return _STEERS.sub(lambda mark: f"\\u{ord(mark[0]):04x}", str(strike(text)))


def visible(text: str) -> str:
    """``text`` with all that cannot be seen spelt out: what a model or an attacker wrote, to be judged."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _spelt(mark: re.Match[str]) -> str:
    return mark[0].encode("unicode_escape").decode()
