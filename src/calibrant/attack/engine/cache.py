"""Where a campaign writes every answer down, and finds it again: two append-only files.

``attempts.jsonl`` holds what the target said, ``moves.jsonl`` what the attacking model, the surrogate and
computations gave. A line begins with its key, so opening reads keys alone: 16 bytes an answer stay in memory.
A line that a kill cut short is taken off; of two lines with one key the later counts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from calibrant.core import Attempt, EvidenceError
from calibrant.core.digest import plain

_BLOCK = 1 << 20
_KEY = slice(len(b'{"id":"'), len(b'{"id":"') + 64)


class Lines:
    """An append-only file of JSON lines, each an object whose first member is ``id`` (64 hex digits)."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, or begin it. A cut last line is removed from the file."""
        self.path = path
        keys, places, self._end = _scan(path)
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]
        self._out = path.open("ab")
        if self._out.tell() != self._end:
            os.truncate(path, self._end)
        self._in = path.open("rb")
        self._unsynced = False

    def __len__(self) -> int:
        """Lines that lay here when it was opened."""
        return len(self._keys)

    def find(self, key: str) -> tuple[int, bytes] | None:
        """Place and bytes of the last line with this key among those that lay here when it was opened."""
        short = np.uint64(int(key[:16], 16))
        stop = int(np.searchsorted(self._keys, short, side="right"))
        for spot in range(stop - 1, -1, -1):
            if self._keys[spot] != short:
                return None
            line = self.read(int(self._places[spot]))
            if line[_KEY] == key.encode():
                return int(self._places[spot]), line
        return None

    def read(self, place: int) -> bytes:
        """The line at ``place``."""
        self._in.seek(place)
        return self._in.readline()

    def add(self, lines: Sequence[bytes]) -> list[int]:
        """Append lines (without their newline) and return their places; ``sync`` has them on disk."""
        places = []
        for line in lines:
            places.append(self._end)
            self._end += len(line) + 1
        self._out.write(b"\n".join(lines) + b"\n" if lines else b"")
        self._out.flush()  # with the system, so that it outlives this process
        self._unsynced = True
        return places

    def sync(self) -> None:
        """Everything is on the disk when this returns: it outlives the machine, not only the process."""
        if self._unsynced:
            os.fsync(self._out.fileno())
            self._unsynced = False

    def close(self) -> None:
        """Let go of the file."""
        self._out.close()
        self._in.close()


class AttemptCache:
    """Attempts, and answers to all other moves, of one campaign."""

    def __init__(self, folder: Path) -> None:
        self._attempts = Lines(folder / "attempts.jsonl")
        self._moves = Lines(folder / "moves.jsonl")
        self._synced = time.monotonic()

    @property
    def held(self) -> int:
        """Attempts of earlier tries at this job."""
        return len(self._attempts)

    def attempt(self, key: str) -> tuple[int, Attempt] | None:
        """An attempt of an earlier try, with its place."""
        found = self._attempts.find(key)
        if found is None:
            return None
        try:
            return found[0], Attempt.model_validate_json(found[1])
        except ValidationError as error:
            raise self._damaged(self._attempts.path, found[0], str(error.errors()[0]["msg"])) from None

    def move(self, key: str) -> dict[str, Any] | None:
        """What was noted under ``key`` in an earlier try."""
        found = self._moves.find(key)
        if found is None:
            return None
        try:
            value: dict[str, Any] = json.loads(found[1])
        except ValueError as error:
            raise self._damaged(self._moves.path, found[0], str(error)) from None
        return value

    def add(self, attempts: Sequence[Attempt]) -> list[int]:
        """Write attempts down and give their places; ``sync`` has them on disk."""
        return self._attempts.add([_json(attempt) for attempt in attempts])

    def note(self, key: str, answer: dict[str, Any]) -> None:
        """Write another answer down."""
        line = json.dumps({"id": key, **answer}, separators=(",", ":"), ensure_ascii=False)
        self._moves.add([line.encode("utf-8", "replace")])

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
                    line = _json(attempt.model_copy(update={"cut": True})) + b"\n"
                out.write(line)

    def close(self) -> None:
        """Have everything on disk and let go of the files."""
        self._attempts.sync()
        self._moves.sync()
        self._attempts.close()
        self._moves.close()

    @staticmethod
    def _damaged(path: Path, place: int, why: str) -> EvidenceError:
        return EvidenceError(
            f"{path}: the line at byte {place} cannot be read: {why.lower()}",
            hint="the file was changed after it was written; delete the job's work folder and run again",
        )


def _scan(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """First 64 bits of each key, place of each whole line, and the length of the whole lines together."""
    if not path.is_file():
        return np.empty(0, np.uint64), np.empty(0, np.int64), 0
    keys: list[np.ndarray[Any, Any]] = []
    places: list[np.ndarray[Any, Any]] = []
    end = 0
    with path.open("rb") as file:
        lines, starts = [], []
        for line in file:
            if not line.endswith(b"\n"):
                break
            lines.append(_short(path, end, line))
            starts.append(end)
            end += len(line)
            if len(lines) >= _BLOCK // 64:
                keys.append(np.array(lines, np.uint64))
                places.append(np.array(starts, np.int64))
                lines, starts = [], []
    keys.append(np.array(lines, np.uint64))
    places.append(np.array(starts, np.int64))
    return np.concatenate(keys), np.concatenate(places), end


def _short(path: Path, place: int, line: bytes) -> int:
    try:
        if not line.startswith(b'{"id":"'):
            raise ValueError("it does not begin with an id")
        return int(line[_KEY][:16], 16)
    except ValueError as error:
        raise AttemptCache._damaged(path, place, str(error)) from None


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
