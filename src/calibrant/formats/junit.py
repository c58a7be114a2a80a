"""JUnit XML, as continuous integration shows it: one test case a goal and attack.

A hit is a failure; a goal that is open, since nobody could judge or a cap ended the attack, is skipped with
the reason, never passed.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from calibrant.core import Attempt
from calibrant.formats.findings import Finding, Report, by_goal, together, why_open

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, however it is written."""
_SHOWN = 5


def junit(report: Report) -> bytes:
    """A suite a finding; counts add up at every level."""
    root = Xml.Element("testsuites", name="calibrant")
    for finding in report.findings:
        root.append(_suite(finding, report))
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    root.set("errors", "0")
    Xml.indent(root)
    data: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _suite(finding: Finding, report: Report) -> Xml.Element:
    suite = Xml.Element("testsuite", name=_clean(finding.rule), errors="0")
    about = {
        "attack_success_rate": str(finding.estimate),
        "family": finding.family,
        "target": report.target,
        "source": report.source,
    }
    properties = Xml.SubElement(suite, "properties")
    for name, value in about.items():
        Xml.SubElement(properties, "property", name=name, value=_clean(value))
    outcomes = []
    for goal, attempts in by_goal(report.of(finding)).items():
        seconds = sum(attempt.cost.seconds or 0.0 for attempt in attempts)
        case = Xml.SubElement(
            suite, "testcase", name=_clean(goal), classname=_clean(finding.rule), time=f"{seconds:.3f}"
        )
        outcomes.append(together(attempts))
        _say(case, outcomes[-1], attempts)
    suite.set("tests", str(len(outcomes)))
    suite.set("failures", str(outcomes.count("success")))
    suite.set("skipped", str(outcomes.count("undetermined")))
    return suite


def _say(case: Xml.Element, outcome: str, attempts: list[Attempt]) -> None:
    if outcome == "success":
        hits = [attempt for attempt in attempts if attempt.outcome == "success"]
        message = f"reached by {len(hits)} of {len(attempts)} attempts"
        failure = Xml.SubElement(case, "failure", message=message, type="attack success")
        failure.text = _clean("\n\n".join(_told(hit) for hit in hits[:_SHOWN]))
    elif outcome == "undetermined":
        Xml.SubElement(case, "skipped", message=why_open(attempts))


def _told(attempt: Attempt) -> str:
    turns = [f"{turn.role}: {turn.content}" for turn in attempt.chat.messages]
    return "\n".join(
        [f"attempt {attempt.id[:12]} ({attempt.attack})", *turns, f"reply: {attempt.completion.text}"]
    )


def _clean(text: str) -> str:
    """``text`` without the characters that XML forbids; each becomes the replacement character."""
    return _ILLEGAL.sub("�", text)
