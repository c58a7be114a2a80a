"""The `Run` that a technique receives: work folder, log, budget, artefacts, and calls of other techniques."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from calibrant.core import BudgetError, InputError, Job, Record
from calibrant.core.digest import plain
from calibrant.ledger.layout import disk
from calibrant.ledger.lines import locked

Progress = Callable[[str, int, int, str], None]
"""Called with job id, done, total and a note."""


class Board(Protocol):
    """Receives what a job logs: ``app/tensorboard.py``."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...  # noqa: D102


class Context(NamedTuple):
    """What a record says about where a job stands."""

    study: str = ""
    intent: str = ""
    parent: str = ""
    board: Path | None = None
    """Folder for TensorBoard's event files; not part of any record."""


@contextmanager
def alone(work: Path, job: Job) -> Iterator[None]:
    """Hold the job's work folder: a second process in it would mix up half-made files.

    The lock lies beside the folder: nobody who asks for it may keep the folder from being removed.

    Raises:
        InputError: another process holds it, or the disk refuses.
    """
    path = work.with_suffix(".lock")
    held = InputError(f"job '{job.id}' is being run by another process", hint="wait for it, then run again")
    with disk("making", path):
        lock = locked(path, held)
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def first_begun(work: Path, now: str) -> str:
    """When a job was begun that left files: whoever looked into its folder could have seen them since.

    ``now`` where an earlier try left nothing. Artefacts count, though a job that goes on makes them anew.
    """
    begun = work / "begun"
    with disk("reading", begun):
        files = {path for path in work.rglob("*") if path.is_file()} - {begun}
        if files and begun.exists():
            return begun.read_text(encoding="utf-8", errors="replace") or now
        begun.write_text(now, encoding="utf-8")
    return now


class LedgerRun:
    """The `Run` that ``execute`` hands to a technique: all that is logged or spent ends up in the record."""

    def __init__(
        self,
        job: Job,
        work: Path,
        cache: Path,
        progress: Progress | None,
        execute: Callable[[Job], Record],
        board: Board | None = None,
    ) -> None:
        """``cache`` is shared by all jobs; ``execute`` runs a child; ``board`` receives what is logged."""
        self.seed = job.seed
        self.references = job.inputs
        self.work = work
        self.cost: dict[str, float] = {}
        self._job, self._progress, self._execute, self._board = job, progress, execute, board
        self._started = time.monotonic()
        self.cache = cache
        self._log, self._goes_on = work / "log.jsonl", False
        # Artefacts of a killed run are half-made; what a technique can resume from lies beside them.
        with disk("making", work):
            cache.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(work / "artifacts", ignore_errors=True)
            (work / "artifacts").mkdir()

    @property
    def seconds(self) -> float:
        """How long this try has run."""
        return time.monotonic() - self._started

    def log(self, step: int, **metrics: float) -> None:
        """Append a line to the artefact 'log.jsonl'; a resumed job appends after its kept lines."""
        if not self._goes_on:
            self._cut(step)
            self._goes_on = True
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(plain({"step": step, **metrics})) + "\n")
        if self._board is not None:
            self._board.log(step, metrics)

    def _cut(self, step: int) -> None:
        """Drop what an earlier try logged from ``step`` on, and a line that was cut short."""
        if not self._log.exists():
            return
        *lines, _ = self._log.read_text(encoding="utf-8").split("\n")
        while lines and json.loads(lines[-1])["step"] >= step:
            lines.pop()
        self._log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def artifact(self, name: str) -> Path:
        """A path below the job's work folder; its parent exists."""
        path = self.work / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def made(self) -> list[Path]:
        """The artefacts, by name, with the log where there is one."""
        log = [self._log] if self._log.exists() else []
        return sorted([*(self.work / "artifacts").iterdir(), *log], key=lambda path: path.name)

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        """Add to the cost; raise BudgetError before a limit is passed."""
        limit = self._job.budget
        totals = {}
        for name, amount, most in (("tokens", tokens, limit.tokens), ("queries", queries, limit.queries)):
            totals[name] = self.cost.get(name, 0) + amount
            if most is not None and totals[name] > most:
                raise BudgetError(
                    f"job '{self._job.id}' would use {totals[name]:.0f} {name}; its budget is {most}",
                    hint=f"raise budget.{name} of the job, or make it smaller; what is done is kept",
                )
        self.cost.update({name: total for name, total in totals.items() if total or name in self.cost})
        if flops:
            self.cost["flops"] = self.cost.get("flops", 0) + flops
        if limit.seconds is not None and self.seconds > limit.seconds:
            raise BudgetError(
                f"job '{self._job.id}' ran {self.seconds:.0f} s; its budget is {limit.seconds:.0f} s",
                hint="raise budget.seconds of the job; what is done is kept",
            )

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
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
        return self._execute(child)
