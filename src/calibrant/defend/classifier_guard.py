"""A trained classifier of texts as a guard: see ``train_classifier``.

1. One forward pass of a small reader, or none at all with n-grams, and one dot product a chunk. It takes no
   model's word, and it cannot be talked round, though whoever has it can search for texts that it misses.
2. A conversation is read as a whole and message by message, and nothing is truncated: a long text is read in
   overlapping chunks, and the highest score counts.
3. A classifier of prompts answers on the input side, one of replies or exchanges on the output side. One of
   exchanges was trained on beginnings of replies (``partial``): in a stack, ``every = 40`` asks it about the
   reply so far while that is streamed.
4. What cannot be read (nothing visible, a number that is not finite) is 'unknown', which blocks. A guard that
   does not score a fixed text as it did when it was trained answers nothing.

In a stack file: ``guard = "record:JOB/classifier"``, or
``guard = {use = "defend.classifier_guard", inputs = {classifier = "record:JOB/classifier"}}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import Field
from scipy.special import expit

from calibrant.core import (
    CapabilityError,
    Chat,
    Frozen,
    Guard,
    Identity,
    InputError,
    NumericalError,
    OpenLM,
    Side,
    Verdict,
    digest,
)
from calibrant.data.text_classifier import CHECK, TextClassifier
from calibrant.defend._pieces import pieces
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply
from calibrant.defend._vectors import Vectors, log_odds, reader_of
from calibrant.models.sentence import SentenceEncoder

_DRIFT = 0.01
"""How far the score of the check text may be off, relative: processors and libraries round differently."""


class ClassifierGuard(Frozen):
    """From which score on it blocks, and when it abstains."""

    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Probability from which on a text is blocked. None: the one that was chosen for the classifier's rate of
    false alarms; with another, its rates are unknown."""
    unsure: float = Field(default=0.0, ge=0.0, lt=0.5)
    """'unknown', which blocks, where the probability is closer to the threshold than this."""


def classifier_guard(
    classifier: TextClassifier,
    model: OpenLM | None = None,
    encoder: SentenceEncoder | None = None,
    config: ClassifierGuard = ClassifierGuard(),
) -> Guard:
    """A guard that answers 'no' where ``classifier`` rings, else 'yes'.

    ``model`` or ``encoder``: what the classifier was trained on; not read by one on n-grams.

    Raises:
        InputError: the classifier needs a model or an encoder, and none is given.
        CapabilityError: it was trained on another one.
    """
    return _Classifier(classifier, reader_of(classifier.card, model, encoder), config)


@dataclass(frozen=True)
class _Classifier:
    """The guard that ``classifier_guard`` makes."""

    classifier: TextClassifier
    vectors: Vectors
    config: ClassifierGuard

    @property
    def identity(self) -> Identity:
        parts = {"rule": "classifier_guard/1", "config": digest(self.config)}
        parts |= {"classifier": self.classifier.digest, "reader": self.vectors.digest}
        return Identity(name=f"classifier ({self.classifier.card.question})", kind="guard", parts=parts)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The side whose text the classifier reads."""
        return ("input",) if self.classifier.card.reading.over == "prompt" else ("output",)

    @property
    def partial(self) -> bool:
        """Whether it was trained on replies that are not finished."""
        return self.classifier.card.reading.over == "exchange"

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        if chats:
            self._check()
        return [self._verdict(chat, side) for chat in chats]

    def _verdict(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        if side not in self.sides:
            read = self.classifier.card.reading.over
            return _unknown(f"the classifier reads the {read} that it was trained on, and nothing else")
        try:
            found = pieces(chat, self.classifier.card.reading, self.vectors.fits)
            if not found:
                return _unknown("there is no visible character to read")
            scores = log_odds(self.classifier, self.vectors.rows([piece.text for piece in found]))
        except (InputError, NumericalError) as error:
            return _unknown(error.message)
        if not np.isfinite(scores).all():
            return _unknown(f"the classifier gives {scores[~np.isfinite(scores)][0]}, which is no log-odds")
        return self._judged(float(scores.max()), found[int(scores.argmax())].where)

    def _judged(self, score: float, where: str) -> Verdict:
        card = self.classifier.card
        cut = card.threshold if self.config.threshold is None else self.config.threshold
        here = float(expit(score))
        reason = f"probability {here:.3f} at {where}; alarm from {cut:.3f} on{self._rates()}"
        if abs(here - cut) < self.config.unsure:
            return Verdict(question=QUESTION, answer="unknown", reason=f"too near: {reason}", score=score)
        return Verdict(question=QUESTION, answer="no" if here >= cut else "yes", reason=reason, score=score)

    def _rates(self) -> str:
        if self.config.threshold is not None:
            return "; set by hand, so its rate of false alarms is unknown"
        alarm = self.classifier.card.alarm
        return f"; false alarms on held-out texts {alarm.false_alarm_rate}, asked for {alarm.asked:g}"

    def _check(self) -> None:
        """Raise CapabilityError where the reader scores the check text otherwise than in training."""
        found, stored = self._checked, self.classifier.card.check
        if not abs(found - stored) <= _DRIFT * (1 + abs(stored)):
            raise CapabilityError(
                f"the classifier scores its check text {found:.4f}, and scored it {stored:.4f} in training",
                hint="the libraries read otherwise than they did: train it again here",
            )

    @cached_property
    def _checked(self) -> float:
        return float(log_odds(self.classifier, self.vectors.rows([CHECK]))[0])


def _unknown(reason: str) -> Verdict:
    return Verdict(question=QUESTION, answer="unknown", reason=reason)
