"""Records whose digests follow from their content, as `execute` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.core.estimate import Estimate
from calibrant.core.record import Record, job_digest, result_digest
from calibrant.ledger import Ledger


def make_record(**changes: Any) -> Record:
    """A finished record of a make-believe technique; job and result are computed from the rest."""
    known: dict[str, Any] = {
        "technique": "train.rain", "version": 1, "status": "finished", "seed": 0, "config": {"steps": 3},
        "metrics": {"dry": Estimate(value=0.5, low=0.4, high=0.6, n=40, method="wilson")},
        "inputs": {}, "artifacts": (), "recorded_at": "2026-01-01T00:00:00Z",
    } | changes  # fmt: skip
    inputs = {name: item.digest for name, item in known["inputs"].items()}
    job = job_digest(known["technique"], known["version"], known["config"], inputs, known["seed"])
    return Record(**{"job": job, "result": result_digest(known["metrics"], known["artifacts"])} | known)


@pytest.fixture
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")
