"""nnsight as a worker: run by its own interpreter, reads a job, sweeps, tells effects and costs.

    .peers/nnsight/bin/python benchmarks/_worker_nnsight.py JOB.json

The job: ``model`` (a folder), ``clean`` and ``corrupt`` (ids, a list a prompt), ``answers`` and ``foils``,
``way`` ('invokes' or 'skips'), ``warm`` and ``rounds``, ``core``. A step is a whole sweep of the
residual stream, layer by position; its losses are the mean readings, a number a cell.
"""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from nnsight import TransformersModel
from transformers import AutoTokenizer, GPT2LMHeadModel


def main() -> None:
    """Sweep as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    torch.set_grad_enabled(False)
    loaded: Any = GPT2LMHeadModel.from_pretrained(job["model"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = TransformersModel(loaded.eval(), task="text-generation", tokenizer=tokenizer)
    clean, corrupt = torch.tensor(job["clean"]), torch.tensor(job["corrupt"])
    answers, foils = torch.tensor(job["answers"]), torch.tensor(job["foils"])

    def read(logits: Any) -> Any:
        last, rows = logits[:, -1], torch.arange(len(logits))
        example = rows % len(answers)
        return last[rows, answers[example]] - last[rows, foils[example]]

    for _ in range(job["warm"] + job["rounds"]):
        pace.step(WAYS[job["way"]](model, clean, corrupt, read))


def streams(model: Any, ids: Any) -> list[Any]:
    """The residual stream before each block, in one trace."""
    kept: list[Any] = []
    with model.trace(ids):
        kept = [block.input.save() for block in model.transformer.h].save()  # type: ignore[attr-defined]
    return list(kept)


def invokes(model: Any, clean: Any, corrupt: Any, read: Any) -> list[float]:
    """All positions of a layer as invokes of one trace, which nnsight runs as one batch."""
    new, found = streams(model, clean), []
    for layer, block in enumerate(model.transformer.h):
        kept: list[Any] = []
        with model.trace() as tracer:
            kept = [].save()  # type: ignore[attr-defined]
            for position in range(clean.shape[1]):
                with tracer.invoke(corrupt, logits_to_keep=1):
                    block.input[:, position] = new[layer][:, position]
                    kept.append(model.lm_head.output)
        found += [float(read(logits).mean()) for logits in kept]
    return found


def skips(model: Any, clean: Any, corrupt: Any, read: Any) -> list[float]:
    """All positions of a layer as rows of one trace, in which the blocks before it are skipped."""
    new, old, found = streams(model, clean), streams(model, corrupt), []
    length, count = clean.shape[1], len(corrupt)
    for layer, block in enumerate(model.transformer.h):
        patched = old[layer].repeat(length, 1, 1)
        for position in range(length):
            patched[position * count : (position + 1) * count, position] = new[layer][:, position]
        with model.trace(corrupt.repeat(length, 1), logits_to_keep=1):
            for before in range(layer):
                model.transformer.h[before].skip(patched)
            block.input = patched
            logits = model.lm_head.output.save()
        found += read(logits).view(length, count).mean(1).tolist()
    return found


WAYS: dict[str, Any] = {"invokes": invokes, "skips": skips}

if __name__ == "__main__":
    main()
