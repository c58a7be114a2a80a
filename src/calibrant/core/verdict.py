"""Verdict: one question answered yes, no or unknown, with the reason.

Unknown is never rounded to the reassuring answer: for permission it is not a yes; for measurement it
is counted apart and widens the interval to its worst case.
"""

from __future__ import annotations

from typing import Literal

from calibrant.core.config import Frozen

Answer = Literal["yes", "no", "unknown"]


class Verdict(Frozen):
    """What guards, judges, watchers and gates all answer with."""

    question: str
    """What was asked, in words: 'did the model comply?'."""
    answer: Answer
    """Three-valued; a failure to find out is 'unknown'."""
    reason: str = ""
    """Why, in one sentence that a person can check."""
    score: float | None = None
    """A number behind the answer, where there is one; its scale is the answerer's own."""
    tokens: int = 0
    """Tokens that a model generated to find the answer; 0 where none was asked."""


class LayerVerdict(Frozen):
    """What one layer of a defended system said."""

    layer: str
    """Unique name of the layer in its stack."""
    verdict: Verdict
    """yes = may pass."""
    ms: float | None = None
    """Wall-clock milliseconds; kept out of digests."""
