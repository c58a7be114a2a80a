"""The one door: command line, web and Python all run a technique through ``execute``.

It opens the inputs, recognises a finished job by its digest, lends the technique a run, and writes the
record, whatever happens: expected failures become failed records; a bug is recorded as crashed and
raised again; Ctrl-C is recorded as interrupted and raised again.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.app.catalog import Signature, find_technique
from calibrant.app.openers import Opened, Openers
from calibrant.core import (
    BudgetError,
    CalibrantError,
    ConfigError,
    Frozen,
    InputError,
    Job,
    Record,
    Result,
    digest,
    resolve,
)
from calibrant.core.digest import digest_file, plain
from calibrant.core.errors import nearest
from calibrant.core.record import Artifact, Failure, Input, job_digest, result_digest

Progress = Callable[[str, int, int, str], None]
"""Called with job id, done, total and a note."""


class Context(NamedTuple):
    """What a record says about where a job stands."""

    study: str = ""
    intent: str = ""
    parent: str = ""


def execute(
    job: Job, openers: Openers, context: Context = Context(), progress: Progress | None = None
) -> Record:
    """Run ``job`` unless the ledger holds its finished record, and return the record.

    Raises:
        ConfigError: the job cannot be started: unknown technique, input or key (nothing is recorded).
        Exception: whatever a technique raised that is no CalibrantError, after recording it as crashed.
    """
    signature = find_technique(job.use)
    config = check_config(job, signature)
    check_inputs(job, signature)
    local = openers.at(job.seed)
    started = time.time()
    try:
        opened = {
            name: local.open(job.inputs.get(name, "ledger:"), parameter.wanted)
            for name, parameter in signature.inputs.items()
            if name in job.inputs or parameter.required
        }
    except InputError as error:
        unopened = {
            k: Input(reference=plain(v), digest=digest(v), kind="unopened") for k, v in job.inputs.items()
        }
        draft = _draft(job, signature, config, unopened, context, started)
        return _append(openers, draft, "failed", _failure(error))
    inputs = {name: _input(found) for name, found in opened.items()}
    draft = _draft(job, signature, config, inputs, context, started)
    done = openers.ledger.find(draft.job)
    if done is not None:
        return done.record
    return _run(job, signature, config, opened, openers, draft, progress)


def check_config(job: Job, signature: Signature) -> Frozen | None:
    """The job's config with defaults filled in. Raises ConfigError with every problem."""
    if signature.config is None:
        if job.config:
            raise ConfigError(f"job '{job.id}': {job.use} takes no config, got '{min(job.config)}'")
        return None
    return resolve(signature.config, job.config, where=f"job '{job.id}'")


def check_inputs(job: Job, signature: Signature) -> None:
    """Every required input is there and no other. Raises ConfigError with every problem."""
    # Evidence needs no reference: it is always the ledger that the job runs in.
    needed = [n for n, p in signature.inputs.items() if p.required and p.wanted.__name__ != "Evidence"]
    problems = [f"job '{job.id}': {job.use} needs the input '{n}'" for n in needed if n not in job.inputs]
    problems += [
        f"job '{job.id}': {job.use} has no input '{name}'{nearest(name, signature.inputs)}"
        for name in job.inputs
        if name not in signature.inputs
    ]
    if problems:
        raise ConfigError(problems, hint=f"`calibrant show {job.use}` lists the inputs")


def _run(
    job: Job,
    signature: Signature,
    config: Frozen | None,
    opened: Mapping[str, Opened],
    openers: Openers,
    draft: Record,
    progress: Progress | None,
) -> Record:
    run = LedgerRun(job, draft, openers, progress)
    try:
        arguments = {name: found.load() for name, found in opened.items()}
        if config is not None:
            arguments["config"] = config
        result = signature.function(**arguments, run=run)
        record = _finished(draft, result, run)
    except CalibrantError as error:
        return _append(openers, _spent(draft, run), "failed", _failure(error))
    except KeyboardInterrupt:
        _append(
            openers, _spent(draft, run), "interrupted", Failure(type="KeyboardInterrupt", message="stopped")
        )
        raise
    except Exception as error:
        failure = Failure(
            type=type(error).__name__, message=str(error)[:2000], hint="this is a bug: report it"
        )
        _append(openers, _spent(draft, run), "crashed", failure)
        raise
    openers.ledger.append(record)
    openers.ledger.clear_work(record.job)
    return record


class LedgerRun:
    """The run that ``execute`` lends: everything it is told ends up in the record."""

    def __init__(self, job: Job, draft: Record, openers: Openers, progress: Progress | None) -> None:
        self.seed = job.seed
        self.cost: dict[str, float] = {}
        self._job, self._draft, self._openers, self._progress = job, draft, openers, progress
        self._started = time.monotonic()
        self.work = openers.ledger.work(draft.job)
        # Artefacts of a killed run are half-made; what a technique can resume from lies beside them.
        shutil.rmtree(self.work / "artifacts", ignore_errors=True)
        (self.work / "artifacts").mkdir()
        self._log = self.work / "artifacts" / "log.jsonl"

    def log(self, step: int, **metrics: float) -> None:
        """Append a line to the artefact 'log.jsonl'."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(plain({"step": step, **metrics})) + "\n")

    def artifact(self, name: str) -> Path:
        """A path below the job's work folder; its parent exists."""
        path = self.work / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        """Add to the cost; raise BudgetError before a limit is passed."""
        limit = self._job.budget
        for name, amount, most in (("tokens", tokens, limit.tokens), ("queries", queries, limit.queries)):
            total = self.cost.get(name, 0) + amount
            if most is not None and total > most:
                raise BudgetError(
                    f"job '{self._job.id}' would use {total:.0f} {name}; its budget is {most}",
                    hint=f"raise budget.{name} of the job, or make it smaller; what is done is kept",
                )
            if amount:
                self.cost[name] = total
        if flops:
            self.cost["flops"] = self.cost.get("flops", 0) + flops
        seconds = time.monotonic() - self._started
        if limit.seconds is not None and seconds > limit.seconds:
            raise BudgetError(
                f"job '{self._job.id}' ran {seconds:.0f} s; its budget is {limit.seconds:.0f} s",
                hint="raise budget.seconds of the job; what is done is kept",
            )

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Pass it on to whoever watches."""
        if self._progress is not None:
            self._progress(self._job.id, done, total, note)

    def call(
        self, technique: str, inputs: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Record:
        """Run another technique as a child of this job (contract C2)."""
        child = Job(
            id=f"{self._job.id}/{technique}",
            use=technique,
            inputs=dict(inputs),
            config=dict(config or {}),
            seed=self.seed,
            budget=self._job.budget,
        )
        context = Context(self._draft.study, self._draft.intent, self._draft.job)
        return execute(child, self._openers, context, self._progress)


def _draft(
    job: Job,
    signature: Signature,
    config: Frozen | None,
    inputs: dict[str, Input],
    context: Context,
    started: float,
) -> Record:
    settings = plain(config) if config is not None else {}
    digests = {name: found.digest for name, found in inputs.items()}
    return Record(
        technique=job.use,
        version=signature.version,
        job=job_digest(job.use, signature.version, settings, digests, job.seed),
        result=result_digest({}, ()),
        status="failed",
        job_id=job.id,
        study=context.study,
        intent=context.intent,
        parent=context.parent,
        config=settings,
        inputs=inputs,
        seed=job.seed,
        judge={n: i.parts.get("calibration", "uncalibrated") for n, i in inputs.items() if i.kind == "judge"},
        code=versions(),
        hardware=hardware(),
        started_at=_utc(started),
    )


def _finished(draft: Record, result: Result, run: LedgerRun) -> Record:
    made = sorted((run.work / "artifacts").iterdir())
    stored: tuple[Artifact, ...] = tuple(run._openers.ledger.store(path, path.name) for path in made)
    update = {
        "status": "finished",
        "metrics": result.metrics,
        "limits": result.caveats,
        "artifacts": stored,
        "result": result_digest(result.metrics, stored),
    }
    return _spent(draft, run).model_copy(update=update)


def _spent(draft: Record, run: LedgerRun) -> Record:
    now = time.time()
    seconds = round(now - datetime.fromisoformat(draft.started_at).timestamp(), 3)
    return draft.model_copy(update={"cost": run.cost, "recorded_at": _utc(now), "seconds": seconds})


def _append(openers: Openers, draft: Record, status: str, failure: Failure) -> Record:
    record = draft.model_copy(
        update={"status": status, "failure": failure, "recorded_at": draft.recorded_at or _utc(time.time())}
    )
    openers.ledger.append(record)
    return record


def _failure(error: CalibrantError) -> Failure:
    return Failure(type=type(error).__name__, message=error.message, hint=error.hint)


def _input(found: Opened) -> Input:
    return Input(
        reference=plain(found.reference),
        digest=found.digest,
        kind=found.kind,
        parts=dict(found.parts),
        name=found.name,
    )


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@cache
def versions() -> dict[str, str]:
    """Versions of what computes, and a digest of Calibrant's own source."""
    found = {"python": platform.python_version()}
    for name in ("calibrant", "torch", "transformers", "tokenizers", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    root = Path(str(files("calibrant")))
    sources = {p.relative_to(root).as_posix(): digest_file(p) for p in sorted(root.rglob("*.py"))}
    return {**found, "source": digest(sources)}


@cache
def hardware() -> str:
    """Processor, cores and system, in one line."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}"
