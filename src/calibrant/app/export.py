"""Export attempts to a file for another tool: gather, redact, write atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from calibrant.app import catalog
from calibrant.app.export_answers import answers_report, are_answers
from calibrant.app.references.foreign_attempts import TOOLS, attempts_of, foreign_file, read_foreign
from calibrant.app.references.openers import Openers
from calibrant.app.references.record import find
from calibrant.app.references.schemes import scheme
from calibrant.app.study import finished_jobs
from calibrant.core import Attempt, ConfigError, Frozen, InputError
from calibrant.core.attempt import reached
from calibrant.core.errors import nearest
from calibrant.data.rows import Attempts, Refused
from calibrant.data.taxonomy import tags_of
from calibrant.formats.findings import Finding, Report, by_goal, grouped
from calibrant.ledger import Ledger
from calibrant.ledger.layout import disk
from calibrant.stats import rate_so_far

WRITERS: dict[str, str] = {
    "avid": "calibrant.formats.avid:avid",
    "eval": "calibrant.formats.inspect_log:inspect_log",
    "html": "calibrant.views.attack_report:html",
    "jsonl": "calibrant.formats.rows:jsonl",
    "junit": "calibrant.formats.junit:junit",
    "parquet": "calibrant.formats.parquet:parquet",
    "sarif": "calibrant.formats.sarif:sarif",
}
"""Format -> its writer: a function from a ``Report`` to the bytes of a file."""
_INDEPENDENT = "goals are counted as independent: a file of attempts does not say which belong together"


class Exported(Frozen):
    """What was written."""

    path: str
    """Where."""
    format: str
    """A key of ``WRITERS``."""
    target: str
    """Name of the target; "" where unknown."""
    attempts: int
    """How many were written; of a capability measurement these are answers."""
    successes: int
    """Successes, or correct answers, among them."""
    undetermined: int
    """Undetermined ones, or questions without an answer, among them."""
    what: str = "attempts"
    """'attempts' or 'answers'."""
    revealed: bool
    """Whether the file holds prompts and replies."""
    refused: tuple[Refused, ...]
    """Rows of the source that could not be read."""
    disputed: str = ""
    """Where the source's own totals differ from its rows."""


class _Source(Frozen):
    """Attempts with what is known of them."""

    table: Attempts
    target: str = ""
    caveats: tuple[str, ...] = ()


def export(
    reference: str, to: str, out: Path, *, ledger: Ledger, study: str = "", reveal: bool = False
) -> Exported:
    """Write the attempts that ``reference`` names to ``out``.

    Args:
        reference: 'record:JOB/attempts.jsonl', a file of ours, or another tool's ('garak:PATH'). To 'eval'
            also 'record:JOB/answers.jsonl' of measure.capability.
        to: a key of ``WRITERS``.
        study: the study whose jobs 'record:JOB' means.
        reveal: show prompts and replies, which are redacted otherwise.

    Raises:
        InputError: no attempts there, or the disk refuses; what lay at ``out`` before is then still there.
        ConfigError: no such format, or one that needs a library that is not installed.
    """
    if to not in WRITERS:
        raise ConfigError(f"no format '{to}'{nearest(to, WRITERS)}", hint=f"formats: {', '.join(WRITERS)}")
    if are_answers(reference):
        return _export_answers(reference, to, out, ledger=ledger, study=study, reveal=reveal)
    write: Callable[[Report], bytes] = catalog.load(WRITERS[to])
    source = _opened(reference, ledger, study, out)
    report = report_of(source.table, source.target, source.caveats, reveal=reveal)
    write_whole(out, write(report))
    outcomes = [attempt.outcome for attempt in source.table]
    return Exported(
        path=str(out),
        format=to,
        target=source.target,
        attempts=len(outcomes),
        successes=outcomes.count("success"),
        undetermined=outcomes.count("undetermined"),
        revealed=reveal,
        refused=source.table.lost,
        disputed=source.table.disputed,
    )


def _export_answers(
    reference: str, to: str, out: Path, *, ledger: Ledger, study: str, reveal: bool
) -> Exported:
    if to != "eval":
        raise ConfigError(
            f"'{reference}' holds answers to questions, which are no attempts for '{to}'",
            hint="answers are exported with --to eval",
        )
    report = answers_report(reference, ledger, study, reveal=reveal)
    write_whole(out, catalog.load("calibrant.formats.inspect_answers:inspect_answers")(report))
    marks = [answer.correct for answer in report.answers]
    return Exported(
        path=str(out),
        format=to,
        target=report.target,
        attempts=len(marks),
        successes=marks.count(True),
        undetermined=marks.count(None),
        what="answers",
        revealed=reveal,
        refused=(),
    )


def report_of(
    table: Attempts,
    target: str = "",
    caveats: Sequence[str] = (),
    *,
    reveal: bool = False,
    made: date | None = None,
) -> Report:
    """Attempts with their rates by attack and hazard, ready for any writer."""
    lost = f"{len(table.lost)} rows of the source could not be read and are not counted"
    disputed = f"totals in the source are not those of its rows: {table.disputed}"
    return Report(
        reveal=reveal,
        attempts=table.rows,
        findings=findings_of(table.rows),
        target=target,
        source=table.source,
        caveats=(
            *caveats,
            _INDEPENDENT,
            *([lost] if table.lost else []),
            *([disputed] if table.disputed else []),
        ),
        made=made or datetime.now(UTC).date(),
    )


def findings_of(attempts: Sequence[Attempt]) -> tuple[Finding, ...]:
    """One finding per attack and hazard: the share of goals that any attempt of the attack reached."""
    findings = []
    for (attack, hazard), group in grouped(attempts).items():
        outcomes = [reached(tries) for tries in by_goal(group).values()]
        family = group[0].family
        findings.append(
            Finding(
                rule=f"{attack}/{hazard}",
                attack=attack,
                family=family,
                hazard=hazard,
                estimate=rate_so_far(outcomes, done="reached", better="lower", unit="goal"),
                attempts=tuple(attempt.id for attempt in group),
                tags=tags_of(hazard, family),
            )
        )
    return tuple(findings)


def write_whole(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all: a full disk or a kill leaves the file that was there before.

    Raises:
        InputError: the disk refuses, or ``path`` is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder", hint=f"name a file in it: {path / 'report'}")
    with disk("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        draft = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.chmod(0o644)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _opened(reference: str, ledger: Ledger, study: str, out: Path) -> _Source:
    """Attempts behind a reference, with whom they were made on and what limits them."""
    if scheme(reference) in TOOLS:
        _not_over(foreign_file(reference, Path.cwd()), out)
        reading = read_foreign(reference, Path.cwd())
        judged = f"read from a file of {reading.tool}: how often its judges err is not known here"
        return _Source(table=attempts_of(reading, reference), target=reading.target, caveats=(judged,))
    openers = Openers(ledger, jobs=finished_jobs(ledger, reference, study))
    if scheme(reference) != "record":
        _not_over(Path(reference.partition(":")[2] or reference), out)
        return _Source(table=openers.open(reference, Attempts).load())
    record = find(reference, openers)[0].record
    target = record.inputs.get("target") or record.inputs.get("model")
    return _Source(
        table=openers.open(reference, Attempts).load(),
        target=(target.name or str(target.reference)) if target is not None else "",
        caveats=record.limits,
    )


def _not_over(source: Path, out: Path) -> None:
    if source.resolve() == out.resolve():
        raise InputError(f"--out {out} would overwrite what it is made from", hint="name another file")
