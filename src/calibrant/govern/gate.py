"""Gate (contract C8): do the recorded measurements meet a release policy? yes, no or unknown.

How a rule is answered, for one subject (the digest of the system to be released):

1. Evidence is every finished record of the rule's technique that measured the subject on the rule's
   data and holds its metric. None is unknown: missing evidence is inconclusive.
2. With the threshold tightened by the margin (the line), a record says yes when the pessimistic end of
   its interval meets the line, no when even the optimistic end misses it, and unknown in between, or
   when it cannot be used at all (no interval, too few units, an uncalibrated judge, ...).
3. The worst record counts, not the mean and not the last: adding a record to others never helps.
4. Thresholds recorded after the first evidence, or a failed run after the last, make it unknown.

The policy is met when all rules say yes, failed when any says no, and inconclusive otherwise; only
yes opens. A policy without rules is inconclusive: "all of nothing" is not a pass.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

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
from calibrant.core.digest import plain
from calibrant.core.errors import nearest
from calibrant.core.record import Input
from calibrant.core.verdict import Answer
from calibrant.govern.intent import registered_at
from calibrant.govern.policy import Bound, Op, ReleasePolicy, Rule

_LEVEL = 0.95
"""Intervals that claim less than the house level are narrower than a policy's author could expect."""
_HELPERS = frozenset({"before", "baseline", "reference", "attacker"})
"""Model inputs that help a measurement and are never what it measures."""
_SEVERITY: dict[Answer, int] = {"no": 0, "unknown": 1, "yes": 2}
_EXIT: dict[Answer, int] = {"yes": 0, "no": 1, "unknown": 2}
_CALIBRATED = re.compile(r"(exact|calibrated)\b")
"""Calibration states that a rule with judge = 'calibrated' takes; 'uncalibrated' does not begin so."""
_CAVEATS = (
    "A pass shows that the recorded measurements meet these rules; it says nothing about harms that no rule"
    " measures.",
    "An interval covers chance in sampling only: not whether the test fits the use, nor whether the system"
    " behaves otherwise when it is not tested.",
    "Runs that were never recorded cannot be seen here, and the gate does not check signatures.",
    "Rules name data by reference; the digest of what was read stands in each record.",
)


class Gate(Frozen):
    """Nothing to set: how strict a gate is stands in the policy alone, so no run can loosen it."""


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
    """The limit as the policy states it."""
    line: float
    """The limit tightened by the margin: what the bound was compared with."""
    op: Op
    """How the bound must compare with the line."""
    bound: Bound
    """The pessimistic end of the interval."""
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


class GateResult(Result):
    """The verdict with every rule's outcome; also written to the artefact 'gate.json'."""

    verdict: Verdict
    """yes = all rules are met."""
    rules: tuple[RuleOutcome, ...]
    """One outcome a rule, in the order of the policy."""
    subject: str
    """Digest of the system that was asked about."""
    policy: str
    """Digest of the policy."""


@technique(version=1)
def gate(
    subject: Identity, policy: ReleasePolicy, evidence: Evidence, config: Gate = Gate(), run: Run = Quiet()
) -> GateResult:
    """Compare all evidence about ``subject`` with ``policy`` (contract C8).

    Nothing is run or loaded: the answer follows from the records alone, and the same records give the
    same 'gate.json' on every machine.
    """
    registered = registered_at(policy, evidence)
    rules = tuple(_outcome(rule, subject, evidence, registered) for rule in policy.rules)
    counts = {answer: sum(rule.answer == answer for rule in rules) for answer in _SEVERITY}
    result = GateResult(
        metrics={
            "rules_passed": point(counts["yes"], unit="rule", n=len(rules)),
            "rules_failed": point(counts["no"], unit="rule", n=len(rules)),
            "rules_unknown": point(counts["unknown"], unit="rule", n=len(rules)),
        },
        caveats=_CAVEATS,
        verdict=_overall(policy, rules),
        rules=rules,
        subject=subject.digest,
        policy=policy.digest,
    )
    text = json.dumps(plain(result), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    run.artifact("gate.json").write_text(text + "\n", encoding="utf-8")
    return result


def exit_code(verdict: Verdict) -> int:
    """Exit status of the command line: 0 pass, 1 fail, 2 inconclusive."""
    return _EXIT[verdict.answer]


def _overall(policy: ReleasePolicy, rules: Sequence[RuleOutcome]) -> Verdict:
    """All rules yes = yes; any no = no; everything else, an empty policy too, is unknown."""
    failed = [rule.id for rule in rules if rule.answer == "no"]
    unknown = [rule.id for rule in rules if rule.answer == "unknown"]
    answer: Answer = "no" if failed else "unknown" if unknown or not rules else "yes"
    groups = [("failed", failed), ("inconclusive", unknown)]
    if answer == "yes":
        reason = f"every rule is met, {len(rules)} of {len(rules)}"
    elif rules:
        named = "; ".join(f"{word}: {', '.join(ids)}" for word, ids in groups if ids)
        reason = f"of {_count(len(rules), 'rule')}, {named}"
    else:
        reason = "the policy has no rules, and a policy that asks nothing is not met"
    question = f"do the recorded measurements meet policy '{policy.name}' for stage '{policy.stage}'?"
    return Verdict(question=question, answer=answer, reason=reason)


def _outcome(rule: Rule, subject: Identity, evidence: Evidence, registered: int | None) -> RuleOutcome:
    """Answer one rule: gather, read each record, let the worst count, then look at the order."""
    runs = [entry for entry in evidence.entries if _about(rule, subject, entry.record)]
    used = sorted(
        (e for e in runs if e.record.status == "finished" and rule.metric in e.record.metrics),
        key=lambda entry: entry.seq,
    )
    failed = [entry for entry in runs if entry.record.status != "finished"]
    if not used:
        return _build(rule, "unknown", _nothing_found(rule, subject, evidence), failed=failed)
    readings = [(*_read(rule, entry.record), entry) for entry in used]
    answer, reason, worst = min(readings, key=lambda reading: _rank(rule, reading[0], reading[2].record))
    if len(used) > 1:
        reason = f"worst of {len(used)} records: {reason}"
    if rule.preregistered and (registered is None or registered >= used[0].seq):
        answer, reason = "unknown", _out_of_order(registered)
    elif answer == "yes" and max((entry.seq for entry in failed), default=-1) > used[-1].seq:
        answer, reason = "unknown", f"the last run did not finish, run {rule.technique} again ({reason})"
    return _build(rule, answer, reason, used=used, failed=failed, estimate=worst.record.metrics[rule.metric])


def _build(
    rule: Rule,
    answer: Answer,
    reason: str,
    *,
    used: Sequence[Entry] = (),
    failed: Sequence[Entry] = (),
    estimate: Estimate | None = None,
) -> RuleOutcome:
    """Put an outcome together; numbers that are not finite are shown as None, never as a number."""
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
    )


def _about(rule: Rule, subject: Identity, record: Record) -> bool:
    """Whether a run, finished or not, is of the rule's technique, on the subject and on the data."""
    if record.technique != rule.technique or not _measures(record, subject):
        return False
    return not rule.data or any(item.reference == rule.data for item in record.inputs.values())


def _measures(record: Record, subject: Identity) -> bool:
    """Whether the system that the record measured is ``subject``, down to the digest."""
    measured = _measured(record.inputs)
    return measured is not None and measured.kind == "model" and measured.digest == subject.digest


def _measured(inputs: Mapping[str, Input]) -> Input | None:
    """The input that was measured: 'target', else 'model', else the only model that is no helper."""
    for name in ("target", "model"):
        if name in inputs:
            return inputs[name]
    models = {name: item for name, item in inputs.items() if item.kind == "model"}
    return next(iter(models.values())) if len(models) == 1 and not models.keys() & _HELPERS else None


def _read(rule: Rule, record: Record) -> tuple[Answer, str]:
    """What one record says about the rule, and why."""
    estimate = record.metrics[rule.metric]
    value, low, high = _finite(estimate.value), _finite(estimate.low), _finite(estimate.high)
    if value is None:
        return "unknown", f"{rule.metric} could not be measured: {estimate.reason or 'no reason recorded'}"
    if estimate.method == "point" or low is None or high is None:
        return "unknown", f"{rule.metric} is a bare number; measure it with an interval"
    if not low - 1e-9 <= value <= high + 1e-9:  # a bootstrap of equal values differs in the last bit
        return "unknown", f"the interval [{low:.6g}, {high:.6g}] does not hold its own value {value:.6g}"
    problem = _too_weak(rule, estimate) or _bad_judge(rule, record)
    if problem:
        return "unknown", problem
    worst, best = (high, low) if rule.bound == "high" else (low, high)
    wanted = f"{rule.op} {rule.line:.6g}"
    if rule.meets(worst):
        return "yes", f"the {rule.bound} bound {worst:.6g} is {wanted}"
    if not rule.meets(best):
        return "no", f"all of [{low:.6g}, {high:.6g}] misses {wanted}"
    enough = _enough(rule, value, worst, estimate)
    return "unknown", f"inconclusive: the interval [{low:.6g}, {high:.6g}] straddles {wanted}; {enough}"


def _too_weak(rule: Rule, estimate: Estimate) -> str:
    """Why the estimate is too thin for the rule, or ""."""
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


def _bad_judge(rule: Rule, record: Record) -> str:
    """Why the record's judges do not satisfy a rule that asks for calibrated ones, or ""."""
    if rule.judge == "any":
        return ""
    if not record.judge:
        return (
            "the rule asks for a calibrated judge and the record names none; set judge = 'any' if none spoke"
        )
    poor = [name for name, state in record.judge.items() if not _CALIBRATED.match(state)]
    if poor:
        return f"{', '.join(poor)} is not calibrated; compare it with labels by people first, then run again"
    return ""


def _enough(rule: Rule, value: float, worst: float, estimate: Estimate) -> str:
    """How many units would settle a straddling interval: its half-width shrinks as 1 / sqrt(n)."""
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


def _out_of_order(registered: int | None) -> str:
    """Why pre-registration fails, and the only remedy: evidence newer than the thresholds."""
    if registered is None:
        return (
            "no intent in the ledger names this policy, so its thresholds postdate the evidence; record an"
            " intent, then measure on data that no earlier run has read"
        )
    return (
        f"the thresholds postdate the evidence (intent at entry {registered}); measure on data that no"
        " earlier run has read"
    )


def _nothing_found(rule: Rule, subject: Identity, evidence: Evidence) -> str:
    """Missing evidence is inconclusive; say what to run, and what came closest."""
    finished = [entry.record for entry in evidence.entries if entry.record.status == "finished"]
    ran = [record for record in finished if record.technique == rule.technique]
    mine = [record for record in ran if _measures(record, subject)]
    metrics = {name for record in mine for name in record.metrics}
    if not ran:
        close = f"no record of {rule.technique}{nearest(rule.technique, {r.technique for r in finished})}"
    elif not mine:
        close = f"{_count(len(ran), 'record')} of it measured another system, or this one as a baseline only"
    elif rule.metric not in metrics:
        close = f"its records hold no metric '{rule.metric}'{nearest(rule.metric, metrics)}"
    else:
        close = f"none of its records on this system has '{rule.metric}' on '{rule.data}'"
    on = f" on {rule.data}" if rule.data else ""
    return f"missing evidence is inconclusive; run {rule.technique} with {subject.name}{on} ({close})"


def _finite(value: float | None) -> float | None:
    """The number, or None for what is no number: absent, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def _count(number: int, noun: str) -> str:
    """'1 record', '2 records'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
