"""Counts of one attack on one goal: enough for every rate, without the attempts.

Pure: attempts in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from calibrant.core import Attempt
from calibrant.core.attempt import HIT, any_of


@dataclass
class Counts:
    """Counts over the attempts of one attack on one goal, in one repetition."""

    family: str
    category: str = ""
    attempts: int = 0
    hits: int = 0
    undetermined: int = 0
    blocked: int = 0
    broken: int = 0
    """Replies that were errors."""
    queries: int = 0
    """To the target, log-prob queries included."""
    first: int | None = None
    """Queries up to the first success, that one included."""
    first_open: int | None = None
    """Queries up to the first undetermined attempt."""
    variants: dict[str, bool | None] = field(default_factory=dict)
    """Variant of the attack -> whether it reached the goal; None where its attempts leave that open."""
    ended: bool = False
    """The attack ended by itself."""
    cut: bool = False
    """A cap ended the campaign before that."""
    last: tuple[int, int] = (-1, -1)
    """Number of the last attempt, and its place in the store."""

    def add(self, attempt: Attempt, place: int = -1) -> None:
        """Count one more attempt, in order of sending; ``place`` is where it is stored."""
        self.last = max(self.last, (attempt.number, place))
        self.category = attempt.category
        self.attempts += 1
        self.queries += attempt.cost.queries
        self.undetermined += attempt.outcome == "undetermined"
        self.blocked += attempt.completion.stop == "blocked"
        self.broken += attempt.completion.stop == "error"
        variant, hit = attempt.attack.partition("/")[2], HIT[attempt.outcome]
        self.variants[variant] = any_of([self.variants.get(variant, False), hit])
        if hit is None:
            self.first_open = self.first_open or self.queries
        if hit:
            self.hits += 1
            self.first = self.first or self.queries

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None where a cap or an undetermined attempt leaves it open."""
        if self.hits:
            return True
        return None if self.cut or self.undetermined or not self.attempts else False
