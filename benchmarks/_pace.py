"""A worker's side of a race of training loops: run to the start line, wait, run a few steps, tell their cost.

The standard library only: it runs in our environment and in the peer's. A worker reads its job from the
file that it is called with and answers on stdout, one JSON object a line, each after a line on stdin (the
first after the warm-up, unasked):

    {"losses": [...], "seconds": CPU seconds, "wall": seconds, "setup": CPU seconds, "peak": bytes}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_job() -> dict[str, Any]:
    """The job that the command line names; the process is pinned to the core that it asks for."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job.get("core") is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job["core"]})
    return job


class Pace:
    """Counts optimiser steps and stops the loop between two of them."""

    def __init__(self, warm: int, block: int) -> None:
        """Stop after ``warm`` steps, then after every ``block`` steps; ``warm`` = 0 never stops."""
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to stderr
        self._next, self._block, self._steps = warm, block, 0
        self._losses: list[float] = []
        self._setup = 0.0
        self._start = time.process_time(), time.perf_counter()

    @contextmanager
    def setup(self) -> Iterator[None]:
        """Work inside is done once a run (the reference's log-probs): told apart from the steps."""
        start = time.process_time()
        try:
            yield
        finally:
            self._setup += time.process_time() - start

    def step(self, loss: float) -> None:
        """One optimiser step is over; waits for a line on stdin where it is time to."""
        self._losses.append(loss)
        self._steps += 1
        if self._steps == self._next:
            self._next += self._block
            self.tell()
            if not sys.stdin.readline():
                sys.exit(0)
            self._start = time.process_time(), time.perf_counter()

    def tell(self, **more: Any) -> None:
        """Say what happened since the last time."""
        cpu, wall = time.process_time() - self._start[0], time.perf_counter() - self._start[1]
        row = {"losses": self._losses, "seconds": cpu, "wall": wall, "setup": self._setup, "peak": peak()}
        self._out.write(json.dumps(row | more) + "\n")
        self._out.flush()
        self._losses = []


def peak() -> int:
    """Most memory that this process held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's pages from before exec
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
