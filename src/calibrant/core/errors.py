"""The errors that Calibrant raises on purpose.

Each leaf tells the caller what to do next; the remedy is in ``hint``. Anything that is not a
``CalibrantError`` is a bug: it is recorded as a crash and raised again.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class CalibrantError(Exception):
    """What went wrong (``message``) and what to do about it (``hint``)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class ConfigError(CalibrantError):
    """An invalid study, config or key; ``problems`` lists all of them."""

    def __init__(self, problems: Iterable[str] | str, *, hint: str = "") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class InputError(CalibrantError):
    """A file, reference or row that cannot be read or used."""


class CapabilityError(CalibrantError):
    """A technique needs more access (LM, ScoringLM, OpenLM) or a feature that the object lacks."""


class BudgetError(CalibrantError):
    """A limit on queries, tokens or seconds was reached before the work was done."""


class NumericalError(CalibrantError):
    """A loss, gradient or score became NaN or infinite; names the step and the tensor."""


class EvidenceError(CalibrantError):
    """A digest does not match its bytes, or the order of the ledger is broken."""


_LOOKED_AT, _LONGEST = 1000, 200
"""Names that are compared, and their length: a hint is worth no more."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name closest to ``name``, or ""."""
    names = [one for one in itertools.islice(known, _LOOKED_AT) if len(one) <= _LONGEST]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if len(name) <= _LONGEST else []
    return f" (did you mean '{close[0]}'?)" if close else ""
