"""Progress with an estimate of the time left: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calibrant.core.shown import harmless


class Shown:
    """Called with job id, done, total and a note; use it as a context manager."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        self._tasks: dict[str, int] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last: dict[str, int] = {}
        self._spoke = time.monotonic()
        if stream.isatty():
            columns = (
                TextColumn("{task.description:<18}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]:<24}", markup=False),
            )
            console = Console(file=stream)
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True
            )

    def __enter__(self) -> Shown:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, job: str, done: int, total: int, note: str) -> None:
        """Show that ``done`` of ``total`` steps of ``job`` are done."""
        note = harmless(note)
        if self._bar is not None:
            if job not in self._tasks:
                for old in self._tasks.values():
                    self._bar.update(old, visible=False)  # type: ignore[arg-type]
                self._tasks[job] = self._bar.add_task(job, total=total, note=note)
            self._bar.update(self._tasks[job], completed=done, total=total, note=note)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if done < self._last.get(job, 0):  # the job's next seed, or its next stage
            self._started.pop(job, None)
        self._last[job] = done
        began, first = self._started.setdefault(job, (now, done))
        if now - self._spoke >= 60:
            self._spoke = now
            left = (now - began) / max(done - first, 1) * (total - done)
            eta = f" (about {left:.0f} s left)" if done > first else ""
            self._stream.write(f"{job}: {done}/{total} {note}{eta}\n")
            self._stream.flush()
