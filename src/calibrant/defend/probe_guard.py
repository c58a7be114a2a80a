"""A probe as a guard: a text is blocked where a model that reads it has activations like the positives.

1. It takes no model's word: one forward pass of the model that the probe was fitted to, and one dot product.
   The guarded model may be another one, behind an API say; the reader is local, and checked by digest.
2. A probe of prompts answers on the input side, a probe of replies on the output side; a stack that puts it
   on the other side is refused.
3. The threshold was chosen for a rate of false alarms (``understand.probe``); every verdict says that rate
   as it was measured, with its interval.
4. What cannot be read (too long, no Unicode, no finite states) is 'unknown', which blocks.

In a stack file: ``guard = "record:probe/probe"``, or with the reader named
``guard = {use = "defend.probe_guard", inputs = {model = "hf:...", head = "record:probe/probe"}}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field
from scipy.special import expit

from calibrant.core import (
    Chat,
    Frozen,
    Guard,
    Identity,
    NumericalError,
    OpenLM,
    Side,
    Verdict,
    digest,
)
from calibrant.data.judge_head import JudgeHead
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply
from calibrant.models.monitor import ProbeMonitor, log_odds


class ProbeGuard(Frozen):
    """When the guard abstains."""

    unsure: float = Field(default=0.0, ge=0.0, lt=0.5)
    """'unknown', which blocks, where the probability is closer to the threshold than this."""


def probe_guard(model: OpenLM, head: JudgeHead, config: ProbeGuard = ProbeGuard()) -> Guard:
    """A guard that answers 'no' where ``head`` rings on the activations of ``model``, else 'yes'.

    Raises:
        CapabilityError: the probe was fitted to another model.
    """
    return _Probe(monitor=ProbeMonitor(model, head), config=config)


@dataclass(frozen=True)
class _Probe:
    """The guard that ``probe_guard`` makes."""

    monitor: ProbeMonitor
    config: ProbeGuard

    @property
    def identity(self) -> Identity:
        parts = {"rule": "probe_guard/1", "config": digest(self.config)}
        parts["monitor"] = self.monitor.identity.digest
        return Identity(name=f"probe guard ({self.monitor.head.question})", kind="guard", parts=parts)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The side whose text the probe reads."""
        return ("input",) if self.monitor.head.over == "prompt" else ("output",)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        return [self._verdict(chat, side) for chat in chats]

    def _verdict(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        if side not in self.sides:
            read = "replies" if self.monitor.head.over == "reply" else "prompts"
            reason = f"the probe was fitted to {read}, and reads nothing else"
            return Verdict(question=QUESTION, answer="unknown", reason=reason)
        try:
            found = self._read(chat, side)
        except NumericalError as error:
            found = error.message
        if isinstance(found, str):
            return Verdict(question=QUESTION, answer="unknown", reason=found)
        reason = f"log-odds {found:.3f}, alarm from {self.monitor.threshold:.3f} on{self._rates()}"
        threshold, here = self.monitor.head.threshold, float(expit(found))
        if abs(here - threshold) < self.config.unsure:
            return Verdict(question=QUESTION, answer="unknown", reason=f"too near: {reason}", score=found)
        return Verdict(
            question=QUESTION, answer="no" if here >= threshold else "yes", reason=reason, score=found
        )

    def _read(self, chat: Chat, side: Side) -> float | str:
        """Log-odds; on the input side of the whole chat, a reply that somebody has begun included."""
        monitor = self.monitor
        return log_odds(monitor.model, monitor.head, chat, "") if side == "input" else monitor.read(chat)

    def _rates(self) -> str:
        alarm = self.monitor.head.alarm
        if alarm is None:
            return "; its rate of false alarms is unknown"
        return f"; false alarms on held-out texts {alarm.false_alarm_rate}, asked for {alarm.asked:g}"
