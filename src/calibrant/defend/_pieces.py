"""How a classifier reads a chat: as texts of limited length, of which the highest score counts.

Nothing is cut off: a long text is read in chunks that overlap, so a passage of at most ``overlap`` characters
stands whole in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from calibrant.core import Chat, InputError
from calibrant.data.text_classifier import Over, Reading
from calibrant.defend._reading import joined
from calibrant.text.decodings import readings, visible

_WORD = re.compile(r"\S+")
Fits = Callable[[str], bool]
"""Whether a text is short enough for what reads it."""


class Piece(NamedTuple):
    """A text that is scored."""

    text: str
    where: str
    """In words: which text of the chat, read how, and from which character on."""


def pieces(chat: Chat, reading: Reading, fits: Fits) -> list[Piece]:
    """What a guard scores of a chat; of copies the first. [] where no visible character is to be read.

    A chat whose reply is read ends with it.

    Raises:
        InputError: one character is too long for what reads it.
    """
    return _distinct(
        piece
        for name, text in _texts(chat, reading).items()
        for view, decoded in readings(text, reading.views).items()
        for piece in _chunks(visible(decoded), f"{name}, read {view}", reading, fits)
    )


def lessons(chat: Chat, reading: Reading, fits: Fits) -> list[Piece]:
    """What a classifier is trained on of a chat: what ``pieces`` has without decoding.

    Of an exchange, also with the reply up to each ``every`` words: what a guard is asked about while the
    reply is streamed.
    """
    plain = reading.model_copy(update={"views": ()})
    return _distinct(piece for one in _so_far(chat, reading) for piece in pieces(one, plain, fits))


def all_pieces(chat: Chat, reading: Reading, fits: Fits) -> list[Piece]:
    """All that a guard may score of a chat: ``pieces``, and of an exchange those of each prefix, too."""
    return _distinct(piece for one in _so_far(chat, reading) for piece in pieces(one, reading, fits))


def _so_far(chat: Chat, reading: Reading) -> Iterator[Chat]:
    """Of an exchange, the chat with the reply up to each ``every`` words; and the chat itself."""
    if reading.over == "exchange":
        reply = chat.messages[-1].content
        ends = [match.end() for match in _WORD.finditer(reply)][reading.every - 1 : -1 : reading.every]
        before = Chat(messages=chat.messages[:-1])
        yield from (before.then("assistant", reply[:end]) for end in ends)
    yield chat


def whole(chat: Chat, over: Over) -> str:
    """All of what is read of a chat as one text."""
    return chat.messages[-1].content if over == "reply" else joined(chat)


def _texts(chat: Chat, reading: Reading) -> dict[str, str]:
    """Of a conversation each message by itself, too: a short one is not lost beside long ones."""
    if reading.over != "prompt":
        return {"the reply" if reading.over == "reply" else "the exchange": whole(chat, reading.over)}
    texts = {f"message {place} ({m.role})": m.content for place, m in enumerate(chat.messages, 1)}
    return texts if len(texts) < 2 else {**texts, "the conversation": joined(chat)}


def _chunks(text: str, where: str, reading: Reading, fits: Fits) -> Iterator[Piece]:
    step = reading.chunk - reading.overlap
    for start in range(0, max(1, len(text) - reading.overlap), step):
        for at, part in _parts(text[start : start + reading.chunk], fits):
            if part.strip():
                yield Piece(part, f"{where}, from character {start + at + 1}")


def _parts(text: str, fits: Fits) -> Iterator[tuple[int, str]]:
    """A chunk, or where it has too many tokens its halves, which share a quarter; and where each begins."""
    if fits(text):
        yield 0, text
        return
    if len(text) < 2:
        raise InputError(f"the character {text!r} has too many tokens", hint="take another reader")
    half, shared = (len(text) + 1) // 2, len(text) // 8
    for start, end in ((0, half + shared), (half - shared, len(text))):
        for at, part in _parts(text[start:end], fits):
            yield start + at, part


def _distinct(found: Iterator[Piece]) -> list[Piece]:
    first: dict[str, Piece] = {}
    for piece in found:
        first.setdefault(piece.text, piece)
    return list(first.values())
