"""TransformerLens as a worker: run by its own interpreter, reads a job, sweeps, tells effects and costs.

    .peers/transformer_lens/bin/python benchmarks/_worker_transformer_lens.py JOB.json

The job: ``model`` (a folder), ``clean`` and ``corrupt`` (ids, a list a prompt), ``answers`` and ``foils``,
``way`` ('helper', 'cells' or 'layers'), ``warm`` and ``rounds``, ``core``. A step is a whole sweep of the
residual stream, layer by position; its losses are the mean readings, a number a cell.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from _pace import Pace, read_job
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2LMHeadModel


def main() -> None:
    """Sweep as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    torch.set_grad_enabled(False)
    loaded = GPT2LMHeadModel.from_pretrained(job["model"], attn_implementation="eager").eval()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])  # without one the library asks the hub
    model: Any = TransformerBridge.boot_transformers("gpt2", hf_model=loaded, tokenizer=tokenizer)
    clean, corrupt = torch.tensor(job["clean"]), torch.tensor(job["corrupt"])
    answers, foils = torch.tensor(job["answers"]), torch.tensor(job["foils"])

    def read(logits: Any) -> Any:
        last, rows = logits[:, -1], torch.arange(len(logits))
        example = rows % len(answers)
        return last[rows, answers[example]] - last[rows, foils[example]]

    for _ in range(job["warm"] + job["rounds"]):
        pace.step(WAYS[job["way"]](model, clean, corrupt, read))


def helper(model: Any, clean: Any, corrupt: Any, read: Any) -> Any:
    """The library's own sweep: one whole forward pass a cell."""
    _, cache = model.run_with_cache(clean)
    found = patching.get_act_patch_resid_pre(model, corrupt, cache, lambda logits: read(logits).mean())
    return found.flatten().tolist()


def by_hand(model: Any, clean: Any, corrupt: Any, read: Any, together: bool) -> Any:
    """A loop over ``start_at_layer``: a cell a pass, or all positions of a layer as rows of one pass."""
    names = [f"blocks.{i}.hook_resid_pre" for i in range(model.cfg.n_layers)]
    _, new = model.run_with_cache(clean, names_filter=names)
    _, old = model.run_with_cache(corrupt, names_filter=names)
    found = []
    for layer, name in enumerate(names):
        streams = []
        for position in range(clean.shape[1]):
            stream = old[name].clone()
            stream[:, position] = new[name][:, position]
            streams.append(stream)
        if together:
            values = read(model(torch.cat(streams), start_at_layer=layer)).view(len(streams), -1).mean(1)
            found += values.tolist()
        else:
            found += [float(read(model(stream, start_at_layer=layer)).mean()) for stream in streams]
    return found


WAYS: dict[str, Any] = {
    "helper": helper, "cells": partial(by_hand, together=False), "layers": partial(by_hand, together=True),
}  # fmt: skip

if __name__ == "__main__":
    main()
