"""Homoglyphs in names: a reviewer of a policy must see what a gate compares."""

from __future__ import annotations

import re
import unicodedata


def deceptive(text: str) -> str:
    """Why ``text`` may be taken for another name, or "".

    Refused: characters that show nothing (zero width, direction marks, controls), forms that Unicode itself
    calls compatible with others (NFKC), and letters of several alphabets in one word: 'h\u0435ldout'. A word
    that is wholly of another alphabet is a name like any other; what it leads to is pinned by a digest.
    """
    hidden = next((c for c in text if unicodedata.category(c)[0] in "CZ" and c != " "), "")
    if hidden:
        return f"it holds a character that cannot be seen, U+{ord(hidden):04X}"
    if not unicodedata.is_normalized("NFKC", text):
        return f"its characters look like others; write {unicodedata.normalize('NFKC', text)!r}"
    for word in re.findall(r"[^\W\d_]+", text):
        alphabets = {unicodedata.name(letter, "?").partition(" ")[0] for letter in word}
        if len(alphabets) > 1 and alphabets & {"LATIN", "CYRILLIC", "GREEK"}:
            return f"the word {word!a} mixes {' and '.join(sorted(alphabets))} letters"
    return ""
