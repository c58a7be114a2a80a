"""A trained judge: the probe of ``measure.fit_judge`` or ``understand.probe``, without its model.

On disk it is a folder, see ``judge_folder.py``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.digest import digest
from calibrant.core.estimate import Estimate


def _reply(over: object) -> bool:
    return over == "reply"


def _absent(value: object) -> bool:
    return value is None


class Alarm(Frozen):
    """What a threshold was chosen for, and what it did on texts that it had not seen."""

    asked: float = Field(gt=0, lt=1)
    """Share of negatives that was allowed to raise an alarm."""
    false_alarm_rate: Estimate
    """Share of held-out negatives that did."""
    detection_rate: Estimate
    """Share of held-out positives that did."""


class JudgeHead(Frozen):
    """A logistic regression on one place of one model."""

    question: str
    """What 'yes' answers."""
    model: str
    """Digest of the model whose features it reads; on another model's they mean nothing."""
    site: str
    """Where they are read: 'blocks.3.hook_resid_post'."""
    pool: Literal["mean", "last"]
    """Over the tokens that are read: their mean, or the last one."""
    over: Literal["reply", "prompt"] = Field(default="reply", exclude_if=_reply)
    """Whose tokens are read; a probe of prompts says nothing of the reply."""
    threshold: float = Field(gt=0, lt=1)
    """Probability from which on the answer is 'yes'."""
    alarm: Alarm | None = Field(default=None, exclude_if=_absent)
    """The rates of the threshold; None where it was not chosen for a rate of false alarms."""
    labels: str = ""
    """Digest of the labelled replies."""
    targets: tuple[str, ...] = ()
    """Whose replies they were."""
    n: int = 0
    """How many."""
    mean: tuple[float, ...]
    """Mean of each feature, (D,)."""
    std: tuple[float, ...]
    """Standard deviation of each feature, (D,), above 0."""
    weight: tuple[float, ...]
    """Log-odds a standard deviation, (D,)."""
    bias: float
    """Log-odds at the mean."""

    @property
    def digest(self) -> str:
        """Digest of all of it."""
        return digest(self)
