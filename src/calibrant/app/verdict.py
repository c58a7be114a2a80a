"""The verdict of a study: its registered policy on its own system, else not a pass.

A gate answers what it is asked. Whether the right thing was asked is looked at here: the policy must be the
one of [intent], and the system must come from the study's own model: be it, stand before it as guards, or
have been trained from it. The verdict then names system, policy, judges and data, and what was not pinned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from calibrant.app.listing import headline
from calibrant.app.references import given, record
from calibrant.app.references.schemes import scheme
from calibrant.app.study_file import Study, StudyJob
from calibrant.core import CalibrantError, Entry, EvidenceError, Job, Verdict
from calibrant.core.digest import digest_bytes
from calibrant.core.verdict import Answer
from calibrant.govern._pins import kinds
from calibrant.govern.gate import not_held
from calibrant.govern.intent import intent_record
from calibrant.govern.policy import ReleasePolicy
from calibrant.ledger import Ledger

_MODEL = "model"
"""The given thing that a study is about, where it has one of this name."""


class StudyVerdict(Verdict):
    """A study's verdict, and what it is about."""

    about: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """System, policy, judges and data in words, and what no rule pins; {} where no gate ran."""


def verdict_of(study: Study, runs: Sequence[tuple[Job, Entry]], ledger: Ledger) -> StudyVerdict:
    """Pass when enough seeds' gates pass; fail when so many fail that it cannot; else unknown."""
    if study.verdict is None:
        return _without_gate(study, runs, ledger)
    question = f"does '{study.name}' meet its release policy?"
    gates = [e for job, e in runs if job.id == study.verdict.gate and e.record.status == "finished"]
    tables = [gate_table(entry, ledger) for entry in gates]
    answers = [table["verdict"]["answer"] for table in tables]
    passed, failed = answers.count("yes"), answers.count("no")
    # Gates that have not run yet may still pass, so they count here.
    total = sum(len(job.runs()) for job in study.job if job.id == study.verdict.gate)
    needed = study.verdict.passes
    reason = f"{passed} of {total} seeds pass, {failed} fail; {needed} were asked for"
    if len(gates) > len({e.record.inputs["subject"].digest for e in gates}) == 1:
        reason += f", and all {len(gates)} asked about one system"
    wrong = _out_of_place(study, gates) or _late(study, tables, ledger)
    reason += f", but {wrong}" if wrong else " in advance"
    reason += not_held(max((table.get("unlinked", 0) for table in tables), default=0))
    answer: Answer = "yes" if passed >= needed else "no" if total - failed < needed else "unknown"
    return StudyVerdict(
        question=question,
        answer="unknown" if wrong else answer,
        reason=reason,
        about=_about(gates, tables),
    )


def gate_table(entry: Entry, ledger: Ledger) -> dict[str, Any]:
    """What a gate wrote: verdict and rules.

    Raises:
        EvidenceError: the file is not the one that the gate wrote, or is not there.
    """
    return stored_table(entry, ledger, "gate.json")


def stored_table(entry: Entry, ledger: Ledger, name: str) -> dict[str, Any]:
    """The JSON artefact ``name`` of a record.

    Raises:
        EvidenceError: the file is not the one that the job wrote, or is not there.
    """
    artifact = next(a for a in entry.record.artifacts if a.name == name)
    content = ledger.open(artifact).read_bytes()
    if digest_bytes(content) != artifact.digest:
        raise EvidenceError(
            f"{ledger.root}: {name} of '{entry.record.job_id}' was altered after it was written",
            hint="run `calibrant verify`; move the altered file away, and run the job again",
        )
    table: dict[str, Any] = json.loads(content)
    return table


def misdirected(study: Study) -> Iterator[str]:
    """Why the gate of [verdict] does not ask about the registered policy or the study's own system."""
    gate = next((job for job in study.job if study.verdict and job.id == study.verdict.gate), None)
    if gate is None:
        return
    registered, weighed = _registered(study), _weighed(study, gate)
    if registered and weighed and registered.digest != weighed.digest:
        yield (
            f"job '{gate.id}' weighs policy '{weighed.name}' ({weighed.digest[:12]}), and [intent] registers"
            f" '{registered.name}' ({registered.digest[:12]}): give both the same"
        )
    own = _own(study)
    if own and not own & _origins(study, gate.inputs.get("subject")):
        yield (
            f"job '{gate.id}' asks about '{gate.inputs.get('subject')}', which does not come from"
            f" {' or '.join(f'given.{name}' for name in sorted(own))}: gate the study's own system"
        )


def _without_gate(study: Study, runs: Sequence[tuple[Job, Entry]], ledger: Ledger) -> StudyVerdict:
    """Whether everything was done and measured: nothing is passed, and a gate that failed is not hidden."""
    question = f"did every job of '{study.name}' finish and measure?"
    done = {(job.id, job.seed) for job, entry in runs if entry.record.status == "finished"}
    planned = {(run.id, run.seed): None for job in study.job for run in job.runs()}
    left = [f"{name}#{seed}" for name, seed in planned if (name, seed) not in done]
    if left:
        return StudyVerdict(question=question, answer="unknown", reason=f"did not finish: {', '.join(left)}")
    results = [(f"{job.id}#{job.seed}", *headline(entry.record)) for job, entry in runs]
    lost = [
        f"{run}: {name} {estimate}" for run, name, estimate in results if estimate and estimate.value is None
    ]
    if lost:
        return StudyVerdict(question=question, answer="unknown", reason=f"not measured: {'; '.join(lost)}")
    gates = [(f"{job.id}#{job.seed}", e) for job, e in runs if e.record.technique == "govern.gate"]
    answers = {run: gate_table(entry, ledger)["verdict"]["answer"] for run, entry in gates}
    closed = [run for run, answer in answers.items() if answer != "yes"]
    if closed:
        reason = f"did not pass: {', '.join(closed)}; add [verdict] to say how many of its seeds must"
        return StudyVerdict(
            question=question, answer="no" if "no" in answers.values() else "unknown", reason=reason
        )
    note = "there is no [verdict], so its gates pass nothing" if gates else "the study has no gate"
    return StudyVerdict(question=question, answer="yes", reason=f"all jobs finished; {note}")


def _out_of_place(study: Study, gates: Sequence[Entry]) -> str:
    """Why the gates, as the study has them or as they ran, did not ask what was registered, or ""."""
    problem = next(misdirected(study), "")
    if problem:
        return problem
    registered = _registered(study)
    if registered is None:
        return "[intent] registers no policy, so nothing was fixed in advance"
    other = [
        e.record.inputs["policy"] for e in gates if e.record.inputs["policy"].digest != registered.digest
    ]
    if other:
        return f"a gate weighed policy '{other[0].name}', and [intent] registers '{registered.name}'"
    return ""


def _late(study: Study, tables: Sequence[Mapping[str, Any]], ledger: Ledger) -> str:
    """Why the study's intent does not precede what its gates weighed, or ""."""
    intent = study.opening()
    opened = ledger.find(intent_record(intent, study.name).job) if intent else None
    weighed = {job for table in tables for rule in table["rules"] for job in rule["evidence"]}
    earliest = min((e.seq for e in ledger.entries() if e.record.job in weighed), default=None)
    if opened is None or (earliest is not None and earliest < opened.seq):
        return "that was declared after the evidence; measure again"
    return ""


def _about(gates: Sequence[Entry], tables: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """See ``StudyVerdict.about``."""
    rules = [rule for table in tables for rule in table["rules"]]
    subjects: dict[str, list[str]] = {}
    for entry in gates:
        subject = entry.record.inputs["subject"]
        subjects.setdefault(subject.name, []).append(subject.digest[:12])
    open_ = _once(f"{key} of {rule['id']}" for rule in rules for key in kinds(rule.get("unpinned", {})))
    parts = {
        "system": [f"'{name}' ({', '.join(dict.fromkeys(d))})" for name, d in subjects.items()],
        "policy": _once(f"'{e.record.inputs['policy'].name}'" for e in gates),
        "judges": _once(rule.get("judge", "") for rule in rules),
        "data": _once(rule.get("read", "") for rule in rules),
        "not pinned": open_ or ["nothing"] * all(rule["evidence"] for rule in rules),
    }
    return {name: tuple(values) for name, values in parts.items() if values}


def _once(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def _registered(study: Study) -> ReleasePolicy | None:
    """The policy of [intent]; None where there is none, or none that can be read: that is told elsewhere."""
    try:
        intent = study.opening()
    except CalibrantError:
        return None
    return intent.policy if intent else None


def _weighed(study: Study, gate: StudyJob) -> ReleasePolicy | None:
    """The policy that the gate's job names; None where it cannot be read."""
    try:
        return study.policy(given.stands_for(gate.inputs.get("policy"), study.given))
    except CalibrantError:
        return None


def _own(study: Study) -> set[str]:
    """Names of the given things that the study is about: 'model', or else what its jobs measure."""
    if study.given.get(_MODEL):
        return {_MODEL}
    references = [job.inputs.get(name) for job in study.job for name in (_MODEL, "target")]
    return {name for reference in references for name in _origins(study, reference)}


def _origins(study: Study, reference: Any) -> set[str]:
    """The given things that a model comes from: it, behind guards or a prompt, best of n, trained from it."""
    if not isinstance(reference, str) or not reference:
        return set()
    name = given.named(reference)
    if name is not None:
        others = {known: value for known, value in study.given.items() if known != name}  # so that it ends
        return {name} | _origins(study.model_copy(update={"given": others}), study.given.get(name))
    same = {name for name, value in study.given.items() if value == reference}
    if scheme(reference) in ("defended", "best_of", "system"):  # the model stands behind the sign
        return same | _origins(study, reference.partition("#")[2])
    if scheme(reference) == "record":
        job_id = record.taken_apart(reference)[0]
        for number, job in enumerate(study.job):
            if job.id == job_id:
                earlier = study.model_copy(update={"job": study.job[:number]})
                return same | _origins(earlier, job.inputs.get(_MODEL))
    return same
