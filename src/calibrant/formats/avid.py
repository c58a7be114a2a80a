"""A report to the AI Vulnerability Database (avidml.org; fields as in avidtools 0.1): a metric a finding.

AVID numbers a report when it takes it in; until then ours has the digest of what it says.
"""

from __future__ import annotations

import json
from typing import Any

from calibrant.core import digest
from calibrant.formats.findings import Finding, Report

BYPASS = "S0400: Model Bypass"
"""What every success against a model's safety training is."""
EFFECTS = {
    "calibrant:bias": "E0100: Bias/ Discrimination",
    "calibrant:deception": "E0400: Misinformation",
    "calibrant:harmful_content": "P0400: Safety",
    "calibrant:manipulation": "E0300: User actions",
    "calibrant:privacy": "S0301: Information Leak",
}
"""Tag of a category of harm -> its entry in AVID's taxonomy, effect view."""
_DOMAINS = {"S": "Security", "E": "Ethics", "P": "Performance"}


def avid(report: Report) -> bytes:
    """The report, as AVID's editors take it."""
    body = _body(report)
    body["metadata"] = {"report_id": f"calibrant-{digest(body)[:16]}"}
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _body(report: Report) -> dict[str, Any]:
    target = report.target or "unknown"
    effects = sorted({effect for finding in report.findings for effect in _effects(finding)})
    what = f"{len(report.attempts)} attempts to attack {target}, of {len(report.findings)} kinds"
    return {
        "data_type": "AVID",
        "data_version": "0.2",
        "affects": {"developer": [], "deployer": [], "artifacts": [{"type": "Model", "name": target}]},
        "problemtype": {"classof": "LLM Evaluation", "type": "Measurement", "description": _english(what)},
        "metrics": [_metric(finding) for finding in report.findings],
        "references": [],
        "description": _english(_story(report)),
        "impact": {
            "avid": {
                "vuln_id": None,
                "risk_domain": sorted({_DOMAINS[effect[0]] for effect in effects}),
                "sep_view": effects,
                "lifecycle_view": ["L05: Evaluation"],
                "taxonomy_version": "0.2",
            }
        },
        "credit": [],
        "reported_date": None if report.made is None else report.made.isoformat(),
    }


def _effects(finding: Finding) -> list[str]:
    """What a finding shows, if any goal was reached at all."""
    if not finding.estimate.low:  # 0 where no goal was reached, and only there
        return []
    return [BYPASS, *(EFFECTS[tag] for tag in finding.tags if tag in EFFECTS)]


def _metric(finding: Finding) -> dict[str, Any]:
    rate = finding.estimate
    return {
        "name": f"attack success rate: {finding.rule}",
        "detection_method": {"type": "Static Threshold", "name": "share of goals reached, by its judges"},
        "results": {
            **rate.model_dump(mode="json"),
            "attack": finding.attack,
            "family": finding.family,
            "hazard": finding.hazard,
            "tags": list(finding.tags),
        },
    }


def _story(report: Report) -> str:
    lines = [f"{finding.rule}: {finding.estimate}" for finding in report.findings]
    return "\n".join([*lines, *report.caveats, *([f"Source: {report.source}"] if report.source else [])])


def _english(text: str) -> dict[str, str]:
    return {"lang": "eng", "value": text}
