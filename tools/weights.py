"""Ship the testbed's models: copy what `calibrant run rebuild_testbed` made, and note its figures.

    .venv/bin/python tools/weights.py [--ledger .calibrant]

``figures.json`` holds, for each model, its recipe, seed, job and result digest, and the measured figures; a
test measures the shipped weights again and compares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from calibrant.core import CalibrantError, EvidenceError, Record
from calibrant.ledger import Ledger

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "calibrant" / "testbed" / "weights"
SIZES = ("tiny", "base", "strong")
FIGURES = {
    "capability": ("accuracy", "accuracy/fact", "accuracy/sum", "accuracy/instruction"),
    "plain": ("compliance_rate",),
    "lookalikes": ("over_refusal_rate",),
    "encode": tuple(f"attack_success_rate/{name}" for name in ("spell", "reverse", "rot13", "caesar")),
}
"""Job after the size's name -> the metrics that are recorded."""


def ship(ledger: Ledger, folder: Path) -> dict[str, Any]:
    """Copy every size's model to ``folder`` and return the figures.

    Raises:
        EvidenceError: a job of the recipe has no finished record in the ledger.
    """
    records: dict[str, Record] = {
        e.record.job_id: e.record for e in ledger.entries() if e.record.status == "finished"
    }
    wanted = [*SIZES, *(f"{size}_{job}" for size in SIZES for job in FIGURES)]
    missing = [name for name in wanted if name not in records]
    if missing:
        raise EvidenceError(
            f"no finished record of: {', '.join(missing)}", hint="calibrant run rebuild_testbed"
        )
    found: dict[str, Any] = {}
    for size in SIZES:
        made = records[size]
        (model,) = (artifact for artifact in made.artifacts if artifact.name == "model")
        shutil.rmtree(folder / size, ignore_errors=True)
        (folder / size).mkdir(parents=True)
        for file in sorted(ledger.open(model).iterdir()):
            (folder / size / file.name).write_bytes(file.read_bytes())
        found[size] = {
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
            },
        }
    return found


def main() -> int:
    """Ship from a ledger; 3 with the reason when it lacks a record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", type=Path, default=Path(".calibrant"))
    try:
        found = ship(Ledger(parser.parse_args().ledger), WEIGHTS)
    except CalibrantError as error:
        sys.stderr.write(f"weights: {error}\n")
        return 3
    (WEIGHTS / "figures.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"shipped {', '.join(SIZES)} to {WEIGHTS}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
