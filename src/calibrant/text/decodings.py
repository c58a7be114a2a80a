"""How a guard reads a text: without invisible characters, and decoded. Pure: texts in, texts out."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from calibrant.text.codecs import CODECS

# Blank letters and marks that Unicode does not file under 'format' (Cf).
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


def readings(text: str, views: Sequence[str]) -> dict[str, str]:
    """The views of a text: 'as written' without invisible characters, then each decoding that differs."""
    seen = {"as written": visible(text)}
    for name in views:
        decoded = CODECS[name].decode(seen["as written"])
        if decoded is not None and decoded not in seen.values():
            seen[f"through {name}"] = visible(decoded)
    return seen


def visible(text: str) -> str:
    """NFKC, dashes as hyphens, without the characters that a reader does not see."""
    seen = (char for char in text if not _hidden(char))
    kept = ("-" if unicodedata.category(char) == "Pd" else char for char in seen)
    return unicodedata.normalize("NFKC", "".join(kept))


def _hidden(char: str) -> bool:
    """Format marks, controls other than white space, stray surrogates, unassigned and blank characters."""
    category = unicodedata.category(char)
    if category == "Cc":
        return not char.isspace()
    return category in ("Cf", "Cs", "Co", "Cn") or char in _BLANK or "\ufe00" <= char <= "\ufe0f"


def fold(text: str) -> str:
    """``visible`` without case (NFKC case folding) and with single spaces: what patterns are matched on."""
    return " ".join(unicodedata.normalize("NFKC", visible(text).casefold()).split())
