"""A PyRIT conversation: message pieces in order, and the turns before one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibrant.core import Chat, InputError, Message
from calibrant.formats.raw import chat_of, whole

TURNS = 1_000
"""Most turns before a reply: every scored reply of a conversation holds all of those before it."""


class Talk:
    """The pieces of one conversation; each becomes a message once, however many replies it stands before."""

    def __init__(self, pieces: Iterable[Mapping[str, Any]]) -> None:
        self._pieces = sorted(pieces, key=_sequence)
        self._places = {id(piece): at for at, piece in enumerate(self._pieces)}
        self._named: dict[str, list[int]] = {}
        for at, piece in enumerate(self._pieces):
            self._named.setdefault(str(piece.get("id") or ""), []).append(at)
        self._said: dict[int, Message] = {}

    def before(self, piece: Mapping[str, Any]) -> Chat:
        """What was said before a piece."""
        return self._chat(range(self._places[id(piece)]))

    def without(self, last: Mapping[str, Any]) -> Chat:
        """All but the last response, which is known by its id where that is its own, else by its words."""
        _refuse_long(len(self._pieces) - 1)
        own = self._named.get(str(last["id"]), []) if last.get("id") else []
        end = len(self._pieces) - 1 if _same(self._pieces[-1], last) else -1
        gap = own[0] if len(own) == 1 else end
        return self._chat([at for at in range(len(self._pieces)) if at != gap])

    def _chat(self, places: Sequence[int]) -> Chat:
        _refuse_long(len(places))
        for at in places:
            if at not in self._said:
                piece = self._pieces[at]
                self._said[at] = chat_of([(piece.get("role"), piece.get("converted_value"))]).messages[0]
        return Chat(messages=tuple(self._said[at] for at in places))


def _refuse_long(turns: int) -> None:
    if turns > TURNS:
        raise InputError(f"too long: {turns:,} turns before a reply, more than {TURNS:,}")


def _sequence(piece: Mapping[str, Any]) -> int:
    return whole(piece, "sequence") if piece.get("sequence") != -1 else 0


def _same(piece: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    return piece.get("role") == "assistant" and piece.get("converted_value") == last.get("converted_value")
