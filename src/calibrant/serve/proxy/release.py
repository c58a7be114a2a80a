"""A reply leaves as it is generated, and no character before every output layer has cleared it.

A layer clears a reply in one of three ways:

1. The guard has ``held(reply)``: it knows how far a later text can still reach back (``pattern_guard``). It
   is asked as text comes, and its 'no' holds the text: 'burn' at the end may become 'burning'. It blocks when
   the 'no' hangs on what can change no more.
2. The layer has ``every = k``: the guard is asked about the reply so far after k more tokens, and clears
   what it has read. A 'no' blocks. (A classifier trained on beginnings of replies.)
3. Else the whole reply is read first.

In the end every layer reads the whole reply, as it would without streaming: the verdict is the same, and only
the part that had been cleared has left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from calibrant.core import Chat, LayerVerdict
from calibrant.defend.defended import Caller, blocker

_PACE = 8
"""Of what is held, the part that must come anew before the guard is asked again: time stays linear."""


class Out(NamedTuple):
    """What may leave now."""

    reasoning: str = ""
    text: str = ""


class Release:
    """The output side of one reply (of one choice, where there are several)."""

    def __init__(
        self, callers: Sequence[Caller], chat: Chat, left: Callable[[], float | None] = lambda: None
    ) -> None:
        """``callers``: the output layers, in order. ``left``: seconds that the request has left."""
        self._layers = [_Clearing(caller) for caller in callers]
        self._chat, self._left = chat, left
        self._reasoning, self._text = "", ""
        self._sent = Out()
        self._shuffled = False
        self.blocked: LayerVerdict | None = None
        """The layer that blocks the reply; what has left stays, and nothing follows."""
        self.read = ""
        """What the layers have read last."""
        self.verdicts: tuple[LayerVerdict, ...] = ()
        """The last verdict of each layer."""

    @property
    def released(self) -> int:
        """Characters that have left."""
        return len(self._sent.reasoning) + len(self._sent.text)

    @property
    def held(self) -> int:
        """Characters that have come and not left."""
        return len(self._reasoning) + len(self._text) - self.released

    @property
    def whole(self) -> str:
        """The reply so far, as output layers read it."""
        return "\n\n".join(filter(None, (self._reasoning, self._text)))

    def take(self, text: str = "", reasoning: str = "") -> None:
        """Take what was generated, to be read at the end."""
        self._reasoning, self._text = self._reasoning + reasoning, self._text + text

    def push(self, text: str = "", reasoning: str = "", tokens: int = 1) -> Out:
        """Take what was generated next; what may leave now."""
        if self.blocked is not None:
            return Out()
        # Reasoning that comes after the reply has begun moves what was read: the rest waits for the end.
        self._shuffled |= bool(reasoning and self._text)
        self.take(text, reasoning)
        if self._shuffled or not self._layers:
            return Out() if self._layers else self._leave(len(self.whole))
        cleared = []
        self.read = self.whole
        for layer in self._layers:
            place = layer.cleared(self._chat, self.whole, tokens, self._left())
            if layer.blocks:
                return self._stop()
            if place is not None:
                cleared.append(place)
        return self._leave(min(cleared)) if cleared else Out()

    def finish(self, more: Sequence[str] = ()) -> Out:
        """The reply has ended: every layer reads all of it, and ``more`` texts that leave with it.

        Returns the rest of the reply, or nothing where a layer blocks.
        """
        if self.blocked is not None:
            return Out()
        self.read = whole = "\n\n".join(filter(None, (self.whole, *more)))
        if whole:
            chat, said = self._chat.then("assistant", whole), []
            for layer in self._layers:
                said += layer.caller.verdicts([chat], self._left())
                if blocker(said):
                    break
            self.verdicts = tuple(said)
            self.blocked = blocker(said, ended=True)
        return Out() if self.blocked is not None else self._leave(len(self.whole))

    def _stop(self) -> Out:
        read = [layer for layer in self._layers if layer.said is not None and layer.read == len(self.whole)]
        self.verdicts = tuple(layer.said for layer in read if layer.said is not None)
        self.blocked = next(layer.said for layer in read if layer.blocks)
        return Out()

    def _leave(self, place: int) -> Out:
        """What of the whole has not left, up to ``place``."""
        between = 2 if self._reasoning and self._text else 0
        reasoning = self._reasoning[: max(place, len(self._sent.reasoning))]
        text = self._text[: max(place - len(self._reasoning) - between, len(self._sent.text))]
        out = Out(reasoning[len(self._sent.reasoning) :], text[len(self._sent.text) :])
        self._sent = Out(reasoning, text)
        return out


class _Clearing:
    """How far one layer has cleared a reply in the making."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.said: LayerVerdict | None = None
        self.blocks = False
        guard: Any = caller.layer.guard
        self._held: Callable[[str], int] | None = getattr(guard, "held", None)
        if getattr(guard, "streams", ""):
            self._held = None
        self._cleared, self._tokens, self._next, self.read = 0, 0, 0, 0

    def cleared(self, chat: Chat, whole: str, tokens: int, left: float | None) -> int | None:
        """How much may leave; None where the layer has escalated and leaves it to others."""
        if self.caller.layer.every is not None:
            self._tokens += tokens
            if self._tokens >= self.caller.layer.every:
                self._tokens = 0
                self._ask(chat, whole, left)
                if self._passes(self.said):
                    self._cleared = len(whole)
        elif self._held is not None:
            self._by_reach(chat, whole, left, self._held)
        return None if self.said is not None and self.said.status == "escalated" else self._cleared

    def _by_reach(self, chat: Chat, whole: str, left: float | None, held: Callable[[str], int]) -> None:
        if len(whole) < self._next:
            return
        # What was cleared is not read again, but for the word that it ends in.
        start = _blank_before(whole, self._cleared)
        said = self.caller.verdicts([chat.then("assistant", whole[start:])], left)[0]
        if said.verdict.answer == "no" and start:
            said = self.caller.verdicts([chat.then("assistant", whole)], left)[0]
        self.said, self.read = said, len(whole)
        if self._passes(said):
            self._cleared = max(self._cleared, held(whole))
        elif said.verdict.answer == "no" and said.status == "answered":
            # It is no for good where it hangs on what can change no more.
            settled = _blank_before(whole, held(whole))
            if settled:
                again = self.caller.verdicts([chat.then("assistant", whole[:settled])], left)[0]
                self.blocks = blocker([again]) is not None
        else:
            self.blocks = said.status != "escalated"
        self._next = len(whole) + max(1, (len(whole) - self._cleared) // _PACE)

    def _ask(self, chat: Chat, whole: str, left: float | None) -> None:
        self.said, self.read = self.caller.verdicts([chat.then("assistant", whole)], left)[0], len(whole)
        self.blocks = blocker([self.said]) is not None

    @staticmethod
    def _passes(said: LayerVerdict | None) -> bool:
        return said is not None and said.verdict.answer == "yes"


def _blank_before(text: str, place: int) -> int:
    """Where the last blank before ``place`` stands; 0 where there is none."""
    return max(text.rfind(" ", 0, place), text.rfind("\n", 0, place), 0)
