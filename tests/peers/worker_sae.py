"""SAELens or sparsify as a worker: opens what we wrote, writes its own, and tells what both give.

    .peers/saelens/bin/python tests/peers/worker_sae.py saelens FOLDER

FOLDER holds ``rows.safetensors`` (x, 50 rows) and a folder a coder under ``ours/``. For each it writes
``outputs/NAME.safetensors``; and its own coders under ``theirs/``, with their outputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def told(folder, kind, name, features, out):
    (folder / "outputs").mkdir(exist_ok=True)
    tensors = {"features": features.detach().contiguous(), "out": out.detach().contiguous()}
    save_file(tensors, folder / "outputs" / f"{kind} {name}.safetensors")


def saelens(folder, x):
    from sae_lens import SAE
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig

    for path in sorted((folder / "ours").iterdir()):
        sae = SAE.load_from_disk(path)
        told(folder, "ours", path.name, sae.encode(x), sae(x))
    d = x.shape[1]
    kinds = {
        "standard": (StandardTrainingSAE, StandardTrainingSAEConfig(d_in=d, d_sae=20)),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig(d_in=d, d_sae=20, k=3)),
        "topk plain": (
            TopKTrainingSAE,
            TopKTrainingSAEConfig(d_in=d, d_sae=20, k=3, rescale_acts_by_decoder_norm=False),
        ),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig(d_in=d, d_sae=20, k=3)),
        "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig(d_in=d, d_sae=20)),
        "skip_transcoder": (
            SkipTranscoder,
            SkipTranscoderConfig(d_in=d, d_out=9, d_sae=20, apply_b_dec_to_input=False),
        ),
    }
    for name, (kind, config) in kinds.items():
        torch.manual_seed(0)
        sae = kind(config)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter).abs())
        path = folder / "theirs" / name
        save = getattr(sae, "save_inference_model", sae.save_model)
        save(path)
        again = SAE.load_from_disk(path)
        told(folder, "theirs", name, again.encode(x), again(x))


def sparsify(folder, x):
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    for path in sorted((folder / "ours").iterdir()):
        coder = SparseCoder.load_from_disk(path)
        told(folder, "ours", path.name, torch.zeros(1), coder(x).sae_out)
    kinds = {
        "topk": SparseCoderConfig(num_latents=20, k=3),
        "skip": SparseCoderConfig(num_latents=20, k=3, transcode=True, skip_connection=True),
    }
    for name, config in kinds.items():
        torch.manual_seed(0)
        coder = SparseCoder(x.shape[1], config)
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        coder.save_to_disk(folder / "theirs" / name)
        told(folder, "theirs", name, torch.zeros(1), coder(x).sae_out)


if __name__ == "__main__":
    where = Path(sys.argv[2])
    {"saelens": saelens, "sparsify": sparsify}[sys.argv[1]](where, load_file(where / "rows.safetensors")["x"])
