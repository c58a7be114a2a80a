"""Our side of the races of edges: reads a job, scores edges or runs circuits, tells results and costs.

See ``_pace.py``, and ``_worker_transformer_lens_edges.py`` for the job.
"""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from transformers import GPT2LMHeadModel

from calibrant.core import Identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._engine.edge_runs import masked, wrote
from calibrant.understand._engine.edge_scores import edge_scores
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.readers import LogitDifference


def main() -> None:
    """Score or run as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    module: Any = GPT2LMHeadModel
    model = OpenModel(
        module.from_pretrained(job["model"]), build_tokenizer(), identity=Identity(name="race", parts={})
    )
    clean, corrupt = torch.tensor(job["clean"]), torch.tensor(job["corrupt"])
    read = LogitDifference(job["answers"], job["foils"])
    graph = graph_of(model.module)  # looked for once a model
    masks = torch.ones(2 + len(job["circuits"]), len(graph.names), dtype=torch.bool)
    masks[1] = False
    for at, names in enumerate(job["circuits"]):
        masks[2 + at, [graph.number[name] for name in names]] = False
    for number in range(job["warm"] + job["rounds"]):
        if job["circuits"]:
            low, high, *values = masked(model, graph, clean, wrote(model, graph, corrupt), masks, read)
            pace.step([((one - low) / (high - low)).tolist() for one in values])  # type: ignore[arg-type]
        else:
            scores = edge_scores(model, graph, clean, corrupt, read, (0.0,)).values[0].mean(0)
            told = dict(zip(graph.names, scores.tolist(), strict=True))
            pace.step(told if number < job["warm"] else sum(told.values()))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
