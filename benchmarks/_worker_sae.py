"""Our side of the race of sparse autoencoders: reads a job, takes training steps, tells losses and costs."""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from safetensors.torch import load_file

from calibrant.maths.sparse_coding import Shape, SparseCoder, tangent_


def main() -> None:
    """Step as the job says; ``job['unit']``: decoder rows keep norm 1, as in ``understand.sae``."""
    job = read_job()
    torch.set_num_threads(1)
    pace = Pace(job["warm"], 1)
    start = load_file(job["weights"])
    width, d = start["encoder"].shape
    coder = SparseCoder(Shape("topk", d, d, width, job["k"]))
    coder.load_state_dict(start)
    weights: list[Any] = list(coder.parameters())
    optimiser = torch.optim.Adam(weights, lr=job["lr"], fused=True)
    rows = load_file(job["rows"])["rows"]
    for step in range(job["warm"] + job["rounds"]):
        x = rows[step % len(rows)]
        losses = coder.losses(x, auxiliary=0.0)
        optimiser.zero_grad(set_to_none=True)
        losses.loss.backward()  # type: ignore[no-untyped-call]
        if job["unit"] and coder.decoder.grad is not None:
            tangent_(coder.decoder.grad, coder.decoder)
        optimiser.step()
        if job["unit"]:
            coder.project()
        pace.step(losses.mse.item())


if __name__ == "__main__":
    main()
