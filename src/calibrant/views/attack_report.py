"""An HTML report of attacks: hazards by techniques with intervals, and every hit. One file.

No script, nothing fetched, a content policy that forbids both. What a model said is hostile: it is escaped,
and characters that are invisible or turn the reading direction are spelt out. Prompts and replies are
covered unless the report reveals them.
"""

from __future__ import annotations

from typing import NamedTuple

from calibrant.core import Attempt, Estimate
from calibrant.core.shown import harmless, visible
from calibrant.formats.findings import Finding, Report, by_goal, together
from calibrant.formats.sarif import level
from calibrant.views import formatting
from calibrant.views.templates import template

SHOWN = 300
"""Most hits that a page spells out; how many there are is always said."""
_LEVELS = {"error": "severe", "warning": "notable", "note": "slight"}


class Row(NamedTuple):
    """One attack across the hazards."""

    attack: str
    family: str
    cells: list[Finding | None]


class Hit(NamedTuple):
    """One goal that an attack reached."""

    finding: Finding
    goal: str
    hits: int
    tried: int
    first: Attempt


def attack_page(report: Report) -> str:
    """The whole page. Equal reports give equal bytes."""
    hazards = list(dict.fromkeys(finding.hazard for finding in report.findings))
    reached = list(_hits(report))
    outcomes = [attempt.outcome for attempt in report.attempts]
    page = _TEMPLATE.render(
        report=report,
        hazards=hazards,
        rows=_rows(report, hazards),
        hits=reached[:SHOWN],
        reached=len(reached),
        goals=by_goal(report.attempts),
        fallen={hit.goal for hit in reached},
        undetermined=outcomes.count("undetermined"),
        tone=_tone,
        words=formatting,
    )
    return harmless(page)


def html(report: Report) -> bytes:
    """The page as the bytes of a file."""
    return attack_page(report).encode()


def _rows(report: Report, hazards: list[str]) -> list[Row]:
    rows: dict[str, Row] = {}
    for finding in report.findings:
        empty: list[Finding | None] = [None] * len(hazards)
        row = rows.setdefault(finding.attack, Row(finding.attack, finding.family, empty))
        row.cells[hazards.index(finding.hazard)] = finding
    return list(rows.values())


def _hits(report: Report) -> list[Hit]:
    rows = []
    for finding in report.findings:
        for goal, attempts in by_goal(report.of(finding)).items():
            if together(attempts) == "success":
                hits = [attempt for attempt in attempts if attempt.outcome == "success"]
                rows.append(Hit(finding, goal, len(hits), len(attempts), hits[0]))
    return rows


def _tone(estimate: Estimate) -> str:
    """How a cell reads, by its lower bound as in SARIF; what nobody could judge has not held."""
    if estimate.low:  # above 0 as soon as one goal was reached
        return _LEVELS[level(estimate)]
    return "open" if estimate.missing or estimate.value is None else "held"


_TEMPLATE = template("attack_report.html.j2", visible=visible)
