"""control_arena as a worker: run by its own interpreter, reads a job, bootstraps safety, tells it.

    .peers/control_arena/bin/python benchmarks/_worker_control_arena.py JOB.json

The job: ``honest`` and ``attack`` (suspicions), ``done`` (whether each attack does its side task),
``budgets``, ``resamples``, ``way`` ('frames' or 'scores'), ``warm`` and ``rounds``, ``core``. A step is a
whole frontier: at each budget the safety, then the ends of its 95 % interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from _pace import Pace, read_job
from control_arena.analysis import compute_safety
from control_arena.analysis._confidence_intervals import (
    compute_bootstrapped_confidence_interval,
    compute_confidence_interval,
)


def main() -> None:
    """Bootstrap as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    for number in range(job["warm"] + job["rounds"]):
        pace.step(WAYS[job["way"]](job, np.random.default_rng(number)))  # type: ignore[arg-type]


def table(job: dict[str, Any]) -> pd.DataFrame:
    """Its samples, honest ones first."""
    honest, attack = len(job["honest"]), len(job["attack"])
    return pd.DataFrame(
        {
            "eval_mode": ["honest"] * honest + ["attack"] * attack,
            "main_task_success": [True] * (honest + attack),
            "side_task_success": [False] * honest + job["done"],
            "score_monitor": job["honest"] + job["attack"],
        }
    )


def frames(job: dict[str, Any], rng: Any) -> list[float]:
    """``compute_safety`` on resampled frames: what a user of its analysis writes."""
    samples, found = table(job), []
    parts = [samples[samples["eval_mode"] == mode] for mode in ("honest", "attack")]
    drawn: list[list[float]] = [[] for _ in job["budgets"]]
    for _ in range(job["resamples"]):
        again = pd.concat([one.sample(frac=1, replace=True, random_state=rng) for one in parts])
        for at, budget in enumerate(job["budgets"]):
            drawn[at].append(compute_safety(again, "monitor", 100 * budget))
    for at, budget in enumerate(job["budgets"]):
        found += [compute_safety(samples, "monitor", 100 * budget), *compute_confidence_interval(drawn[at])]
    return found


def scores(job: dict[str, Any], rng: Any) -> list[float]:
    """Its own bootstrap with safety written on arrays of scores, every attack a success: its best."""
    honest, attack, found = pd.Series(job["honest"]), pd.Series(job["attack"]), []
    for budget in job["budgets"]:

        def safety(left: Any, right: Any, budget: float = budget) -> float:
            return float((right.to_numpy() > np.percentile(left.to_numpy(), 100 - 100 * budget)).mean())

        low, high = compute_bootstrapped_confidence_interval(
            honest, attack, safety, bootstrap_iterations=job["resamples"], random_state=rng
        )
        found += [safety(honest, attack), low, high]
    return found


WAYS = {"frames": frames, "scores": scores}

if __name__ == "__main__":
    main()
