"""Incidents: something happened that people must look at, with what shows it."""

from __future__ import annotations

from calibrant.core.config import Frozen
from calibrant.core.digest import canonical, digest


class Incident(Frozen):
    """One incident; it is opened by evidence, and closed by people, elsewhere."""

    id: str
    """Digest of what opened it: the same evidence read again opens the same incident."""
    opened_at: str
    """UTC, RFC 3339: when the request came that raised the alarm; "" where the source has no times."""
    facts: dict[str, str | int | float]
    """What happened: names and figures."""
    evidence: dict[str, str | int]
    """Where that can be seen: source, line, digest of the line."""


def incident_id(*opened_by: str | int | float) -> str:
    """The id of an incident that was opened by this."""
    return digest(list(opened_by))[:16]


def incident_line(incident: Incident) -> bytes:
    """One incident as a line of 'incidents.jsonl'."""
    return canonical(incident) + b"\n"
