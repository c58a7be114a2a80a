"""Openers (contract C1): from a reference to an object, with its digest known before anything is loaded.

``Openers.open(reference, wanted)`` takes the row of ``schemes.py`` that gives the kind of thing wanted (a
model, rows, a judge, ...). Opening is in two steps so that a finished job can be recognised by its input
digests without loading weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibrant.app.references import schemes
from calibrant.app.references.opened import Opened
from calibrant.app.references.scheme import too_deep
from calibrant.app.references.tables import part
from calibrant.core import Entry
from calibrant.ledger import Ledger


@dataclass(frozen=True)
class Openers:
    """Where references are resolved: a ledger, a study's [given] table and its finished jobs."""

    ledger: Ledger
    given: Mapping[str, Any] = field(default_factory=dict)
    jobs: dict[tuple[str, int | None], Entry] = field(default_factory=dict)
    """(job id, seed) -> entry; seed None is the job's first seed."""
    base: Path = field(default_factory=Path.cwd)
    """Folder that relative paths start from."""
    allow_python: bool = False
    seed: int = 0
    """Seed of the job whose inputs are opened: a reference to a seeded job means this seed's run."""

    def at(self, seed: int) -> Openers:
        """The same, for a job with this seed."""
        return replace(self, seed=seed)

    def open(self, reference: Any, wanted: Any) -> Opened:
        """Find what ``reference`` names as a ``wanted``.

        Raises:
            InputError: it is not there or cannot be read.
            ConfigError: it is no reference of a kind that gives a ``wanted``.
        """
        try:
            row, parsed = schemes.read(reference, wanted, self.base, self.given)
            return replace(part(row.open(parsed, self), parsed), reference=parsed.written)
        except RecursionError:
            raise too_deep(reference) from None
