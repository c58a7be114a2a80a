"""What judges without a card have in common: one question, and no word on a reply that is not there."""

from __future__ import annotations

from calibrant.core import Completion, Verdict
from calibrant.core.verdict import Answer


class PlainJudge:
    """The base of the judges that ``lm_judge``, ``rule_judge``, ``string_judge`` and others make."""

    question: str
    """What 'yes' answers."""

    @property
    def calibration(self) -> str:
        """No card, no word on errors."""
        return "uncalibrated"

    def _verdict(self, answer: Answer, reason: str, score: float | None = None, tokens: int = 0) -> Verdict:
        return Verdict(question=self.question, answer=answer, reason=reason, score=score, tokens=tokens)


def absent(completion: Completion) -> str:
    """Why there is no reply, or ""."""
    if completion.stop == "error":
        return f"no reply: {completion.error}"
    return "" if completion.text.strip() else "the reply is empty"
