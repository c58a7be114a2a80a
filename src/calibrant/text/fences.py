"""Untrusted text inside a prompt: broken control tokens, a key that the text cannot hold, overlapping pieces.

Pure: texts in, texts out. Whoever writes the text may know this code, and the salt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count

from calibrant.core.digest import digest

_OPENS = re.compile(r"[<\uff1c\ufe64\[\uff3b](?=\S)|\](?=~)|>(?=>)")
"""Where a control token may begin: '<|im_end|>', '</s>', '[INST]', '<start_of_turn>', ']~b]', '>>TITLE<<'."""
_SPEAKER = re.compile(
    r"^(?=[ \t]*(?:system|user|human|assistant|model|developer|tool)[ \t]*:)|^(?=#{1,6} )",
    re.IGNORECASE | re.MULTILINE,
)
"""Where a line names a speaker, as formats without control tokens do, or begins a heading."""
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls but tab and line feed, separators of lines, and halves of surrogate pairs."""


def defused(text: str) -> str:
    """``text`` with a space in every control token of a chat format, so that no tokenizer reads one.

    Known formats are no list: behind every opening bracket comes a space. A line that names a speaker, or is
    a heading, begins with '> '. Controls and halves of surrogate pairs are spelt out.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    plain = _UNSEEN.sub(lambda mark: f"\\u{ord(mark[0]):04x}", lines)
    return _SPEAKER.sub("> ", _OPENS.sub(lambda mark: f"{mark[0]} ", plain))


def fence_key(texts: Sequence[str], salt: str = "") -> str:
    """Sixteen hex digits that stand in none of ``texts``: a digest of them and of ``salt``.

    A text that held its own key would be a fixed point of SHA-256, and even then another key is taken.
    """
    held = [text.casefold() for text in texts]
    keys = (digest([salt, *texts, turn])[:16] for turn in count())
    return next(key.upper() for key in keys if not any(key in text for text in held))


def windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Pieces [start, end) that together are all of a text, each with ``overlap`` of the one before.

    Every passage of at most ``overlap`` characters is whole in one of them. ``overlap`` is below ``size``.
    """
    step = size - overlap
    ends = max(0, -(-(length - size) // step))
    return [(step * place, min(step * place + size, length)) for place in range(ends + 1)]
