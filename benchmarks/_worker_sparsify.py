"""sparsify as a worker: run by its own interpreter, takes training steps of its fused TopK coder.

    .peers/sparsify/bin/python benchmarks/_worker_sparsify.py JOB.json

The job is that of ``_worker_saelens.py``. A step is what its trainer does with a batch: forward pass of the
fused encoder, backward pass, the gradient's parallel part taken off, Adam, decoder rows of norm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from safetensors.torch import load_file


def main() -> None:
    """Step as the job says; its loss is a share of the variance, and is told as squared error a row."""
    job = read_job()
    torch.set_num_threads(1)
    pace = Pace(job["warm"], 1)
    from sparsify import SparseCoder  # it prints
    from sparsify.config import SparseCoderConfig

    start = load_file(job["weights"])
    width, d = start["encoder"].shape
    coder: Any = SparseCoder(d, SparseCoderConfig(num_latents=width, k=job["k"]))
    with torch.no_grad():
        coder.encoder.weight.copy_(start["encoder"])
        coder.encoder.bias.copy_(start["bias"])
        coder.W_dec.copy_(start["decoder"])
        coder.b_dec.copy_(start["decoder_bias"])
    optimiser = torch.optim.Adam(coder.parameters(), lr=job["lr"], fused=job["fused"] or None)
    rows = load_file(job["rows"])["rows"]
    for step in range(job["warm"] + job["rounds"]):
        x = rows[step % len(rows)]
        variance = (x - x.mean(0)).pow(2).sum()
        out = coder(x, total_variance=variance)
        loss = out.fvu * variance / len(x)
        optimiser.zero_grad()
        loss.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        coder.set_decoder_norm_to_unit_norm()
        pace.step(float(loss))


if __name__ == "__main__":
    main()
