"""One self-contained HTML page for a study, to be read by a release board in two minutes.

No script, no external file, a content policy that forbids both; every number links to its record.
The page adds no judgement: the verdict comes from the gate, the limits from the records.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.figure_data import FigureData
from calibrant.core.record import Entry, Record
from calibrant.core.shown import harmless
from calibrant.core.verdict import Answer, Verdict
from calibrant.views import formatting
from calibrant.views.curves import Budget, Curve
from calibrant.views.drawn import Drawn, drawn, drawn_data
from calibrant.views.figures import FigureSpec, stages
from calibrant.views.series import lanes
from calibrant.views.templates import template

FINDINGS = ("supported", "suggestive", "contradicted", "not testable")
"""What can be said of a claim, from the best to the least."""


class RuleView(Frozen):
    """One rule of a gate with what it found; takes the dump of a gate's rule outcome as it is."""

    id: str
    """Name of the rule in the release policy."""
    technique: str = ""
    """Technique whose records are evidence."""
    metric: str = ""
    """Metric that is compared."""
    data: str = ""
    """Reference of the data that the rule asks for; "" = any."""
    op: str = "<="
    """How the bound must stand to the threshold: '<=', '>=', '<', '>'."""
    threshold: float | None = None
    """The limit as the policy states it."""
    line: float | None = None
    """The limit tightened by the policy's margin; None when there is no margin."""
    bound: str = ""
    """Which number is compared: 'high', 'low' or 'value'."""
    value: float | None = None
    """Point estimate; None when there is none."""
    low: float | None = None
    """Lower bound."""
    high: float | None = None
    """Upper bound."""
    n: int | None = None
    """Units asked."""
    answer: Answer = "unknown"
    """yes = the rule holds."""
    reason: str = ""
    """Why, in one sentence."""
    evidence: tuple[str, ...] = ()
    """Digests of the records that were looked at."""
    failed_runs: int = 0
    """Matching runs that did not finish."""
    note: str = ""
    """What the rule protects."""
    judge: str = ""
    """Who judged, in words."""
    read: str = ""
    """What data was read, in words."""
    unpinned: dict[str, Any] = Field(default_factory=dict)
    """What the rule leaves open; only the names are shown."""
    set_aside: int = 0
    """Finished runs that are no evidence: they differ in what the rule pins."""

    @property
    def limit(self) -> float | None:
        """What the bound is compared with."""
        return self.threshold if self.line is None else self.line


class GateView(Frozen):
    """One gate: a release policy asked about one subject with one seed's evidence."""

    job_id: str
    """Name of the gate's job."""
    seed: int
    """Seed of the evidence."""
    subject: str
    """Name of the system to be released."""
    digest: str
    """Its digest."""
    verdict: Verdict
    """yes = every rule holds."""
    rules: tuple[RuleView, ...] = ()
    """In the policy's order."""


class ClaimView(Frozen):
    """One claim about what carries an answer, and what the instruments together say of it."""

    job_id: str
    """Name of the claim's job."""
    seed: int
    """Its seed."""
    digest: str
    """Of the record."""
    says: str
    """The claim in words."""
    finding: str
    """'supported', 'suggestive', 'contradicted' or 'not testable'."""
    reasons: tuple[str, ...] = ()
    """What is missing, or what contradicts."""


class StudyView(Frozen):
    """All that the page shows."""

    name: str
    """The study's name."""
    title: str
    """What the study asks, as a headline."""
    story: str = ""
    """One paragraph from the study."""
    intent: dict[str, Any] | None = None
    """What was asked before the first job; None when nothing was."""
    entries: tuple[Entry, ...] = ()
    """The study's records in the order of the ledger, failed ones included."""
    gates: tuple[GateView, ...] = ()
    """Every gate that ran."""
    figures: tuple[FigureSpec, ...] = ()
    """What the study compares."""
    shown: dict[str, tuple[FigureData, ...]] = Field(default_factory=dict)
    """Record digest -> what it shows of itself, beside its numbers."""
    claims: tuple[ClaimView, ...] = ()
    """Claims that were judged, in the order of the ledger."""
    curves: dict[str, Curve | Budget] = Field(default_factory=dict)
    """Record digest -> the curves that it stored, for figures of the kinds 'goodhart' and 'budget'."""
    verdict: Verdict = Field(
        default=Verdict(question="may it be released?", answer="unknown", reason="no gate ran")
    )
    """The answer for the whole study."""
    about: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What the verdict is about: system, policy, judges and data in words, and what no rule pins."""
    needed: int | None = None
    """How many gates must pass, as declared; None for a study without a gate."""
    ledger: str = ""
    """Where the ledger lies."""
    made_at: str = ""
    """When the page was made, as text; given, so that equal input is equal output."""


class Strip(NamedTuple):
    """A rule's interval against its threshold, in per cent of the strip's width."""

    low: float
    high: float
    value: float | None
    threshold: float
    allowed: tuple[float, float]


class Limit(NamedTuple):
    """One caveat and the first record of each job that states it."""

    text: str
    entries: list[Entry]


def page(study: StudyView) -> str:
    """The whole page. Equal studies give equal bytes."""
    anchors = {formatting.anchor(entry.digest) for entry in study.entries}
    return harmless(
        _TEMPLATE.render(
            study=study,
            answer=_answer(study),
            tone=_tone(study),
            figures=figures(study),
            own=_own(study),
            limits=_limits(study),
            opening=_opening(study),
            seeds=_seeds(study.gates),
            gate_of={gate.seed: index for index, gate in reversed(list(enumerate(study.gates, 1)))},
            contradiction=_contradiction(study),
            asks_no_gate=_asks_no_gate(study),
            unfinished=[entry for entry in study.entries if entry.record.status != "finished"],
            first_with=_first_with(study.entries),
            has=lambda digest: formatting.anchor(digest) in anchors,
            strip=strip,
            deciding=lambda rule: _deciding(rule, study.entries),
            words=formatting,
        )
    )


def write_page(study: StudyView, path: Path) -> Path:
    """Write the page to ``path``, whole or not at all; the folder is made when missing. Returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page(study))
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def strip(rule: RuleView) -> Strip | None:
    """Where the rule's interval lies; None without an interval or a threshold."""
    low, high, threshold = rule.low, rule.high, rule.threshold
    if (
        low is None
        or high is None
        or threshold is None
        or not all(map(math.isfinite, (low, high, threshold)))
    ):
        return None
    value = rule.value if formatting.known(rule.value) else None
    ends = [low, high, threshold, *([] if value is None else [value])]
    start, end = min(ends), max(ends)
    room = 0.4 * (end - start) or 0.1
    # Close up on the threshold, yet never past the ends of a share.
    whole = start >= 0 and end <= 1
    start, end = (max(0.0, start - room), min(1.0, end + room)) if whole else (start - room, end + room)

    def at(x: float) -> float:
        return round(100 * (x - start) / (end - start), 2)

    line = at(threshold)
    allowed = (line, 100.0) if rule.op.startswith(">") else (0.0, line)
    return Strip(at(low), at(high), None if value is None else at(value), line, allowed)


def figures(study: StudyView) -> list[Drawn]:
    """Every figure, wide and narrow, with its legend and numbers."""
    order = stages(study.figures)
    made = []
    for index, given in enumerate(study.figures):
        spec = given.model_copy(update={"series": _with_thresholds(given, study)})
        made.append(drawn(spec, lanes(spec, study.entries, study.curves), order, f"f{index}"))
    return made


def _own(study: StudyView) -> dict[int, list[Drawn]]:
    """Sequence number -> what the record shows of itself; once, where a record is listed twice."""
    made: dict[int, list[Drawn]] = {}
    done: set[str] = set()
    for entry in study.entries:
        if entry.digest not in done:
            done.add(entry.digest)
            made[entry.seq] = [
                drawn_data(data, entry.record.technique, f"r{entry.seq}n{number}",
                           seed=entry.record.seed, digest=entry.digest)
                for number, data in enumerate(study.shown.get(entry.digest, ()))
            ]  # fmt: skip
    return made


def _with_thresholds(spec: FigureSpec, study: StudyView) -> tuple[Any, ...]:
    """Series with the threshold of the gate rule that asks for the same metric of the same job."""
    limits: dict[tuple[str, str], float] = {}
    for gate in study.gates:
        for rule in gate.rules:
            for entry in study.entries:
                if rule.limit is not None and _asked_about(rule, gate, entry):
                    limits.setdefault((entry.record.job_id, rule.metric), rule.limit)
    return tuple(
        s if s.threshold is not None else s.model_copy(update={"threshold": limits.get((s.job_id, s.metric))})
        for s in spec.series
    )


def _asked_about(rule: RuleView, gate: GateView, entry: Entry) -> bool:
    """Whether the rule read this record, or would have, had the job finished."""
    inputs = entry.record.inputs.values()
    return entry.digest in rule.evidence or (
        entry.record.technique == rule.technique
        and any(item.digest == gate.digest for item in inputs)
        and (not rule.data or any(item.reference == rule.data for item in inputs))
    )


def _deciding(rule: RuleView, entries: Sequence[Entry]) -> str:
    """Digest of the record that holds the rule's number; '' when it is not on the page."""
    for entry in entries:
        estimate = entry.record.metrics.get(rule.metric)
        if entry.digest in rule.evidence and estimate is not None and estimate.value == rule.value:
            return entry.digest
    return ""


def _limits(study: StudyView) -> list[Limit]:
    """Every caveat once, in order of appearance, with the first record of each job that states it.

    What was found of a claim stands above, and is no limit.
    """
    limits: dict[str, dict[str, Entry]] = {}
    found = {(claim.digest, f"{claim.finding}: {claim.says}") for claim in study.claims}
    for entry in study.entries:
        for text in entry.record.limits:
            if (entry.digest, text) in found:
                continue
            limits.setdefault(" ".join(text.split()), {}).setdefault(_title(entry.record), entry)
    return [Limit(text, list(jobs.values())) for text, jobs in limits.items()]


def _first_with(entries: Sequence[Entry]) -> set[int]:
    """Sequence numbers of the entries that carry an anchor: the first of each digest."""
    first: dict[str, int] = {}
    for entry in entries:
        first.setdefault(formatting.anchor(entry.digest), entry.seq)
    return set(first.values())


def _opening(study: StudyView) -> tuple[Entry | None, str]:
    """The intent's record, and whether it came before the first job."""
    intents = [entry for entry in study.entries if entry.record.technique == "intent"]
    jobs = [entry.seq for entry in study.entries if entry.record.technique != "intent"]
    if not intents:
        return None, "No intent record is in this ledger, so when these words were written is unknown."
    intent = intents[0]
    if jobs and min(jobs) < intent.seq:
        when = f"Recorded as entry {intent.seq}, after the first job (entry {min(jobs)})"
        return intent, f"{when}: the claims may have been fitted to the results."
    later = "; a later intent is in the ledger as well" if len(intents) > 1 else ""
    return intent, f"Recorded as entry {intent.seq} of the ledger, before the first job{later}."


def _seeds(gates: Sequence[GateView]) -> list[tuple[int, Answer]]:
    """Each seed's worst answer: no before unknown before yes."""
    rank: list[Answer] = ["no", "unknown", "yes"]
    answers: dict[int, Answer] = {}
    for gate in gates:
        both = (answers.get(gate.seed, "yes"), gate.verdict.answer)
        answers[gate.seed] = min(both, key=rank.index)
    return sorted(answers.items())


def _answer(study: StudyView) -> str:
    """The verdict in a word; a study that asked no gate has not passed anything, it is done.

    Where it makes claims, their findings are the answer, though something else was not measured.
    """
    findings = [claim.finding for claim in study.claims]
    whole = study.verdict.answer == "yes"
    if _gated(study) or not (whole or findings):
        return formatting.ANSWERS[study.verdict.answer]
    if whole and len(set(findings)) == 1:
        return findings[0].capitalize()
    counted = [f"{findings.count(one)} {one}" for one in FINDINGS if one in findings]
    return ", ".join([*counted, *([] if whole else ["the rest incomplete"])]) or "Done"


def _tone(study: StudyView) -> Answer:
    """The colour of the answer: claims are as good as what was found of them, where no gate decides."""
    findings = {claim.finding for claim in study.claims}
    if study.verdict.answer != "yes" or _gated(study) or findings <= {"supported"}:
        return study.verdict.answer
    return "no" if findings == {"contradicted"} else "unknown"


def _gated(study: StudyView) -> bool:
    return bool(study.gates) or study.needed is not None


def _asks_no_gate(study: StudyView) -> bool:
    """Whether what ran was never meant to decide a release: no gate, not even a failed one, and no policy."""
    policy = study.intent is not None and study.intent.get("policy") is not None
    tried = any(entry.record.technique == "govern.gate" for entry in study.entries)
    return bool(study.entries) and not (_gated(study) or policy or tried)


def _contradiction(study: StudyView) -> str:
    """Said aloud when the study passes and its gates do not all; '' otherwise."""
    seeds = _seeds(study.gates)
    passed = sum(answer == "yes" for _, answer in seeds)
    if study.verdict.answer != "yes" or passed >= (len(seeds) if study.needed is None else study.needed):
        return ""
    return "This verdict does not follow from the gates on this page: " + (
        f"{passed} of {formatting.count(len(seeds), 'seed')} passed." if seeds else "no gate ran."
    )


def _title(record: Record) -> str:
    """A record's name for people."""
    return record.job_id or record.technique


_TEMPLATE = template(
    "page.html.j2", anchor=formatting.anchor, title_of=_title, is_policy=formatting.is_policy
)
