"""Several trainings in one run: each has a folder, a number in the log, and its place in the whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrant.core import Run
from calibrant.core.record import Record


class ArmRun:
    """The run as one arm sees it: a folder of its own that survives a kill, and its place in the whole."""

    def __init__(self, run: Run, name: str, number: int, before: int, total: int) -> None:
        """``before`` steps of ``total`` belong to earlier arms."""
        self.seed, self.cache, self.references = run.seed, run.cache, run.references
        self.work = run.work / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.spent = 0
        self._run, self._name, self._number, self._before, self._total = run, name, number, before, total

    def log(self, step: int, **metrics: float) -> None:
        """Under the step of the whole, with the arm's number."""
        self._run.log(self._before + step, arm=self._number, **metrics)

    def artifact(self, name: str) -> Path:
        """In the arm's own folder, apart from what it works with: it leaves no artefact."""
        path = self.work / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        """Charge the run, and count."""
        self._run.spend(tokens=tokens, queries=queries, flops=flops)
        self.spent += tokens

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Of the whole."""
        self._run.progress(self._before + done, self._total, f"{self._name}, {note}")

    def call(
        self, technique: str, inputs: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Record:
        """As the run does."""
        return self._run.call(technique, inputs, config)
