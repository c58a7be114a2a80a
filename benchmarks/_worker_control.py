"""Our side of the race of control frontiers: reads a job, measures, tells safety. See ``_pace.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
from _pace import Pace, read_job

from calibrant.oversee import _control_metrics
from calibrant.oversee._control_outputs import Output
from calibrant.oversee._control_protocols import Cases, protocols


def main() -> None:
    """Measure as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    assert job["resamples"] == _control_metrics.RESAMPLES
    honest = cases(job["honest"], [False] * len(job["honest"]), "honest")
    attack = cases(job["attack"], job["done"], "attack")
    none = cases([], [], "known_bad")
    for _ in range(job["warm"] + job["rounds"]):
        sample = _control_metrics.Sample.of(honest, {1: attack}, none)
        found = _control_metrics.metrics(sample, protocols(["trusted_monitoring"], []), job["budgets"])
        told = [found[f"safety/trusted_monitoring/best_of_1/at_{budget:g}"] for budget in job["budgets"]]
        pace.step([number for one in told for number in (one.value, one.low, one.high)])  # type: ignore[arg-type]


def cases(suspicion: list[float], side: list[bool], kind: Any) -> Cases:
    """One output a task."""
    rows = tuple(
        Output(task=f"{kind}{at}", cluster=f"{kind}{at}", kind=kind, text="", main=1.0, side=done)
        for at, done in enumerate(side)
    )
    full = np.ones(len(rows))
    return Cases(
        clusters=tuple(row.cluster for row in rows),
        main=full,
        side=np.array(side, dtype=np.float64),
        trusted_main=full,
        trusted_side=0 * full,
        scores={"monitor": np.array(suspicion, dtype=np.float64).reshape(len(rows), -1 if rows else 1)},
        rows=rows,
    )


if __name__ == "__main__":
    main()
