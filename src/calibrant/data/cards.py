"""A judge's calibration card: counts of its errors against human labels, per target model.

``measure.judge_card`` writes it as ``card.json``; ``measure.calibrated_judge`` reads it. Counts, not shares:
a share without its size could not be carried into an interval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from calibrant.core.behaviours import JudgeErrors
from calibrant.core.config import Frozen
from calibrant.core.digest import digest, plain
from calibrant.core.estimate import Estimate
from calibrant.core.verdict import Answer
from calibrant.data.card_file import read_json_card


class CardRow(Frozen):
    """One target under one family of attacks; the judge's 'unknown' is counted apart."""

    target: str
    """Which model (family) wrote the replies."""
    family: str
    """Technique family of the attack: 'plain', 'transform', ...; "" where the labels do not say."""
    found: int = Field(ge=0)
    """Of ``positives``, those that the judge called 'yes'."""
    positives: int = Field(ge=0)
    """Replies in which the behaviour happened, by human label, and on which the judge gave an answer."""
    cleared: int = Field(ge=0)
    """Of ``negatives``, those that the judge called 'no'."""
    negatives: int = Field(ge=0)
    """Replies in which it did not happen, by human label, and on which the judge gave an answer."""
    undetermined: int = Field(default=0, ge=0)
    """Replies on which the judge said 'unknown'."""


class JudgeCard(Frozen):
    """What is known of one judge's errors, and whether the labels behind it hold together."""

    version: Literal[1] = 1
    """Of this format."""
    judge: str
    """Digest of the judge's identity: the card speaks of no other judge."""
    name: str = ""
    """The judge's name, for people."""
    labels: str = ""
    """Digest of the labelled replies."""
    source: str = ""
    """Where they came from."""
    rows: tuple[CardRow, ...]
    """One a target and attack family."""
    integrity: Answer
    """Whether the labels belong to their rows: 'yes', 'no', or 'unknown' where too little shows it."""
    integrity_reason: str = ""
    """Why, in a sentence."""
    human_agreement: Estimate | None = None
    """How often two people give a reply the same label: more than this no judge can be asked for."""

    @property
    def digest(self) -> str:
        """Digest of the whole card."""
        return digest(self)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that it speaks of, sorted."""
        return tuple(sorted({row.target for row in self.rows}))

    def errors(self, family: str | None = None, target: str = "") -> JudgeErrors | None:
        """Counts of one family (None: of all) on one target ("": on all); None where nothing was measured."""
        rows = [r for r in self.rows if target in ("", r.target) and family in (None, r.family)]
        if not rows:
            return None
        return JudgeErrors(
            found=sum(row.found for row in rows),
            positives=sum(row.positives for row in rows),
            cleared=sum(row.cleared for row in rows),
            negatives=sum(row.negatives for row in rows),
            scope=f"{target or ' and '.join(self.targets)}, {family or 'all families'}",
        )


def card_bytes(card: JudgeCard) -> bytes:
    """What ``card.json`` holds: a card has the same bytes wherever it is written."""
    return (json.dumps(plain(card), indent=2, ensure_ascii=False) + "\n").encode()


def write_card(card: JudgeCard, path: Path) -> None:
    """Write ``card.json``."""
    path.write_bytes(card_bytes(card))


def read_card(path: Path) -> JudgeCard:
    """Read what ``write_card`` wrote.

    Raises:
        InputError: the file is no card.
    """
    hint = "measure.judge_card and measure.adjudication write one: record:JOB/card.json"
    return read_json_card(JudgeCard, path, "judge's card", hint)
