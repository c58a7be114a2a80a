"""Faults of preference pairs that show in the text alone. Pure: rows in, findings out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from calibrant.core.config import Frozen
from calibrant.core.lm import Chat
from calibrant.data.near import near
from calibrant.data.rows import Pair, Preferences


class Finding(Frozen):
    """One fault of one row."""

    id: str
    """The row's id, or 'line N' for a row that the reader refused."""
    kind: str
    """What is wrong, in a fixed word or two."""
    detail: str
    """What exactly, in words."""


def refusals(pairs: Preferences) -> Iterator[Finding]:
    """Rows that the reader did not take."""
    for row in pairs.refused:
        yield Finding(id=f"line {row.line}", kind="refused", detail=row.reason)


def empty(pairs: Preferences) -> Iterator[Finding]:
    """Replies without a character to learn from."""
    for row in pairs:
        for side, text in (("chosen", row.chosen), ("rejected", row.rejected)):
            if not text.strip():
                yield Finding(id=row.id, kind="empty", detail=f"the {side} reply is empty")


def equal(pairs: Preferences) -> Iterator[Finding]:
    """Pairs that prefer nothing: both replies are the same text but for outer space."""
    for row in pairs:
        if row.chosen.strip() == row.rejected.strip():
            yield Finding(id=row.id, kind="equal", detail="chosen and rejected are the same text")


def duplicates(pairs: Preferences) -> Iterator[Finding]:
    """Every row but the first of those with the same prompt, chosen and rejected."""
    first: dict[tuple[Chat, str, str], str] = {}
    for row in pairs:
        seen = first.setdefault((row.prompt, row.chosen.strip(), row.rejected.strip()), row.id)
        if seen != row.id:
            yield Finding(id=row.id, kind="duplicate", detail=f"the same as '{seen}'")


def contradictions(pairs: Preferences) -> Iterator[Finding]:
    """Every row of those with the same prompt and replies that do not all choose the same one."""
    for rows in repeated(pairs):
        for row in rows:
            other = next((one for one in rows if one.chosen.strip() != row.chosen.strip()), None)
            if other is not None:
                detail = f"'{other.id}' has the same prompt and replies and chooses the other one"
                yield Finding(id=row.id, kind="contradiction", detail=detail)


def repeated(pairs: Preferences) -> list[list[Pair]]:
    """Groups of two rows or more with the same prompt and the same two different replies."""
    groups: dict[tuple[Chat, frozenset[str]], list[Pair]] = defaultdict(list)
    for row in pairs:
        groups[row.prompt, frozenset((row.chosen.strip(), row.rejected.strip()))].append(row)
    return [rows for (_, replies), rows in groups.items() if len(rows) > 1 and len(replies) == 2]


def leaks(pairs: Preferences, held_out: Preferences, threshold: float) -> Iterator[Finding]:
    """Held-out rows whose prompt is nearly that of a training row; see ``near``."""
    for alike in near(
        [_told(row.prompt) for row in held_out], [_told(row.prompt) for row in pairs], threshold
    ):
        detail = f"its prompt is that of '{pairs.rows[alike.match].id}' (similarity {alike.similarity:.2f})"
        yield Finding(id=held_out.rows[alike.query].id, kind="leak", detail=detail)


ODDITIES: dict[str, re.Pattern[str]] = {
    "a replacement character: bytes were lost": re.compile("\ufffd"),
    "UTF-8 read as Latin-1": re.compile(
        "\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]|\u00e2(?:\u20ac|\u0080)"
    ),
    "a control character": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "an invisible character": re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"),
    "an HTML entity": re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,4});"),
}
"""What a text should not hold -> how to see it."""


def odd_text(pairs: Preferences, specials: Sequence[str] = ()) -> Iterator[Finding]:
    """Rows with traces of a broken encoding, or that spell out one of a tokenizer's special tokens."""
    marks = "|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True) if token)
    looks = ODDITIES | ({"a special token of the model": re.compile(marks)} if marks else {})
    for row in pairs:
        parts = {"prompt": _told(row.prompt), "chosen": row.chosen, "rejected": row.rejected}
        for what, pattern in looks.items():
            where = [name for name, text in parts.items() if pattern.search(text)]
            if where:
                first = next(match for name in where if (match := pattern.search(parts[name])))
                detail = f"{what} in {', '.join(where)}: {first.group()!a}"
                yield Finding(id=row.id, kind="odd text", detail=detail)


TEXT_CHECKS: dict[str, Callable[[Preferences], Iterator[Finding]]] = {
    "refused": refusals,
    "empty": empty,
    "equal": equal,
    "duplicate": duplicates,
    "contradiction": contradictions,
}
"""Kind of finding -> the check that needs nothing but the rows."""


def _told(chat: Chat) -> str:
    """All turns, one under the other."""
    return "\n".join(turn.content for turn in chat.messages)
