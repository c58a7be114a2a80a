"""Run a study: unfinished jobs run, finished ones come from the ledger, the gates give the verdict."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from calibrant.app.check import check_study
from calibrant.app.environment import utc, versions
from calibrant.app.execute import execute
from calibrant.app.ledger_run import Context, Progress
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import Study
from calibrant.app.verdict import StudyVerdict, verdict_of
from calibrant.core import CalibrantError, ConfigError, Entry, InputError, Job
from calibrant.core.digest import plain
from calibrant.core.errors import nearest
from calibrant.govern.intent import intent_record
from calibrant.ledger import Ledger


class Outcome(NamedTuple):
    """What a study came to."""

    study: Study
    runs: tuple[tuple[Job, Entry], ...]
    """Each run with its record; a record that another study made may have another name there."""
    verdict: StudyVerdict
    reused: int
    """Runs that were found finished."""
    crashes: Mapping[str, str] = MappingProxyType({})
    """'JOB#SEED' -> the traceback of a run that crashed, for a report of the bug."""

    @property
    def unfinished(self) -> tuple[Entry, ...]:
        """Records of the runs that failed."""
        return tuple(entry for _, entry in self.runs if entry.record.status != "finished")

    @property
    def skipped(self) -> dict[str, str]:
        """'JOB#SEED' of a run that could not start -> the run that it needs and that did not finish."""
        status = {(job.id, job.seed): entry.record.status for job, entry in self.runs}
        result: dict[str, str] = {}
        for job, entry in self.runs:
            if entry.record.status == "failed":
                lost = [run for run in _needed(job, self.study, status) if status[run] != "finished"]
                result |= {f"{job.id}#{job.seed}": f"{name}#{seed}" for name, seed in lost[:1]}
        return result


def run_study(
    study: Study,
    ledger: Ledger,
    progress: Progress | None = None,
    *,
    allow_python: bool = False,
    board: Path | None = None,
) -> Outcome:
    """Record the intent, run every job that is not finished, and read the verdict off the gates.

    A job that fails or crashes does not stop the others; what depends on it fails with that reason.
    ``board`` is a folder for TensorBoard's event files.

    Raises:
        ConfigError: lists every problem of the study; nothing was run.
    """
    problems = check_study(study, allow_python=allow_python)
    if problems:
        raise ConfigError(problems, hint="nothing was run")
    intent = study.opening()
    registered = ""
    if intent is not None:
        record = intent_record(intent, study.name)
        registered = record.job
        if ledger.find(record.job) is None:
            ledger.append(record.model_copy(update={"recorded_at": utc(time.time()), "code": versions()}))
    context = Context(study.name, registered, board=board)
    openers = Openers(ledger, given=study.given, base=study.base, allow_python=allow_python)
    reused = 0
    runs: list[tuple[Job, Entry]] = []
    crashes: dict[str, str] = {}
    for job in (run for spec in study.job for run in spec.runs()):
        length = len(ledger.entries())
        try:
            entry = ledger.get(execute(job, openers, context, progress).digest)
        except CalibrantError:
            raise
        except Exception as error:  # noqa: BLE001 - recorded, shown with its id, and the others go on
            entry = _crashed(job, ledger.entries()[length:], error)
            crashes[f"{job.id}#{job.seed}"] = "".join(traceback.format_exception(error))
        reused += entry.seq < length
        openers.jobs[job.id, job.seed] = entry
        openers.jobs.setdefault((job.id, None), entry)
        runs.append((job, entry))
    return Outcome(study, tuple(runs), verdict_of(study, runs, ledger), reused, crashes)


def _crashed(job: Job, fresh: Sequence[Entry], error: Exception) -> Entry:
    """The record that ``execute`` wrote of the crash; the error again where it could write none."""
    for entry in reversed(fresh):
        if (entry.record.job_id, entry.record.seed, entry.record.status) == (job.id, job.seed, "crashed"):
            return entry
    raise error


def _needed(job: Job, study: Study, known: Container[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The runs of this study that a run's inputs name: of its own seed, else the job's first."""
    text = json.dumps(plain(job.inputs))
    for name in re.findall(r"given:([\w-]+)", text):
        text += json.dumps(plain(study.given.get(name, "")))
    seeds = {spec.id: (spec.seeds or (spec.seed,))[0] for spec in study.job}
    for name, seed in re.findall(r"record:([\w-]+)(?:#(\d+))?", text):
        own = (name, int(seed) if seed else job.seed)
        run = own if own in known else (name, seeds.get(name, 0))
        if run in known:
            yield run


def finished_jobs(ledger: Ledger, reference: str, study: str = "") -> dict[tuple[str, int | None], Entry]:
    """(job id, seed) -> latest finished entry, of ``study`` alone where one is named.

    Raises:
        InputError: ``study`` is not in the ledger, or none is named and several have a job of ``reference``.
    """
    done = [e for e in ledger.entries() if e.record.status == "finished"]
    entries = [e for e in done if not study or e.record.study == study]
    if study and not entries:
        names = sorted({e.record.study for e in done if e.record.study})
        raise InputError(
            f"no study '{study}' has a finished job in this ledger{nearest(study, names)}",
            hint=f"it holds {', '.join(names) or 'none'}; use the name in the study's file",
        )
    for name in re.findall(r"record:([\w-]+)", reference):
        owners = sorted({e.record.study for e in entries if e.record.job_id == name})
        if len(owners) > 1:
            raise InputError(
                f"'{reference}': several studies have a job '{name}': {', '.join(owners)}",
                hint=f"name one: --study {owners[0]}",
            )
    jobs: dict[tuple[str, int | None], Entry] = {(e.record.job_id, e.record.seed): e for e in entries}
    for (name, _), entry in list(jobs.items()):
        jobs.setdefault((name, None), entry)
    return jobs
