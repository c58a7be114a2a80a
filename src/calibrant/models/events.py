"""Server-sent events from bytes, however they are cut (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

EVENT_BYTES = 4 * 2**20
"""Longest event of a stream that is read."""


class BadEventError(ValueError):
    """An event that is none; it says what was sent instead."""


class Events:
    """Parsed events of the OpenAI chat protocol: each is JSON, but for the last, ``[DONE]``."""

    def __init__(self) -> None:
        self._rest, self._data = b"", []  # type: tuple[bytes, list[bytes]]
        self.done = False

    def push(self, piece: bytes) -> Iterator[Any]:
        """Parsed events that are complete now.

        Raises:
            BadEventError: one that is no JSON, or longer than ``EVENT_BYTES``.
        """
        *lines, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > EVENT_BYTES:
            raise BadEventError("an event that is too long")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line.strip() and self._data:
                yield from self._event()

    def end(self) -> Iterator[Any]:
        """What stands there when the stream ends, its last blank line missing."""
        yield from self.push(b"\n\n")

    def _event(self) -> Iterator[Any]:
        data, self._data = b"\n".join(self._data), []
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            yield json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            raise BadEventError("an event that is no JSON") from None
