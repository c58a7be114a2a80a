"""SARIF 2.1.0 (OASIS), as code-scanning dashboards read it: a rule an attack and hazard, a result a goal
reached.

The level of a rule follows the *lower* bound of its success rate, so that one lucky hit does not read like
an open door: ``error`` from 0.10, ``warning`` from 0.01, else ``note``; ``warning`` where the rate is
unknown. Goals that nobody could judge, or that a cap cut off, are results of the kind ``open``. Goals that
held have no result; the rule says how many were tried. The line of a place is that of the attempt in the
same report's JSON lines.
"""

from __future__ import annotations

import json
from typing import Any

from calibrant import __version__
from calibrant.core import Attempt, Estimate
from calibrant.formats.findings import Finding, Report, by_goal, fingerprint, together, why_open

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = ((0.10, "error"), (0.01, "warning"))
"""Lower bound of the success rate from which on a rule has this level; below all of them 'note'."""
ATTEMPTS = "attempts.jsonl"
"""The artefact that places are in: what ``calibrant export --to jsonl`` writes of the same source."""
_SHOWN = 10


def sarif(report: Report) -> bytes:
    """The log: one run with all rules and results."""
    lines = {attempt.id: line for line, attempt in enumerate(report.attempts, start=1)}
    results = []
    for index, finding in enumerate(report.findings):
        for goal, attempts in by_goal(report.of(finding)).items():
            outcome = together(attempts)
            if outcome != "failure":
                about = {"ruleId": finding.rule, "ruleIndex": index}
                results.append(about | _result(finding, goal, attempts, lines))
    run = {
        "tool": {"driver": _driver(report)},
        "results": results,
        "artifacts": [{"location": {"uri": ATTEMPTS}, "description": {"text": report.source or "attempts"}}],
        "columnKind": "unicodeCodePoints",
        "properties": {"target": report.target, "revealed": report.reveal, "caveats": list(report.caveats)},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return (json.dumps(log, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def level(estimate: Estimate) -> str:
    """Level of a rule by the lower bound of its rate."""
    if estimate.low is None:
        return "warning"
    return next((name for bound, name in LEVELS if estimate.low >= bound), "note")


def _driver(report: Report) -> dict[str, Any]:
    return {
        "name": "calibrant",
        "semanticVersion": __version__,
        "rules": [_rule(finding) for finding in report.findings],
    }


def _rule(finding: Finding) -> dict[str, Any]:
    rate = finding.estimate
    return {
        "id": finding.rule,
        "name": f"{finding.attack} reaches {finding.hazard}",
        "shortDescription": {"text": _plain(f"{finding.attack} on {finding.hazard}")},
        "fullDescription": {"text": f"Share of goals reached by any attempt: {rate}; {rate.n} goals tried"},
        "defaultConfiguration": {"level": level(rate)},
        "properties": {
            "tags": ["security", *finding.tags],
            "family": finding.family,
            "attack_success_rate": rate.model_dump(mode="json"),
        },
    }


def _result(finding: Finding, goal: str, attempts: list[Attempt], lines: dict[str, int]) -> dict[str, Any]:
    """One goal under one rule: reached (a failure in SARIF's words), or open."""
    reached = together(attempts) == "success"
    if reached:
        shown = [attempt for attempt in attempts if attempt.outcome == "success"]
        message = f"reached by {len(shown)} of {len(attempts)} attempts"
    else:
        shown = [attempt for attempt in attempts if attempt.outcome == "undetermined" or attempt.cut]
        message = f"open: {why_open(attempts)}"
    return {
        "kind": "fail" if reached else "open",
        "level": level(finding.estimate) if reached else "none",
        "message": {"text": _plain(f"Goal {goal} ({finding.attack}): {message}")},
        "occurrenceCount": len(shown),
        "partialFingerprints": {"goal/v1": fingerprint(goal)},
        "locations": [_place(shown[0], goal, lines)],
        "relatedLocations": [_place(one, goal, lines) for one in shown[1:_SHOWN]],
        "properties": {
            "attempts": [one.id for one in shown[:_SHOWN]],
            "replies": [one.completion.text for one in shown[:_SHOWN]],
        },
    }


def _plain(text: str) -> str:
    """``text`` escaped: SARIF reads no placeholder (3.11.5) and no link (3.11.6) in it."""
    return text.replace("{", "{{").replace("}", "}}").replace("](", "] (")


def _place(attempt: Attempt, goal: str, lines: dict[str, int]) -> dict[str, Any]:
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": ATTEMPTS, "index": 0},
            "region": {"startLine": lines[attempt.id]},
        },
        "logicalLocations": [{"fullyQualifiedName": f"{attempt.attack}/{goal}", "kind": "goal"}],
    }
