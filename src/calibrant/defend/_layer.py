"""One layer of a stack: a guard, how long it may take, and what happens when it gives no answer.

A guard *fails* where it raises, answers with something that is no verdict, or takes longer than ``timeout``.
Its verdict is then 'unknown', with the reason. An 'unknown' of its own is an answer, and blocks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from calibrant.core import Chat, Frozen, Guard, LayerVerdict, Side, Verdict
from calibrant.core.behaviours import same_number
from calibrant.defend._by_list import by_list
from calibrant.defend._reading import QUESTION

STUCK = 16
"""Most calls of one guard that outlived their time and still run; it is not asked while there are as many."""


class OnFailure(Frozen):
    """How long a guard may take, and what happens when it gives no answer."""

    timeout: float | None = Field(default=None, gt=0)
    """Most seconds for one call; one that takes longer has failed. None waits."""
    retries: int = Field(default=0, ge=0, le=10)
    """Further tries after a failure. A call that took too long is not tried again within one request."""
    breaker: int | None = Field(default=None, ge=1)
    """Circuit breaker: after as many failures in a row the guard is not asked for ``cooldown`` seconds, and
    counts as failed; then one call tries it. None: always asked."""
    cooldown: float = Field(default=30.0, gt=0)
    """Seconds that an open circuit waits."""
    on_error: Literal["block", "escalate"] = "block"
    """What a failure means. 'block': the text does not pass. 'escalate': the other layers of this side
    decide, at least one of which must say yes; the reply is marked as degraded."""


PLAIN = OnFailure()
"""It is waited for, asked once, and blocks."""


@dataclass(frozen=True)
class Layer:
    """One guard of a stack."""

    name: str
    """Unique in its stack."""
    side: Side
    """'input': before the model speaks. 'output': on its reply."""
    guard: Guard
    """The guard; 'yes' = may pass."""
    failing: OnFailure = PLAIN
    """How long it may take, and what happens when it gives no answer."""
    every: int | None = None
    """When a reply is streamed: ask about the reply so far after as many further tokens. None: the guard
    itself says how much of a reply may leave (``held``), or reads the whole before any of it leaves."""


class Caller:
    """Asks one layer's guard, within its rules; threads may share it."""

    def __init__(self, layer: Layer, clock: Callable[[], float] = time.monotonic) -> None:
        self.layer = layer
        self._guard, self._clock = by_list(layer.guard), clock
        self._lock = threading.Lock()
        self._failures, self._stuck, self._open_until = 0, 0, 0.0
        self._trying = False

    @property
    def open(self) -> bool:
        """Whether the circuit is open: the guard has failed too often and is not asked."""
        most = self.layer.failing.breaker
        return most is not None and self._failures >= most and self._clock() < self._open_until

    @property
    def stuck(self) -> bool:
        """Whether so many calls still run beyond their time that the guard is not asked."""
        return self._stuck >= STUCK

    def verdicts(self, chats: Sequence[Chat], within: float | None = None) -> list[LayerVerdict]:
        """One verdict a chat, in order, each with its share of the time.

        ``within``: seconds left to the whole request, where that is less than the layer's ``timeout``.
        """
        if not chats:
            return []
        start = time.perf_counter()
        verdicts = self._asked(tuple(chats), within)
        ms = 1000 * (time.perf_counter() - start) / len(chats)
        failed = "escalated" if self.layer.failing.on_error == "escalate" else "failed"
        return [
            LayerVerdict(
                layer=self.layer.name,
                verdict=_unanswered(said) if isinstance(said, str) else said,
                ms=ms,
                status=failed if isinstance(said, str) else "answered",
            )
            for said in verdicts
        ]

    def _asked(self, chats: tuple[Chat, ...], within: float | None) -> list[Verdict | str]:
        """Verdicts, or for each chat why there is none."""
        if not self._may_ask():
            return ["it failed too often, and is not asked for now"] * len(chats)
        if getattr(self.layer.guard, "bounded", False):  # it always ends, in time linear in the text
            within = None
        limits = [limit for limit in (self.layer.failing.timeout, within) if limit is not None]
        until = self._clock() + min(limits) if limits else None
        failed = True
        try:
            verdicts, late = self._within(chats, until)
            for _ in range(self.layer.failing.retries):
                lost = [place for place, said in enumerate(verdicts) if isinstance(said, str)]
                if late or not lost:
                    break
                again, late = self._within(tuple(chats[place] for place in lost), until)
                for place, said in zip(lost, again, strict=True):
                    verdicts[place] = said
            failed = all(isinstance(said, str) for said in verdicts)
        finally:
            self._note(failed)
        return verdicts

    def _within(self, chats: tuple[Chat, ...], until: float | None) -> tuple[list[Verdict | str], bool]:
        """One call, given up at ``until``: it goes on in its thread, and nobody hears its answer."""
        if until is None:
            return self._verdicts(chats), False
        with self._lock:
            if self._stuck >= STUCK:
                return [f"{self._stuck} earlier calls of it still run"] * len(chats), True
        answer: queue.SimpleQueue[list[Verdict | str]] = queue.SimpleQueue()
        given_up = threading.Event()

        def call() -> None:
            answer.put(self._verdicts(chats))
            with self._lock:
                if given_up.is_set():
                    self._stuck -= 1

        left = until - self._clock()
        threading.Thread(target=call, daemon=True, name=f"layer {self.layer.name}").start()
        try:
            return answer.get(timeout=max(0.0, left)), False
        except queue.Empty:
            with self._lock:
                if answer.empty():
                    given_up.set()
                    self._stuck += 1
            return [f"it gave no answer within {max(0.0, left):.3g} s"] * len(chats), True

    def _may_ask(self) -> bool:
        most = self.layer.failing.breaker
        if most is None:
            return True
        with self._lock:
            if self._failures < most:
                return True
            if self._trying or self._clock() < self._open_until:
                return False
            self._trying = True  # one call tries whether it is back
            return True

    def _note(self, failed: bool) -> None:
        if self.layer.failing.breaker is not None:
            with self._lock:
                self._trying = False
                self._failures = self._failures + 1 if failed else 0
                if failed:
                    self._open_until = self._clock() + self.layer.failing.cooldown

    def _verdicts(self, chats: tuple[Chat, ...]) -> list[Verdict | str]:
        """What the guard says; whatever goes wrong inside it is a failure, for the chats it goes wrong on.

        This is one of the three doors where every exception is caught: a crashed guard must block, not open.
        """
        try:
            answer = self._guard.ask(chats, self.layer.side)  # a tuple: it can not change what it is given
            if not isinstance(answer, list | tuple):
                raise TypeError(f"it answered with a {type(answer).__name__}, not a list of verdicts")
            verdicts: list[Any] = list(answer)
            same_number("the guard", len(verdicts), len(chats))
            return [
                Verdict.model_validate(verdict.model_dump())
                if isinstance(verdict, Verdict)
                else f"it answered with a {type(verdict).__name__}, not a Verdict"
                for verdict in verdicts
            ]
        except KeyboardInterrupt:
            if threading.current_thread() is threading.main_thread():
                raise
            return ["KeyboardInterrupt"] * len(chats)
        except BaseException as error:  # noqa: BLE001
            if len(chats) > 1:  # one of them may be what it fails on
                return [said for chat in chats for said in self._verdicts((chat,))]
            return [_said(error)]


def blocker(verdicts: Sequence[LayerVerdict], *, ended: bool = False) -> LayerVerdict | None:
    """The layer that blocks: the first that neither says yes nor escalates.

    The order of verdicts is no < unknown < escalated < yes, and the least decides. Where the layers of a side
    have ``ended``, one of them must have said yes: a text that every layer escalates was read by none.
    """
    for said in verdicts:
        if said.verdict.answer != "yes" and said.status != "escalated":
            return said
    if ended and verdicts and all(said.status == "escalated" for said in verdicts):
        return verdicts[0]
    return None


def _unanswered(why: str) -> Verdict:
    return Verdict(question=QUESTION, answer="unknown", reason=f"the guard failed: {why}")


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001
        return type(error).__name__
