"""From a study's records to its page: gather what the page shows, and write it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibrant.app.study import Outcome, Study, gate_table, intent_of, verdict_of
from calibrant.core import Entry
from calibrant.core.digest import plain
from calibrant.core.errors import InputError
from calibrant.ledger import Ledger
from calibrant.views.page import GateView, RuleView, StudyView, write_page


def write(outcome: Outcome, ledger: Ledger) -> Path:
    """Write the study's page below the ledger and return its path."""
    study = outcome.study
    intent = intent_of(study)
    opening = [e for e in ledger.entries() if e.record.technique == "intent" and e.record.study == study.name]
    entries = [*opening[-1:], *outcome.entries]
    view = StudyView(
        name=study.name,
        title=study.title or study.name,
        story=study.story.strip(),
        intent=plain(intent) if intent is not None else None,
        entries=tuple(entries),
        gates=tuple(_gates(entries, ledger)),
        figures=study.figure,
        verdict=outcome.verdict,
        ledger=str(ledger.root),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path = ledger.root / "pages" / f"{study.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(view, path)
    return path


def from_ledger(study: Study, ledger: Ledger) -> Outcome:
    """What the ledger holds of a study: the latest record of each run of each job; nothing is run."""
    runs = {(job.id, run.seed) for job in study.job for run in job.runs()}
    latest: dict[tuple[str, int], Entry] = {}
    for entry in ledger.entries():
        key = (entry.record.job_id, entry.record.seed)
        if entry.record.study == study.name and key in runs:
            latest[key] = entry
    if not latest:
        raise InputError(
            f"the ledger {ledger.root} holds no record of '{study.name}'",
            hint=f"run it first: calibrant run {study.name}",
        )
    entries = tuple(sorted(latest.values(), key=lambda entry: entry.seq))
    return Outcome(study, entries, verdict_of(study, entries, ledger), len(entries))


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


def _rule(rule: dict[str, Any], records: dict[str, str]) -> RuleView:
    shown = {name: rule[name] for name in RuleView.model_fields if name in rule}
    evidence = tuple(records[job] for job in rule["evidence"] if job in records)
    return RuleView.model_validate({**shown, "threshold": rule["line"], "evidence": evidence})
