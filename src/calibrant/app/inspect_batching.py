"""Gather calls that arrive close together into one batch, under any of anyio's event loops.

    batcher = Batcher(work)              # work: a list of requests -> a list of results, in order
    result = await batcher.result(request)

There is no task in the background, so nothing outlives a loop: callers queue for one lock, and whoever holds
it waits a moment for others, takes every request that has come, and does them all. The others find their
result when the lock comes to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

Q = TypeVar("Q")
R = TypeVar("R")

WINDOW = 0.005
"""Seconds that the first of a batch waits for others."""
MOST = 512
"""Most requests in one batch."""


class _Call(Generic[Q, R]):
    """One request on its way."""

    def __init__(self, request: Q) -> None:
        self.request = request
        self.result: list[R] = []
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return bool(self.result) or self.error is not None


class Batcher(Generic[Q, R]):
    """Calls of one model, batched as they come."""

    def __init__(
        self, work: Callable[[list[Q]], list[R]], *, window: float = WINDOW, most: int = MOST
    ) -> None:
        """``work`` runs in a thread, one batch at a time; an error of it is the error of every call in it."""
        self._work, self._window, self._most = work, window, most
        self._waiting: list[_Call[Q, R]] = []
        self._lock: anyio.Lock | None = None
        self._inside = 0
        self.batches: list[int] = []
        """Size of every batch so far."""

    async def result(self, request: Q) -> R:
        """The result for ``request``, whichever batch it is done in."""
        call: _Call[Q, R] = _Call(request)
        if self._lock is None or self._inside == 0:  # a lock belongs to the loop that it was first used in
            self._lock = anyio.Lock()
        self._inside += 1
        self._waiting.append(call)
        try:
            async with self._lock:
                while not call.done:
                    await self._batch()
        finally:
            self._inside -= 1
            if call in self._waiting:  # cancelled before it was taken
                self._waiting.remove(call)
        if call.error is not None:
            raise call.error
        return call.result[0]

    async def _batch(self) -> None:
        if len(self._waiting) < self._most:
            await anyio.sleep(self._window)
        taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        self.batches.append(len(taken))
        try:
            results = await anyio.to_thread.run_sync(self._work, [call.request for call in taken])
        except Exception as error:  # noqa: BLE001 - it belongs to the callers, who raise it
            for call in taken:
                call.error = error
            return
        for call, result in zip(taken, results, strict=True):
            call.result.append(result)
