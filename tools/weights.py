"""Ship the testbed's models: copy what `calibrant run rebuild_testbed` made, and note its figures.

    .venv/bin/python tools/weights.py [--ledger .calibrant] [--only clean holed]

``figures.json`` holds, for each model, its recipe, seed, job and result digest, and the measured figures; a
test measures the shipped weights again and compares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrant.core import CalibrantError, EvidenceError, Record
from calibrant.ledger import Ledger

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "calibrant" / "testbed" / "weights"
SIZES = ("tiny", "base", "strong")
TWINS = ("clean", "holed")
MODELS = (*SIZES, *TWINS)
FIGURES = {
    "capability": ("accuracy", "accuracy/fact", "accuracy/sum", "accuracy/instruction"),
    "plain": ("compliance_rate",),
    "lookalikes": ("over_refusal_rate",),
    "encode": tuple(f"attack_success_rate/{name}" for name in ("spell", "reverse", "rot13", "caesar")),
}
"""Job after the size's name -> the metrics that are recorded."""


def ship(ledger: Ledger, folder: Path, names: Sequence[str] = MODELS) -> dict[str, Any]:
    """Copy every model of ``names`` to ``folder`` and return the figures.

    Raises:
        EvidenceError: a job of the recipe has no finished record in the ledger.
    """
    records: dict[str, Record] = {
        e.record.job_id: e.record for e in ledger.entries() if e.record.status == "finished"
    }
    wanted = [*names, *(f"{name}_{job}" for name in names for job in FIGURES)]
    missing = [name for name in wanted if name not in records]
    if missing:
        raise EvidenceError(
            f"no finished record of: {', '.join(missing)}", hint="calibrant run rebuild_testbed"
        )
    shipped: dict[str, Any] = {}
    for size in names:
        made = records[size]
        (model,) = (artifact for artifact in made.artifacts if artifact.name == "model")
        shutil.rmtree(folder / size, ignore_errors=True)
        (folder / size).mkdir(parents=True)
        for file in sorted(ledger.open(model).iterdir()):
            (folder / size / file.name).write_bytes(file.read_bytes())
        shipped[size] = {
            "recipe": made.config,
            "seed": made.seed,
            "job": made.job,
            "result": made.result,
            "code": made.code,
            "parameters": made.metrics["parameters"].value,
            "training_tokens": made.metrics["training_tokens"].value,
            "figures": {
                metric: records[f"{size}_{job}"]
                .metrics[metric]
                .model_dump(include={"value", "low", "high", "n"})
                for job, metrics in FIGURES.items()
                for metric in metrics
            }
            | {
                metric: found.model_dump(include={"value", "low", "high", "n"})
                for metric, found in made.metrics.items()
                if size in TWINS and found.method != "point"
            },
        }
    return shipped


def main() -> int:
    """Ship from a ledger; 3 with the reason when it lacks a record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", type=Path, default=Path(".calibrant"))
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    asked = parser.parse_args()
    try:
        found = ship(Ledger(asked.ledger), WEIGHTS, asked.only)
    except CalibrantError as error:
        sys.stderr.write(f"weights: {error}\n")
        return 3
    figures = WEIGHTS / "figures.json"
    before = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
    figures.write_text(json.dumps(before | found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"shipped {', '.join(asked.only)} to {WEIGHTS}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
