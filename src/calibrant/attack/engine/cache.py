"""Where a campaign writes every answer down, and finds it again: two append-only files.

``attempts.jsonl`` holds what the target said, ``moves.jsonl`` what the attacker model, the surrogate and
computations gave. A line begins with its key, so opening reads keys alone and keeps no text; of two lines
with one key the later counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError

from calibrant.core import Attempt
from calibrant.core.digest import plain
from calibrant.ledger.lines import Lines

_KEY = b'{"id":"'


class AttemptCache:
    """Attempts, and answers to all other moves, of one campaign."""

    def __init__(self, folder: Path) -> None:
        """Open both files in ``folder``, or begin them; see ``Lines``."""
        with ExitStack() as files:
            self._attempts = files.enter_context(Lines(folder / "attempts.jsonl", key=_KEY))
            self._moves = files.enter_context(Lines(folder / "moves.jsonl", key=_KEY))
            self._files = files.pop_all()
        self._synced = time.monotonic()

    @property
    def held(self) -> int:
        """Attempts of earlier tries at this job."""
        return self._attempts.indexed

    def attempt(self, key: str) -> tuple[int, Attempt] | None:
        """An attempt of an earlier try, with its place."""
        return self._attempts.find(key, Attempt.model_validate_json, "an attempt")

    def move(self, key: str) -> dict[str, Any] | None:
        """What was noted under ``key`` in an earlier try."""
        noted: tuple[int, dict[str, Any]] | None = self._moves.find(key, json.loads, "an answer")
        return noted[1] if noted else None

    def add(self, attempts: Sequence[Attempt]) -> list[int]:
        """Write attempts down and give their places; ``sync`` has them on disk."""
        return self._attempts.add(map(_json, attempts), durable=False)

    def note(self, key: str, answer: dict[str, Any]) -> None:
        """Write another answer down."""
        line = json.dumps({"id": key, **answer}, separators=(",", ":"), ensure_ascii=False)
        self._moves.add([line.encode("utf-8", "replace")], durable=False)

    def sync(self) -> None:
        """Have everything on disk, at most once a second: a power cut loses no more than that."""
        if time.monotonic() - self._synced >= 1.0:
            self._attempts.sync()
            self._moves.sync()
            self._synced = time.monotonic()

    def copy(self, places: Sequence[int], path: Path, cut: Container[int] = ()) -> None:
        """Write the attempts at ``places``, in that order, to ``path``; those in ``cut`` are marked so."""
        with path.open("wb") as out:
            for place in places:
                line = self._attempts.read(place)
                if place in cut:
                    attempt = Attempt.model_validate_json(line)
                    line = _json(attempt.model_copy(update={"cut": True}))
                out.write(line + b"\n")

    def close(self) -> None:
        """Have everything on disk and let go of the files."""
        self._files.close()


_bytes = Attempt.__pydantic_serializer__.to_json
"""Bytes of an attempt; ``model_dump_json`` would decode them first."""


def _json(attempt: Attempt) -> bytes:
    """Bytes of an attempt, ``id`` first."""
    try:
        return _bytes(attempt)
    except PydanticSerializationError:  # half a surrogate pair, which a reply may hold and UTF-8 may not
        return json.dumps(plain(attempt), separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "replace"
        )
