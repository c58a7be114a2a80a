"""A judge with its calibration card: the same verdicts, with sensitivity and specificity in every record.

The card counts only where it is of this judge (by digest), of one target, of labels that passed their checks,
and shows that the judge beats chance. Everything else is 'uncalibrated', with the reason: a gate that
requires a calibrated judge then does not accept the record, and rates are not corrected. A gate also requires
that a record of its ledger produced the card.

In a study::

    [job.inputs.judge]
    use = "measure.calibrated_judge"
    config = { target = "my model" }
    inputs = { judge = { use = "measure.string_judge" }, card = "record:card/card.json" }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibrant.core import Chat, Completion, Frozen, Goal, Identity, Judge, JudgeErrors, Verdict
from calibrant.core.digest import digest_bytes
from calibrant.data.cards import JudgeCard, card_bytes
from calibrant.stats.proportion import proportion_interval


class CalibratedJudgeConfig(Frozen):
    """Which part of the card to use."""

    target: str = ""
    """Target (family) whose replies are judged, as the card names it; "" where the card has only one."""


def calibrated_judge(
    judge: Judge, card: JudgeCard, config: CalibratedJudgeConfig = CalibratedJudgeConfig()
) -> Judge:
    """``judge`` with ``card``; it is a ``CalibratedJudge``, whose errors are None while it is
    uncalibrated."""
    return _Calibrated(inner=judge, card=card, target=config.target)


@dataclass(frozen=True)
class _Calibrated:
    """The judge that ``calibrated_judge`` makes."""

    inner: Judge
    card: JudgeCard
    target: str

    @property
    def identity(self) -> Identity:
        inner = self.inner.identity
        card = digest_bytes(card_bytes(self.card))  # as the record that made it has it
        parts = {"judge": inner.digest, "card": card, "target": self.target}
        return Identity(name=f"{inner.name}, with a card", kind="judge", parts=parts)

    @property
    def question(self) -> str:
        return str(getattr(self.inner, "question", ""))

    @property
    def shown(self) -> dict[str, str]:
        """Of the card on the target: labels of each kind, where from, and lower bounds; {} for nothing."""
        if self._problem():
            return {}
        errors = self._counts()
        lows = dict(zip(("sensitivity", "specificity"), _lows(errors), strict=True))
        counted = {"positives": str(errors.positives), "negatives": str(errors.negatives)}
        counted["labels"] = f"'{self.card.source}' ({self.card.labels[:12]})"
        return counted | {name: f"{low:.4f}" for name, low in lows.items()}

    @property
    def calibration(self) -> str:
        problem = self._problem()
        if problem:
            return f"uncalibrated ({problem})"
        errors = self._counts()
        n = errors.positives + errors.negatives
        return f"calibrated: {_in_words(errors)} on {n} replies of '{self._target}'"

    def errors(self, family: str) -> JudgeErrors | None:
        """What the card holds for this family of attacks on the target; None where it holds nothing."""
        return None if self._problem() else self.card.errors(family, self._target)

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        return self.inner.judge(goals, chats, completions)

    def _counts(self) -> JudgeErrors:
        """All families on the target."""
        errors = self.card.errors(target=self._target)
        assert errors is not None  # a target without rows is a problem
        return errors

    @property
    def _target(self) -> str:
        return self.target or (self.card.targets[0] if len(self.card.targets) == 1 else "")

    def _problem(self) -> str:
        """Why the card says nothing here, or ""."""
        card, known = self.card, ", ".join(f"'{name}'" for name in self.card.targets)
        if card.judge != self.inner.identity.digest:
            return f"the card is of another judge, '{card.name}'"
        if card.integrity != "yes":
            return f"its labels are not to be relied on: {card.integrity_reason}"
        if not self.target and len(card.targets) != 1:
            return f"the card speaks of several targets, {known}, and none was named"
        errors = card.errors(target=self._target)
        if errors is None:
            return f"the card speaks of {known}, not of '{self.target}'"
        if not errors.positives or not errors.negatives:
            return "the card holds only replies of one kind"
        if sum(_lows(errors)) <= 1:
            return f"the card does not show that it beats a coin: {_in_words(errors)}"
        return ""


def _right(errors: JudgeErrors) -> tuple[tuple[int, int], tuple[int, int]]:
    """(right, of how many) where the behaviour happened, and where it did not."""
    return (errors.found, errors.positives), (errors.cleared, errors.negatives)


def _lows(errors: JudgeErrors) -> tuple[float, float]:
    """Lower bounds of sensitivity and specificity."""
    found, cleared = _right(errors)
    return proportion_interval(*found)[0], proportion_interval(*cleared)[0]


def _in_words(errors: JudgeErrors) -> str:
    """Sensitivity and specificity in words."""
    parts = []
    for name, (right, n) in zip(("Se", "Sp"), _right(errors), strict=True):
        low, high = proportion_interval(right, n)
        parts.append(f"{name} {right / n:.3f} [{low:.3f}, {high:.3f}]")
    return ", ".join(parts)
