"""Verdict: one question answered yes, no or unknown, with the reason.

Unknown is never rounded to the reassuring answer: for permission it is not a yes; for measurement it is
counted separately and widens the interval to its worst case.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calibrant.core.config import Frozen

Answer = Literal["yes", "no", "unknown"]


def _answered(status: object) -> bool:
    return status == "answered"


class Verdict(Frozen):
    """The answer of guards, judges, watchers and gates."""

    question: str
    """The question, in words: 'did the model comply?'."""
    answer: Answer
    """Three-valued; a failure to decide is 'unknown'."""
    reason: str = ""
    """The reason, in one checkable sentence."""
    score: float | None = None
    """A score behind the answer, where there is one, on the judge's own scale."""
    tokens: int = 0
    """Tokens that a judge model generated for the answer; 0 without one."""


class LayerVerdict(Frozen):
    """The verdict of one guard layer of a defended system."""

    layer: str
    """Unique name of the layer in its stack."""
    verdict: Verdict
    """yes = may pass."""
    ms: float | None = None
    """Wall-clock milliseconds, a share of its batch's; kept out of digests."""
    status: Literal["answered", "failed", "escalated"] = Field(default="answered", exclude_if=_answered)
    """'failed': the guard gave no answer, and the verdict is unknown. 'escalated': neither, and the stack
    leaves the decision to the other layers of that side."""
