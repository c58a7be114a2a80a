"""Sanitise text for a terminal or a page: escape control characters, redact keys."""

from __future__ import annotations

import re

from calibrant.core.secrets import strike

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but tab and line feed, marks that turn the direction of writing, halves of surrogate pairs."""


def harmless(text: str) -> str:
    """``text`` with control and direction characters escaped ('\\x1b'), and keys redacted."""
    return _STEERS.sub(_spelt, str(strike(text)))


def harmless_json(text: str) -> str:
    """The same for JSON text, which still reads as what was written."""
    return _STEERS.sub(lambda mark: f"\\u{ord(mark[0]):04x}", str(strike(text)))


def visible(text: str) -> str:
    """``text`` with all invisible characters escaped: for a person who judges a model's or an attacker's
    text."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _spelt(mark: re.Match[str]) -> str:
    return mark[0].encode("unicode_escape").decode()
