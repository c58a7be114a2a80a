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

import numpy as np
from pydantic import Field
from scipy.special import expit

from calibrant.core import (
    CapabilityError,
    Chat,
    Completion,
    Frozen,
    Goal,
    Identity,
    InputError,
    Judge,
    OpenLM,
    Verdict,
    digest,
)
from calibrant.core.behaviours import same_length
from calibrant.data.judge_head import JudgeHead
from calibrant.maths.logistic import Floats
from calibrant.measure.judges._plain import PlainJudge, absent
from calibrant.models.pooled import features


class ClassifierJudge(Frozen):
    """When the judge abstains."""

    unsure: float = Field(default=0.0, ge=0.0, lt=0.5)
    """'unknown' where the probability is closer to the threshold than this."""


def classifier_judge(model: OpenLM, head: JudgeHead, config: ClassifierJudge = ClassifierJudge()) -> Judge:
    """A judge from ``head``, on the states of ``model``.

    Raises:
        CapabilityError: the head was fitted to another model.
    """
    if model.identity.digest != head.model:
        raise CapabilityError(
            f"the trained judge reads the states of another model than '{model.identity.name}' "
            f"({head.model[:12]}, not {model.identity.digest[:12]})",
            hint="give the model that measure.fit_judge was given, or fit the judge again on this one",
        )
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
        return Identity(name=f"trained judge ({self.head.question})", kind="judge", parts=parts)

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        same_length(goals=goals, chats=chats, replies=completions)
        return [self._one(chat, reply) for chat, reply in zip(chats, completions, strict=True)]

    def _one(self, chat: Chat, completion: Completion) -> Verdict:
        """One at a time: an odd chat then costs its own verdict only, and a verdict no rounding of a
        batch."""
        if lost := absent(completion):
            return self._verdict("unknown", lost)
        try:
            completion.text.encode()  # half of a surrogate pair is nothing that a tokenizer takes
        except UnicodeEncodeError:
            return self._verdict("unknown", "the reply is not Unicode text")
        try:
            replies = [completion.text] if self.head.over == "reply" else None
            row = features(self.model, [chat], replies, self.head.site, self.head.pool)[0]
        except InputError as error:
            return self._verdict("unknown", f"the model cannot read it: {error.message}")
        if row is None:
            longest = self.model.max_length
            return self._verdict("unknown", f"prompt and reply exceed the {longest} tokens of the model")
        if len(row) != len(self.head.weight):
            where = self.head.site
            return self._verdict("unknown", f"the states at '{where}' have another width than the judge's")
        return self._compared(self._probability(row))

    def _probability(self, row: Floats) -> float:
        head = self.head
        scaled = (row - np.asarray(head.mean)) / np.asarray(head.std)
        return float(expit(scaled @ np.asarray(head.weight) + head.bias))

    def _compared(self, probability: float) -> Verdict:
        threshold = self.head.threshold
        reason = f"probability {probability:.3f}, threshold {threshold:.3f}"
        if abs(probability - threshold) < self.config.unsure:
            return self._verdict("unknown", f"too near: {reason}", probability)
        return self._verdict("yes" if probability >= threshold else "no", reason, probability)
