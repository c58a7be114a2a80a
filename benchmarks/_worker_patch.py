"""Our side of the race of patch sweeps: reads a job, sweeps, tells effects and costs. See ``_pace.py``."""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from transformers import GPT2LMHeadModel

from calibrant.core import Identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._engine.patches import Edit
from calibrant.understand._engine.plan import shared_start
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import sweep, traced


def main() -> None:
    """Sweep as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    module: Any = GPT2LMHeadModel
    model = OpenModel(
        module.from_pretrained(job["model"]), build_tokenizer(), identity=Identity(name="race", parts={})
    )
    clean, corrupt = torch.tensor(job["clean"]), torch.tensor(job["corrupt"])
    shared = shared_start(corrupt, clean)
    read = LogitDifference(job["answers"], job["foils"])
    sites = [f"blocks.{i}.hook_resid_pre" for i in range(module_layers(model))]
    patches = [(Edit(site, (position,)),) for site in sites for position in range(clean.shape[1])]
    for _ in range(job["warm"] + job["rounds"]):
        sources = traced(model, clean, sites)
        found = sweep(model, corrupt, sources, patches, read, shared=shared)
        pace.step(found.values.mean(1).tolist())  # type: ignore[arg-type]


def module_layers(model: OpenModel) -> int:
    """How many blocks the model has."""
    config: Any = model.module.config
    return int(config.num_hidden_layers)


if __name__ == "__main__":
    main()
