"""Guards that read one chat at a time, as users wrote them before: ``by_list`` asks them about a list."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from calibrant.core import Chat, Guard, Identity, Side, Verdict


def by_list(guard: Any) -> Guard:
    """``guard`` itself where its ``ask`` takes ``chats``; else one that asks it for each chat."""
    try:
        names = list(inspect.signature(guard.ask).parameters)
    except (TypeError, ValueError):  # written in C, say: it keeps to the contract or fails closed
        names = ["chats"]
    # Names that hide what a wrapper takes pass it on as it comes.
    takes_list = not names or names[0] in ("chats", "args")
    return guard if takes_list else _EachChat(guard)


class _EachChat:
    """The guard that ``by_list`` makes."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard
        if hasattr(guard, "sides"):
            self.sides: tuple[str, ...] = guard.sides

    @property
    def identity(self) -> Identity:
        identity: Identity = self._guard.identity
        return identity

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        return [self._guard.ask(chat, side) for chat in chats]
