"""SAELens or sparsify as a worker: opens what we wrote, writes its own, and tells what both give.

    .peers/saelens/bin/python tests/peers/worker_sae.py saelens FOLDER

FOLDER holds ``rows.safetensors`` (x, 50 rows) and a folder a coder under ``ours/``. For each it writes
``outputs/NAME.safetensors``; and its own coders under ``theirs/``, with their outputs. With 'losses', FOLDER
holds ``weights.safetensors``, and SAELens's losses and gradients go to ``losses.safetensors``.
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


def losses(folder, x):
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    weights = load_file(folder / "weights.safetensors")
    m, d = weights["encoder"].shape
    size = {"d_in": d, "d_sae": m, "dtype": "float64"}
    plain = {"k": 3, "rescale_acts_by_decoder_norm": False, "aux_loss_coefficient": 0.5}
    kinds = {
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig(**size, l1_coefficient=0.3), {"l1": 0.3}),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig(**size, **plain), {}),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig(**size, **plain), {}),
        "jumprelu": (
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig(**size, jumprelu_bandwidth=0.3, l0_coefficient=0.3),
            {"l0": 0.3},
        ),
    }
    out = {}
    for name, (kind, config, coefficients) in kinds.items():
        sae = kind(config)
        with torch.no_grad():
            sae.W_enc.copy_(weights["encoder"].T)
            sae.W_dec.copy_(weights["decoder"])
            sae.b_enc.copy_(weights["bias"])
            sae.b_dec.copy_(weights["decoder_bias"])
            if name == "jumprelu":
                sae.threshold.copy_(weights["threshold"])
        dead = weights["dead"].bool() if "topk" in name else torch.zeros(m, dtype=torch.bool)
        step = sae.training_forward_pass(TrainStepInput(x, coefficients, dead, 0, False))
        step.loss.backward()
        out |= {f"{name}/loss": step.loss, f"{name}/mse": step.losses["mse_loss"]}
        grads = {"encoder": sae.W_enc.grad.T, "decoder": sae.W_dec.grad, "bias": sae.b_enc.grad}
        grads["decoder_bias"] = sae.b_dec.grad
        grads |= {"threshold": sae.threshold.grad} if name == "jumprelu" else {}
        out |= {f"{name}/{part}": grad for part, grad in grads.items()}
    out = {key: value.detach().double().contiguous() for key, value in out.items()}
    save_file(out, folder / "losses.safetensors")


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
    run = {"saelens": saelens, "sparsify": sparsify, "losses": losses}[sys.argv[1]]
    run(where, load_file(where / "rows.safetensors")["x"])
