"""The answers of a ``measure.capability`` job as an Inspect log, with the questions that were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calibrant.app import catalog
from calibrant.app.references.openers import Openers
from calibrant.app.references.record import find, taken_apart
from calibrant.app.references.schemes import scheme
from calibrant.app.study import finished_jobs
from calibrant.core import InputError
from calibrant.core.record import Artifact, Record
from calibrant.data.rows import Item, Items
from calibrant.ledger import Ledger
from calibrant.ledger.layout import disk

ANSWERS = "answers.jsonl"


def are_answers(reference: str) -> bool:
    """Whether a reference names the answers of a job."""
    return scheme(reference) == "record" and taken_apart(reference)[2] == ANSWERS


def answers_report(reference: str, ledger: Ledger, study: str, *, reveal: bool) -> Any:
    """The answers with their questions, ready for the writer.

    Raises:
        InputError: no such job, one that is no capability measurement, or its items have changed since.
        ConfigError: Inspect is not installed.
    """
    report = catalog.load("calibrant.formats.inspect_answers:AnswerReport")
    openers = Openers(ledger, jobs=finished_jobs(ledger, reference, study))
    entry, artifact = find(reference, openers)
    record = entry.record
    if record.technique != "measure.capability":
        raise InputError(
            f"'{reference}' is of {record.technique}, whose answers are no marked answers to questions",
            hint="name a job of measure.capability",
        )
    items = _items(record, openers, reference)
    model = record.inputs["model"]
    return report(
        answers=tuple(_answer(row, items) for row in _rows(ledger, artifact)),
        target=model.name or str(model.reference),
        identity=model.digest,
        source=reference,
        dataset=record.inputs["items"].digest,
        metrics=record.metrics,
        caveats=record.limits,
        reveal=reveal,
    )


def _items(record: Record, openers: Openers, reference: str) -> dict[str, Item]:
    asked = record.inputs["items"]
    opened = openers.open(asked.reference, Items)
    if opened.digest != asked.digest:
        raise InputError(
            f"'{reference}': the items '{asked.reference}' have changed since they were asked",
            hint="run the measurement again",
        )
    return {item.id: item for item in opened.load()}


def _rows(ledger: Ledger, artifact: Artifact) -> list[dict[str, Any]]:
    path: Path = ledger.open(artifact)
    with disk("reading", path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _answer(row: dict[str, Any], items: dict[str, Item]) -> dict[str, Any]:
    item = items[row["id"]]
    kept = {key: row[key] for key in ("id", "answer", "reply", "correct", "kind")}
    return kept | {"chat": item.chat, "match": item.match}
