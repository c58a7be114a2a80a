"""Helpers of the scheduler: deduplicated queries, cost of an attempt, garbage collection."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from functools import cache

from calibrant.attack.engine.protocol import AskAttacker, Compute, Move
from calibrant.core import LM, Chat, Completion, Cost, InputError, OpenLM, Sampling, digest
from calibrant.core.behaviours import same_number


class Sweep:
    """Run Python's cyclic garbage collector only every few seconds: attempts make no cycles.

    By default it scans every object of every library several times per thousand attempts, and takes as long
    as everything else. The process's setting is restored at the end.
    """

    def __init__(self, every: float = 5.0) -> None:
        self._every, self._last, self._was = every, time.monotonic(), gc.isenabled()
        gc.disable()

    def now_and_then(self) -> None:
        """Collect if it is time to."""
        if time.monotonic() - self._last >= self._every:
            gc.collect()
            self._last = time.monotonic()

    def done(self) -> None:
        """Restore the process's setting."""
        if self._was:
            gc.enable()


def silence(reply: Completion) -> InputError:
    """The message for a target that answers only errors."""
    return InputError(
        f"the target answers nothing but errors; the last: {reply.error}",
        hint="fix the cause and run the same command again: replies so far are kept",
    )


def once(lm: LM, chats: Sequence[Chat], sampling: Sampling) -> list[Completion]:
    """One reply per chat; equal chats share one, since equal seeds give equal samples."""
    places: dict[tuple[tuple[str, str], ...], int] = {}
    spots = [
        places.setdefault(tuple((m.role, m.content) for m in chat.messages), len(places)) for chat in chats
    ]
    alike = len(places) < len(chats)
    distinct = [chats[spots.index(spot)] for spot in range(len(places))] if alike else chats
    replies = lm.generate(distinct, sampling)
    same_number(f"model '{lm.identity.name}'", len(replies), len(distinct))
    return [replies[spot] for spot in spots]


def asked_of(move: Move) -> str:
    """Digest of a move's question, so that a logged answer is only used for its own question."""
    if isinstance(move, Compute):
        return digest(move.what)
    return digest([move._asdict() if isinstance(move, AskAttacker) else list(move)])


@cache
def plain_cost(said: int) -> Cost:
    """Cost of one query with a reply of so many tokens; cached, since most attempts cost the same."""
    return Cost(queries=1, target_tokens=said)


def parameters(lm: LM | None) -> int:
    """Number of parameters of local weights; 0 for a black-box model."""
    return sum(p.numel() for p in lm.module.parameters()) if isinstance(lm, OpenLM) else 0


def timeless(reply: Completion) -> Completion:
    """Without times, which differ between runs."""
    if not reply.layers:
        return reply
    layers = tuple(layer.model_copy(update={"ms": None}) for layer in reply.layers)
    return reply.model_copy(update={"layers": layers})
