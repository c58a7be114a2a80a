"""From a study's records to its HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibrant.app.figures import few_enough, figure_data
from calibrant.app.study import Outcome
from calibrant.app.study_file import Study
from calibrant.app.verdict import gate_table, stored_table, verdict_of
from calibrant.core import Entry, Job
from calibrant.core.digest import plain
from calibrant.core.errors import InputError
from calibrant.core.figure_data import FigureData
from calibrant.govern.intent import intent_record
from calibrant.ledger import Ledger
from calibrant.ledger.layout import disk
from calibrant.views.curves import READERS, Budget, Curve
from calibrant.views.page import ClaimView, GateView, RuleView, StudyView, write_page

_MOST, _EACH = 24, 3
"""Figures that the records of a page, and that one record, show of themselves."""
_CELLS = 1500
"""Numbers in one of them: a page stays small enough to be sent."""


def write(outcome: Outcome, ledger: Ledger) -> Path:
    """Write the study's page below the ledger and return its path."""
    path = ledger.root / "pages" / f"{outcome.study.name}.html"
    with disk("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(view(outcome, ledger), path)
    return path


def view(outcome: Outcome, ledger: Ledger) -> StudyView:
    """All that the page of a study shows."""
    study = outcome.study
    intent = study.opening()
    registered = "" if intent is None else intent_record(intent, study.name).job
    opening = [e for e in ledger.entries() if e.record.job == registered]
    entries = [*opening[:1], *(_named(study, job, entry) for job, entry in outcome.runs)]
    return StudyView(
        name=study.name,
        title=study.title or study.name,
        story=study.story.strip(),
        intent=plain(intent) if intent is not None else None,
        entries=tuple(entries),
        gates=tuple(_gates(entries, ledger)),
        figures=study.figure,
        curves=_curves(study, entries, ledger),
        shown=_shown(entries),
        claims=tuple(_claims(entries, ledger)),
        verdict=outcome.verdict,
        about=outcome.verdict.about,
        needed=study.verdict.passes if study.verdict is not None else None,
        ledger=str(ledger.root),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _named(study: Study, job: Job, entry: Entry) -> Entry:
    """The entry under the name that this study has for it: an identical job may have run elsewhere."""
    if (entry.record.study, entry.record.job_id) == (study.name, job.id):
        return entry
    named = entry.record.model_copy(update={"study": study.name, "job_id": job.id})
    return entry.model_copy(update={"record": named})


def from_ledger(study: Study, ledger: Ledger) -> Outcome:
    """What the ledger holds of a study: the latest record of each run of each job; nothing is run."""
    jobs = {(run.id, run.seed): run for job in study.job for run in job.runs()}
    latest: dict[tuple[str, int], Entry] = {}
    for entry in ledger.entries():
        key = (entry.record.job_id, entry.record.seed)
        if entry.record.study == study.name and key in jobs:
            latest[key] = entry
    if not latest:
        raise InputError(
            f"the ledger {ledger.root} holds no record of '{study.name}'",
            hint=f"run it first: calibrant run {study.name}",
        )
    runs = tuple((job, latest[key]) for key, job in jobs.items() if key in latest)
    return Outcome(study, runs, verdict_of(study, runs, ledger), len(runs))


def _gates(entries: Sequence[Entry], ledger: Ledger) -> list[GateView]:
    """One view a finished gate; evidence is named by job digest there and by record digest here."""
    records = {e.record.job: e.digest for e in entries}
    views = []
    for entry in entries:
        if entry.record.technique != "govern.gate" or entry.record.status != "finished":
            continue
        table = gate_table(entry, ledger)
        subject = entry.record.inputs["subject"]
        views.append(
            GateView(
                job_id=entry.record.job_id,
                seed=entry.record.seed,
                subject=subject.name,
                digest=subject.digest,
                verdict=table["verdict"],
                rules=tuple(_rule(rule, records) for rule in table["rules"]),
            )
        )
    return views


def _claims(entries: Sequence[Entry], ledger: Ledger) -> Iterator[ClaimView]:
    """One view a claim that was judged."""
    for entry in entries:
        record = entry.record
        if record.technique != "understand.triangulate" or record.status != "finished":
            continue
        table = stored_table(entry, ledger, "claim.json")
        finding = table["finding"]
        told = next((one for one in record.limits if one.startswith(f"{finding}: ")), "")
        yield ClaimView(
            job_id=record.job_id,
            seed=record.seed,
            digest=entry.digest,
            says=told.removeprefix(f"{finding}: ") or record.job_id,
            finding=finding,
            reasons=tuple(table["reasons"]),
        )


def _shown(entries: Sequence[Entry]) -> dict[str, tuple[FigureData, ...]]:
    """What records show of themselves, at most ``_MOST`` figures in all: what a result has with a title of
    its own, and for interpretability what names alone allow, but for intervals, which the record's table has.
    """
    shown: dict[str, tuple[FigureData, ...]] = {}
    left = _MOST
    for entry in sorted(entries, key=lambda entry: not entry.record.technique.startswith("understand.")):
        record = entry.record
        if record.status == "finished":
            opens = record.technique.startswith("understand.")
            told = [one for one in figure_data(record) if one.title or (opens and one.kind != "intervals")]
            fit = (few_enough(one)[0] for one in told if one.kind != "matrix" or len(one.values) <= _CELLS)
            some = [one for one in fit if len(one.values) <= _CELLS][: min(left, _EACH)]
            shown[entry.digest] = tuple(some)
            left -= len(some)
    return shown


def _curves(study: Study, entries: Sequence[Entry], ledger: Ledger) -> dict[str, Curve | Budget]:
    """What the jobs of figures of the kinds 'goodhart' and 'budget' stored."""
    figures = [figure for figure in study.figure if figure.kind in ("goodhart", "budget")]
    jobs = {series.job_id for figure in figures for series in figure.series}
    curves = {}
    for entry in entries:
        stored = [a for a in entry.record.artifacts if a.name in READERS]
        if entry.record.job_id in jobs and stored:
            table = json.loads(ledger.open(stored[0]).read_text(encoding="utf-8"))
            curves[entry.digest] = READERS[stored[0].name](table)
    return curves


def _rule(rule: dict[str, Any], records: dict[str, str]) -> RuleView:
    fields = {name: rule[name] for name in RuleView.model_fields if name in rule}
    evidence = tuple(records[job] for job in rule["evidence"] if job in records)
    return RuleView.model_validate({**fields, "threshold": rule["line"], "evidence": evidence})
