"""Release gate (contract C8): do the recorded measurements meet a release policy? yes, no or unknown.

How a rule is answered, for one subject (the digest of the system to be released):

1. Evidence is every finished record of the rule's technique that measured the subject on the rule's
   data, has its metric and matches the rule's pins: settings, other inputs, the judge's question, the
   digest of the data. None is unknown: missing evidence is inconclusive.
2. With the threshold tightened by the margin (the line), a record says yes when the pessimistic bound of its
   interval meets the line, no when even the optimistic bound misses it, and unknown in between, or when it is
   unusable (no interval, too few units, an uncalibrated judge, ...).
3. The worst record counts, not the mean and not the last: adding a record to others never helps.
4. Thresholds recorded after the first look, whatever settings it had, or a failed run after the last
   evidence make it unknown.
5. What a rule does not pin is listed, with the value that the deciding record has.

The policy is met when all rules say yes, failed when any says no, and inconclusive otherwise. A policy
without rules is inconclusive, not a pass.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from calibrant.core import (
    Entry,
    Estimate,
    Evidence,
    Frozen,
    Identity,
    Quiet,
    Record,
    Result,
    Run,
    Verdict,
    point,
    technique,
)
from calibrant.core.attempt import share_unread
from calibrant.core.digest import plain
from calibrant.core.errors import nearest
from calibrant.core.estimate import span
from calibrant.core.verdict import Answer
from calibrant.govern._pins import bad_judge, basis, differs, kinds, measures, open_data, touching, unpinned
from calibrant.govern.intent import also_registered, out_of_order, registration
from calibrant.govern.policy import Bound, Op, ReleasePolicy, Rule

_LEVEL = 0.95
"""Intervals that claim less than the house level are narrower than a policy's author could expect."""
_SEVERITY: dict[Answer, int] = {"no": 0, "unknown": 1, "yes": 2}
_EXIT: dict[Answer, int] = {"yes": 0, "no": 1, "unknown": 2}
_WRONG_WAY = {"high": "higher", "low": "lower"}
"""Bound -> the direction that is good of a metric which nobody limits from that side."""
_CAVEATS = (
    "A pass shows that the recorded measurements meet these rules; it says nothing about harms that no rule"
    " measures.",
    "An interval covers chance in sampling only: not whether the test fits the use, nor whether the system"
    " behaves otherwise when it is not tested.",
    "Runs that were never recorded cannot be seen here, and the gate does not check signatures.",
    "What a rule does not pin may have been anything: each rule lists it, with the deciding record's value.",
)


class Gate(Frozen):
    """No settings: only the policy decides how strict a gate is, so no run can loosen it."""


class RuleOutcome(Frozen):
    """How one rule was answered, with the record that decided it."""

    id: str
    """The rule."""
    note: str = ""
    """What the rule protects."""
    technique: str
    """Technique whose records are evidence."""
    metric: str
    """Name of the metric."""
    data: str = ""
    """Reference of the data; "" = any."""
    threshold: float
    """The threshold of the policy."""
    line: float
    """The threshold tightened by the margin, with which the bound is compared."""
    op: Op
    """How the bound must compare with the line."""
    bound: Bound
    """The pessimistic bound of the interval."""
    value: float | None = None
    """Estimate of the deciding record; None where there is none."""
    low: float | None = None
    """Lower bound of the deciding record."""
    high: float | None = None
    """Upper bound of the deciding record."""
    n: int = 0
    """Units asked in the deciding record."""
    answer: Answer
    """yes = met, no = clearly missed, unknown = inconclusive."""
    reason: str
    """Why, and what to do next."""
    evidence: tuple[str, ...] = ()
    """Job digests of all records that were used, in ledger order: the same on every machine."""
    failed_runs: int = 0
    """Matching runs that did not finish."""
    judge: str = ""
    """The judges of the deciding record, in words."""
    read: str = ""
    """The data of the deciding record, in words: input, reference and the beginning of the digest."""
    unpinned: dict[str, Any] = Field(default_factory=dict)
    """What the rule leaves open, with the deciding record's value: written into the rule, it is pinned."""
    set_aside: int = 0
    """Finished runs on this system and data that are no evidence: they differ in what the rule pins."""


class GateResult(Result):
    """The verdict with every rule's outcome; also written to the artefact 'gate.json'."""

    verdict: Verdict
    """yes = all rules are met."""
    rules: tuple[RuleOutcome, ...]
    """One outcome a rule, in the order of the policy."""
    subject: str
    """Digest of the system."""
    policy: str
    """Digest of the policy."""
    subject_name: str = ""
    """Name of the system, for people."""
    policy_name: str = ""
    """Name and stage of the policy, for people."""
    unlinked: int = 0
    """Records whose lines carry no link to the line before: they could have been edited unseen."""


@technique(version=5)
def gate(
    subject: Identity, policy: ReleasePolicy, evidence: Evidence, config: Gate = Gate(), run: Run = Quiet()
) -> GateResult:
    """Compare all evidence about ``subject`` with ``policy`` (contract C8).

    Nothing is run or loaded: the answer follows from the records alone, and the same records give the
    same 'gate.json' on every machine.
    """
    intent = registration(policy, evidence)
    rules = tuple(_outcome(rule, subject, evidence, intent) for rule in policy.rules)
    others = also_registered(policy, evidence)
    unlinked = sum(not entry.linked for entry in evidence.entries)
    counts = {answer: sum(rule.answer == answer for rule in rules) for answer in _SEVERITY}
    result = GateResult(
        metrics={
            "rules_passed": point(counts["yes"], unit="rule", n=len(rules)),
            "rules_failed": point(counts["no"], unit="rule", n=len(rules)),
            "rules_unknown": point(counts["unknown"], unit="rule", n=len(rules)),
        },
        caveats=(
            *_CAVEATS,
            *([f"The ledger also holds intents with {', '.join(others)}."] if others else []),
        ),
        verdict=_overall(policy, subject, rules, unlinked),
        rules=rules,
        subject=subject.digest,
        policy=policy.digest,
        subject_name=subject.name,
        policy_name=f"'{policy.name}' for stage '{policy.stage}'",
        unlinked=unlinked,
    )
    text = json.dumps(plain(result), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    run.artifact("gate.json").write_text(text + "\n", encoding="utf-8")
    return result


def exit_code(verdict: Verdict) -> int:
    """Exit status of the command line: 0 pass, 1 fail, 2 inconclusive."""
    return _EXIT[verdict.answer]


def _overall(
    policy: ReleasePolicy, subject: Identity, rules: Sequence[RuleOutcome], unlinked: int
) -> Verdict:
    """All rules yes = yes; any no = no; everything else, an empty policy too, is unknown."""
    failed = [rule.id for rule in rules if rule.answer == "no"]
    unknown = [rule.id for rule in rules if rule.answer == "unknown"]
    answer: Answer = "no" if failed else "unknown" if unknown or not rules else "yes"
    groups = [("failed", failed), ("inconclusive", unknown)]
    if answer == "yes":
        reason = f"every rule is met, {len(rules)} of {len(rules)}"
    elif rules:
        lists = "; ".join(f"{word}: {', '.join(ids)}" for word, ids in groups if ids)
        reason = f"of {_count(len(rules), 'rule')}, {lists}"
    else:
        reason = "the policy has no rules, and an empty policy is not met"
    question = (
        f"do the recorded measurements of '{subject.name}' ({subject.digest[:12]}) meet policy"
        f" '{policy.name}' for stage '{policy.stage}'?"
    )
    return Verdict(question=question, answer=answer, reason=reason + _left_open(rules) + not_held(unlinked))


def not_held(unlinked: int) -> str:
    """What a verdict says of records that no link holds, or ""."""
    warning = f"{_count(unlinked, 'record')} from before lines were linked could have been edited unseen"
    return f"; {warning} (see `calibrant verify`)" if unlinked else ""


def _left_open(rules: Sequence[RuleOutcome]) -> str:
    """What the rules do not pin, by kind, with how many rules leave it open."""
    counts = Counter(kind for rule in rules for kind in kinds(rule.unpinned))
    listed = [f"{kind} ({_count(n, 'rule')})" for kind, n in sorted(counts.items())]
    return f"; not pinned: {', '.join(listed)}" if listed else ""


def _outcome(rule: Rule, subject: Identity, evidence: Evidence, intent: Entry | None) -> RuleOutcome:
    """Answer one rule: gather, read each record, let the worst count, then look at the order."""
    runs = touching(rule, subject, evidence)
    looks = sorted(
        (e for e in runs if e.record.status == "finished" and rule.metric in e.record.metrics),
        key=lambda entry: entry.seq,
    )
    other = [differs(rule, entry.record) for entry in looks]
    apart = [why for why in other if why]
    used = [entry for entry, why in zip(looks, other, strict=True) if not why]
    failed = [entry for entry in runs if entry.record.status != "finished"]
    if not used:
        reason = _nothing_found(rule, subject, evidence, apart)
        return _build(rule, "unknown", reason, failed=failed, set_aside=len(apart))
    readings = [(*_read_record(rule, entry.record, evidence), entry) for entry in used]
    answer, reason, worst = min(readings, key=lambda reading: _rank(rule, reading[0], reading[2].record))
    if len(used) > 1:
        reason = f"worst of {len(used)} records: {reason}"
    if apart:
        reason = f"{reason}; {_count(len(apart), 'record')} set aside ({apart[0]})"
    late = out_of_order(intent, looks) if rule.preregistered else ""
    if late:
        answer, reason = "unknown", late
    elif answer == "yes" and max((entry.seq for entry in failed), default=-1) > used[-1].seq:
        answer, reason = "unknown", f"the last run did not finish, run {rule.technique} again ({reason})"
    return _build(rule, answer, reason, used=used, failed=failed, worst=worst.record, set_aside=len(apart))


def _build(
    rule: Rule,
    answer: Answer,
    reason: str,
    *,
    used: Sequence[Entry] = (),
    failed: Sequence[Entry] = (),
    worst: Record | None = None,
    set_aside: int = 0,
) -> RuleOutcome:
    """Put an outcome together; numbers that are not finite are shown as None, never as a number."""
    estimate = worst.metrics[rule.metric] if worst else None
    judge, read = basis(worst) if worst else ("", "")
    if failed:
        reason = f"{reason}; {_count(len(failed), 'failed run')}"
    copied = ("id", "note", "technique", "metric", "data", "threshold", "line", "op", "bound")
    return RuleOutcome(
        **{name: getattr(rule, name) for name in copied},
        value=_finite(estimate.value) if estimate else None,
        low=_finite(estimate.low) if estimate else None,
        high=_finite(estimate.high) if estimate else None,
        n=estimate.n if estimate else 0,
        answer=answer,
        reason=reason,
        evidence=tuple(entry.record.job for entry in used),
        failed_runs=len(failed),
        judge=judge,
        read=read,
        unpinned=unpinned(rule, worst) if worst else {},
        set_aside=set_aside,
    )


def _read_record(rule: Rule, record: Record, evidence: Evidence) -> tuple[Answer, str]:
    """What one record says about the rule, and why."""
    estimate = record.metrics[rule.metric]
    value, low, high = _finite(estimate.value), _finite(estimate.low), _finite(estimate.high)
    if value is None:
        return "unknown", f"{rule.metric} could not be measured: {estimate.reason or 'no reason recorded'}"
    if estimate.method == "point" or low is None or high is None:
        return "unknown", f"{rule.metric} is a point value; measure it with an interval"
    if not low - 1e-9 <= value <= high + 1e-9:  # a bootstrap of equal values differs in the last bit
        return "unknown", f"the interval [{low:.6g}, {high:.6g}] does not hold its own value {value:.6g}"
    problem = _too_weak(rule, estimate) or open_data(rule, record) or bad_judge(rule, record, evidence)
    if problem:
        return "unknown", problem
    worst, best = (high, low) if rule.bound == "high" else (low, high)
    threshold = f"{rule.op} {rule.line:.6g}"
    if rule.meets(worst):
        unread = share_unread(record.limits)
        if unread > rule.max_missing:
            return "unknown", (
                f"{unread:.0%} of its attempts were blocked by guards that could not answer, more than the"
                f" share of {rule.max_missing:.6g} that the rule allows; fix the guards and run again"
            )
        return "yes", f"the {rule.bound} bound {worst:.6g} is {threshold}"
    if not rule.meets(best):
        return "no", f"all of [{low:.6g}, {high:.6g}] misses {threshold}"
    enough = _enough(rule, value, worst, estimate)
    return "unknown", f"inconclusive: the interval [{low:.6g}, {high:.6g}] straddles {threshold}; {enough}"


def _too_weak(rule: Rule, estimate: Estimate) -> str:
    """Why the estimate is too thin for the rule, or the rule asks nothing of such a metric, or ""."""
    if estimate.better == _WRONG_WAY[rule.bound]:
        return f"of {rule.metric} {estimate.better} is better, and the rule limits it from that side"
    least, most = span(rule.metric, estimate.method)
    if rule.meets(most if rule.bound == "high" else least):
        return (
            f"{rule.op} {rule.line:.6g} is met by every {rule.metric}: it lies between {least:g} and {most:g}"
        )
    if not estimate.level >= _LEVEL:
        return f"its interval covers {estimate.level:.6g}, and a gate asks for {_LEVEL:.6g}"
    if estimate.n < rule.min_n:
        return f"n = {estimate.n} is less than the {rule.min_n} that the rule asks for; measure more"
    if not 0 <= estimate.missing <= rule.max_missing * estimate.n:
        return (
            f"{estimate.missing} of {estimate.n} answers are missing, more than the share of"
            f" {rule.max_missing:.6g} that the rule allows; find out why and run again"
        )
    return ""


def _enough(rule: Rule, value: float, worst: float, estimate: Estimate) -> str:
    """How many units would decide an interval that contains the line: its half-width shrinks as 1 /
    sqrt(n)."""
    if not rule.meets(value) or value == rule.line:
        return (
            f"the estimate {value:.6g} does not clear the line itself, so more units alone will hardly pass"
        )
    needed = math.ceil(estimate.n * ((worst - value) / (rule.line - value)) ** 2)
    text = f"n needed is about {max(needed, estimate.n + 1)} at the same estimate"
    if estimate.missing:
        text += f", and {_count(estimate.missing, 'missing answer')} at the worst case will not shrink with n"
    return text


def _rank(rule: Rule, answer: Answer, record: Record) -> tuple[int, float]:
    """Sort key, worst first: a clear miss, then unknown, then the bound nearest to the wrong side."""
    estimate = record.metrics[rule.metric]
    bound = _finite(estimate.high if rule.bound == "high" else estimate.low)
    if bound is None:
        return _SEVERITY[answer], -math.inf
    return _SEVERITY[answer], -bound if rule.bound == "high" else bound


def _nothing_found(rule: Rule, subject: Identity, evidence: Evidence, apart: Sequence[str]) -> str:
    """Missing evidence is inconclusive; say what to run, and what came closest."""
    finished = [entry.record for entry in evidence.entries if entry.record.status == "finished"]
    ran = [record for record in finished if record.technique == rule.technique]
    mine = [record for record in ran if measures(record, subject)]
    metrics = {name for record in mine for name in record.metrics}
    if not ran:
        close = f"no record of {rule.technique}{nearest(rule.technique, {r.technique for r in finished})}"
    elif not mine:
        close = f"{_count(len(ran), 'record')} of it measured another system, or this one as a baseline only"
    elif rule.metric not in metrics:
        close = f"its records hold no metric '{rule.metric}'{nearest(rule.metric, metrics)}"
    elif apart:
        close = f"{_count(len(apart), 'record')} set aside: {apart[0]}"
    else:
        close = f"none of its records on this system has '{rule.metric}' on '{rule.data or rule.data_digest}'"
    on = f" on {rule.data}" if rule.data else ""
    return f"missing evidence is inconclusive; run {rule.technique} with {subject.name}{on} ({close})"


def _finite(value: float | None) -> float | None:
    """The number, or None for what is no number: absent, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def _count(number: int, noun: str) -> str:
    """'1 record', '2 records'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
