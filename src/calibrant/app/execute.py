"""``execute``: the one way in which command line, web and Python run a technique.

It opens the inputs, recognises a finished job by its digest, passes a ``Run`` to the technique, and writes
the record, whatever happens: expected failures become failed records; a bug is recorded as crashed and raised
again; Ctrl-C is recorded as interrupted and raised again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrant.app import catalog
from calibrant.app.catalog import Signature, find_technique
from calibrant.app.check import check_config, check_inputs
from calibrant.app.environment import hardware, utc, versions
from calibrant.app.ledger_run import Context, LedgerRun, Progress, alone, first_begun
from calibrant.app.references.opened import Opened
from calibrant.app.references.openers import Openers
from calibrant.app.references.plug_ins import staying
from calibrant.core import (
    CalibrantError,
    Estimate,
    Frozen,
    InputError,
    Job,
    NumericalError,
    Record,
    Result,
    digest,
)
from calibrant.core.attempt import blocked_unread
from calibrant.core.digest import plain
from calibrant.core.estimate import impossible
from calibrant.core.record import Artifact, Failure, Input, job_digest, result_digest
from calibrant.core.secrets import strike, strike_files, without_secrets
from calibrant.data.columns import listed
from calibrant.data.rows import Table

NOT_USED = "columns not used"
"""How the limit begins that names columns of an input that no row was read by."""


def execute(
    job: Job, openers: Openers, context: Context = Context(), progress: Progress | None = None
) -> Record:
    """Run ``job`` unless the ledger holds its finished record, and return the record as it is stored.

    An input that cannot be opened makes a failed record, too.

    Raises:
        ConfigError: the job cannot be started: unknown technique, input or key (nothing is recorded).
        InputError: nothing can be recorded: the disk is full, or another process is running the job.
        Exception: whatever a technique raised that is no CalibrantError, after recording it as crashed.
    """
    signature = find_technique(job.use)
    config = check_config(job, signature)
    check_inputs(job, signature)
    started = time.time()
    opened: dict[str, Opened] = {}
    failure = None
    bug: Exception | None = None
    try:
        with staying():
            _open(job, signature, openers.at(job.seed), opened)
    except CalibrantError as error:
        failure = _failure(error)
    except Exception as error:  # noqa: BLE001
        bug = error
    references = without_secrets(plain(job.inputs))
    unopened = {n: Input(reference=r, digest=digest(r), kind="unopened") for n, r in references.items()}
    inputs = {**unopened, **{name: _input(item) for name, item in opened.items()}}
    draft = _draft(job, signature, config, inputs, context, started)
    if bug is not None:
        _append(openers, draft, "crashed", _crash(bug))
        raise bug
    if failure is not None:
        return _append(openers, draft, "failed", failure)
    ledger = openers.ledger
    if (done := ledger.find(draft.job)) is None:
        with alone(work := ledger.work(draft.job), job):
            if (done := ledger.find(draft.job)) is None:  # no other process has finished it meanwhile
                ledger.work(draft.job)
                draft = draft.model_copy(update={"started_at": first_begun(work, draft.started_at)})
                return _run(job, signature, config, opened, openers, draft, progress, context.board)
    # A kill between the record and the tidying up leaves the work folder.
    ledger.clear_work(draft.job)
    return done.record


def _open(job: Job, signature: Signature, openers: Openers, opened: dict[str, Opened]) -> None:
    """Fill ``opened``; where one input fails, those before it are in it."""
    for name, parameter in signature.inputs.items():
        if name in job.inputs or parameter.required:
            opened[name] = openers.open(job.inputs.get(name, "ledger:"), parameter.wanted)


def _run(
    job: Job,
    signature: Signature,
    config: Frozen | None,
    opened: Mapping[str, Opened],
    openers: Openers,
    draft: Record,
    progress: Progress | None,
    board: Path | None,
) -> Record:
    context = Context(draft.study, draft.intent, draft.job, board)
    run = LedgerRun(
        job,
        openers.ledger.work(draft.job),
        openers.ledger.cache,
        progress,
        lambda child: execute(child, openers, context, progress),
        catalog.load("calibrant.app.tensorboard:Board")(board, job) if board else None,
    )
    try:
        with staying():
            arguments = {name: item.load() for name, item in opened.items()}
            if config is not None:
                arguments["config"] = config
            result = signature.function(**arguments, run=run)
            record = _finished(openers, draft, result, run, arguments)
    except CalibrantError as error:
        return _append(openers, _spent(draft, run), "failed", _failure(error))
    except KeyboardInterrupt:
        stopped = Failure(type="KeyboardInterrupt", message="stopped", hint="run the same command again")
        _append(openers, _spent(draft, run), "interrupted", stopped)
        raise
    except Exception as error:
        if _disk_full(error):
            full = InputError(
                f"disk full in job '{job.id}': {error}",
                hint="free space, then run the same command again: finished jobs are kept",
            )
            return _append(openers, _spent(draft, run), "failed", _failure(full))
        _append(openers, _spent(draft, run), "crashed", _crash(error))
        raise
    stored = openers.ledger.append(record).record
    openers.ledger.clear_work(record.job)
    return stored


def _draft(
    job: Job,
    signature: Signature,
    config: Frozen | None,
    inputs: dict[str, Input],
    context: Context,
    started: float,
) -> Record:
    settings = strike(plain(config)) if config is not None else {}
    digests = {name: item.digest for name, item in inputs.items()}
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
        started_at=utc(started),
    )


def _finished(
    openers: Openers, draft: Record, result: Result, run: LedgerRun, arguments: Mapping[str, Any]
) -> Record:
    # As it will read back: a NaN becomes None there.
    metrics = {name: Estimate.model_validate(strike(plain(one))) for name, one in result.metrics.items()}
    faults = [fault for name, one in metrics.items() for fault in impossible(name, one)]
    if faults:
        raise NumericalError("; ".join(faults), hint="this is a bug: report it")
    paths = run.made()
    for path in paths:
        strike_files(path)
    stored: tuple[Artifact, ...] = tuple(openers.ledger.store(path, path.name) for path in paths)
    update = {
        "status": "finished",
        "metrics": metrics,
        "limits": tuple(
            strike(
                [
                    *result.caveats,
                    *_unread(paths),
                    *_caveats(arguments),
                    *_refused(arguments),
                    *_unused(arguments),
                    *_rendered(arguments),
                ]
            )
        ),
        "artifacts": stored,
        "result": result_digest(metrics, stored),
    }
    return _spent(draft, run).model_copy(update=update)


def _unread(paths: list[Path]) -> Iterator[str]:
    """That guards blocked without having read, which a gate must not take for safety."""
    for path in paths:
        if path.name == "attempts.jsonl" and (caveat := blocked_unread(path.read_bytes().splitlines())):
            yield caveat


def _caveats(arguments: Mapping[str, Any]) -> Iterator[str]:
    """What a model says about itself, once it has been asked."""
    for name, model in arguments.items():
        if name != "config":
            yield from getattr(model, "caveats", ())


def _refused(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Rejected rows are reported in the record: nothing is dropped silently."""
    for name, table in arguments.items():
        if isinstance(table, Table) and table.lost:
            first, total = table.lost[0], len(table.rows) + len(table.lost)
            yield (
                f"{len(table.lost)} of {total} rows of '{name}' were refused, "
                f"the first on line {first.line}: {first.reason}"
            )
        if isinstance(table, Table) and table.disputed:
            yield f"totals in '{name}' are not those of its rows: {table.disputed}"


def _unused(arguments: Mapping[str, Any]) -> Iterator[str]:
    """So are unread columns."""
    for name, table in arguments.items():
        if isinstance(table, Table) and table.unused:
            yield f"{NOT_USED} of '{name}' ({table.source}): {listed(table.unused)}"


def _rendered(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Where a model's chat template is not met exactly, whatever was asked of it says so."""
    for name, model in arguments.items():
        differences = getattr(model, "template_differences", None)
        for difference in differences.all if differences is not None else ():
            yield f"the chat template of '{name}' is not met exactly: {difference}"


def _disk_full(error: BaseException | None) -> bool:
    """Whether the file system had no room; some writers hide that behind an error of their own."""
    if error is None:
        return False
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mentioned = any(f"os error {code})" in str(error) for code in full)
    return mentioned or (isinstance(error, OSError) and error.errno in full) or _disk_full(error.__context__)


def _spent(draft: Record, run: LedgerRun) -> Record:
    return draft.model_copy(
        update={"cost": run.cost, "recorded_at": utc(time.time()), "seconds": round(run.seconds, 3)}
    )


def _append(openers: Openers, draft: Record, status: str, failure: Failure) -> Record:
    record = draft.model_copy(
        update={"status": status, "failure": failure, "recorded_at": draft.recorded_at or utc(time.time())}
    )
    return openers.ledger.append(record).record


def _failure(error: CalibrantError) -> Failure:
    texts = {"message": error.message, "hint": error.hint}
    return Failure(type=type(error).__name__, **without_secrets(texts))


def _crash(error: Exception) -> Failure:
    message = without_secrets(str(error))[:2000]
    return Failure(type=type(error).__name__, message=message, hint="this is a bug: report it")


def _input(opened: Opened) -> Input:
    fields = {"reference": plain(opened.reference), "parts": dict(opened.parts), "name": opened.name}
    return Input(digest=opened.digest, kind=opened.kind, **without_secrets(fields))
