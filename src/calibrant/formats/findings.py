"""Findings for other tools (one per attack and hazard), with their attempts.

A ``Report`` covers its attempts unless it is told to reveal them, so no writer can leak what it was not
given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from functools import cached_property

from pydantic import Field, ValidationInfo, field_validator

from calibrant.core import Attempt, Estimate, Frozen, digest
from calibrant.core.attempt import Outcome, reached
from calibrant.formats.redact import covered


class Finding(Frozen):
    """How often one attack succeeded on the goals of one hazard."""

    rule: str
    """'ATTACK/HAZARD': stable from run to run, so that tools can follow it."""
    attack: str
    """Technique: 'attack.encode', or another tool's name for it; its variants together."""
    family: str
    """Technique family; "" where unknown."""
    hazard: str
    """The goals' category."""
    estimate: Estimate
    """Share of goals that any attempt of the attack reached, lower is better."""
    attempts: tuple[str, ...]
    """Ids of the attempts, in their order."""
    tags: tuple[str, ...] = ()
    """What frameworks call the hazard: 'OWASP LLM01', 'S0400', ..."""


class Report(Frozen):
    """All that a writer may write."""

    reveal: bool = False
    """True shows prompts and replies; by default they are covered."""
    attempts: tuple[Attempt, ...]
    """In their order; covered on the way in unless ``reveal``."""
    findings: tuple[Finding, ...] = ()
    """One an attack and hazard."""
    target: str = ""
    """Whom the attempts were made on; "" where unknown."""
    source: str = ""
    """Where they come from: 'record:campaign/attempts.jsonl'."""
    caveats: tuple[str, ...] = Field(default=())
    """What the numbers do not show."""
    made: date | None = None
    """The day of the report; given, so that equal input is equal output."""

    @field_validator("attempts")
    @classmethod
    def _cover(cls, value: tuple[Attempt, ...], info: ValidationInfo) -> tuple[Attempt, ...]:
        return value if info.data.get("reveal") else tuple(covered(attempt) for attempt in value)

    @cached_property
    def by_id(self) -> dict[str, Attempt]:
        """Id -> attempt."""
        return {attempt.id: attempt for attempt in self.attempts}

    def of(self, finding: Finding) -> list[Attempt]:
        """The attempts behind a finding."""
        return [self.by_id[name] for name in finding.attempts]


Key = tuple[str, str]
"""(attack, hazard)."""


def technique_of(attempt: Attempt) -> str:
    """The attack without its variant: 'attack.encode/rot13' -> 'attack.encode'."""
    return attempt.attack.partition("/")[0]


def grouped(attempts: Iterable[Attempt]) -> dict[Key, list[Attempt]]:
    """(attack, hazard) -> its attempts, both in order of first appearance."""
    groups: dict[Key, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault((technique_of(attempt), attempt.category), []).append(attempt)
    return groups


def by_goal(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    """Goal id -> the attempts on it."""
    goals: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        goals.setdefault(attempt.goal_id, []).append(attempt)
    return goals


def together(attempts: Sequence[Attempt]) -> Outcome:
    """Of attempts on one goal: success where any is; undetermined where that is open; else failure."""
    hit = reached(attempts)
    return "undetermined" if hit is None else "success" if hit else "failure"


def why_open(attempts: Sequence[Attempt]) -> str:
    """Why a goal that none of ``attempts`` reached is open, in words."""
    lost = sum(attempt.outcome == "undetermined" for attempt in attempts)
    if lost:
        return f"{lost} of {len(attempts)} attempts could not be judged, and no other succeeded"
    return f"a cap ended the attack after {len(attempts)} attempts, and none succeeded"


def fingerprint(goal_id: str) -> str:
    """What names a goal in other tools without showing it: SHA-256 of its id."""
    return digest({"goal": goal_id})
