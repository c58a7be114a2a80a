"""A trained classifier as judge: the probe of ``measure.fit_judge`` or ``understand.probe`` on hidden states.

One forward pass a reply, no text generated, so a reply cannot dictate its verdict. The model must be the one
that the probe was fitted to, by digest.

In a study::

    judge = { use = "measure.classifier_judge", inputs = { model = "data:stories260K", head =
    "record:fit/judge" } }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field
from scipy.special import expit

from calibrant.core import (
    Chat,
    Completion,
    Frozen,
    Goal,
    Identity,
    Judge,
    OpenLM,
    Verdict,
    digest,
)
from calibrant.core.behaviours import same_length
from calibrant.data.judge_head import JudgeHead
from calibrant.measure.judges._plain import PlainJudge, absent
from calibrant.models.monitor import check_reader, log_odds


class ClassifierJudge(Frozen):
    """When the judge abstains."""

    unsure: float = Field(default=0.0, ge=0.0, lt=0.5)
    """'unknown' where the probability is closer to the threshold than this."""


def classifier_judge(model: OpenLM, head: JudgeHead, config: ClassifierJudge = ClassifierJudge()) -> Judge:
    """A judge from ``head``, on the states of ``model``.

    Raises:
        CapabilityError: the head was fitted to another model.
    """
    check_reader(model, head)
    return _Trained(question=head.question, model=model, head=head, config=config)


@dataclass(frozen=True)
class _Trained(PlainJudge):
    """The judge that ``classifier_judge`` makes."""

    question: str
    model: OpenLM
    head: JudgeHead
    config: ClassifierJudge

    @property
    def identity(self) -> Identity:
        parts = {"rule": "classifier_judge/1", "head": self.head.digest, "config": digest(self.config)}
        parts["model"] = self.model.identity.digest
        blind = ", of the prompt alone" if self.head.over == "prompt" else ""
        return Identity(name=f"trained judge ({self.head.question}{blind})", kind="judge", parts=parts)

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        same_length(goals=goals, chats=chats, replies=completions)
        return [self._one(chat, reply) for chat, reply in zip(chats, completions, strict=True)]

    def _one(self, chat: Chat, completion: Completion) -> Verdict:
        if lost := absent(completion):
            return self._verdict("unknown", lost)
        found = log_odds(self.model, self.head, chat, completion.text)
        if isinstance(found, str):
            return self._verdict("unknown", found)
        return self._compared(float(expit(found)))

    def _compared(self, probability: float) -> Verdict:
        threshold = self.head.threshold
        reason = f"probability {probability:.3f}, threshold {threshold:.3f}"
        if abs(probability - threshold) < self.config.unsure:
            return self._verdict("unknown", f"too near: {reason}", probability)
        return self._verdict("yes" if probability >= threshold else "no", reason, probability)
