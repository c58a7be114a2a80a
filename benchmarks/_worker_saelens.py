"""SAELens as a worker: run by its own interpreter, takes training steps of a TopK autoencoder.

    .peers/saelens/bin/python benchmarks/_worker_saelens.py JOB.json

The job: ``weights`` and ``rows`` (safetensors), ``k``, ``lr``, ``options`` of its config, ``fused`` (Adam),
``warm``, ``rounds``, ``core``. A step is what its trainer does: forward pass, backward pass, Adam.
"""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.torch import load_file


def main() -> None:
    """Step as the job says."""
    job = read_job()
    torch.set_num_threads(1)
    pace = Pace(job["warm"], 1)
    start = load_file(job["weights"])
    width, d = start["encoder"].shape
    config = TopKTrainingSAEConfig(d_in=d, d_sae=width, k=job["k"], **job["options"])
    sae: Any = TopKTrainingSAE(config)
    with torch.no_grad():
        sae.W_enc.copy_(start["encoder"].T)
        sae.W_dec.copy_(start["decoder"])
        sae.b_enc.copy_(start["bias"])
        sae.b_dec.copy_(start["decoder_bias"])
    optimiser = torch.optim.Adam(sae.parameters(), lr=job["lr"], fused=job["fused"] or None)
    rows = load_file(job["rows"])["rows"]
    dead = torch.zeros(width, dtype=torch.bool)
    for step in range(job["warm"] + job["rounds"]):
        given = TrainStepInput(rows[step % len(rows)], {}, dead, n_training_steps=step, is_logging_step=False)
        out = sae.training_forward_pass(given)
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        pace.step(float(out.losses["mse_loss"]))


if __name__ == "__main__":
    main()
