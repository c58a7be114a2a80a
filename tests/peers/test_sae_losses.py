"""Losses and gradients of sparse coders against SAELens 6.54.12's own code, in float64."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from calibrant.maths.sparse_coding import Shape, SparseCoder

pytestmark = pytest.mark.peers

D, M, K = 6, 20, 3
DEAD = torch.arange(M) % 4 == 0


def coder_of(variant):
    coder = SparseCoder(Shape(variant, D, D, M, K, bandwidth=0.3), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (coder.bias, coder.decoder_bias):
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        if variant == "jumprelu":  # exact in float32, in which SAELens keeps it
            coder.threshold.copy_(torch.rand(M, generator=generator).double() / 2)
    return coder


@pytest.fixture(scope="module")
def theirs(ask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = {name: w.detach() for name, w in coder_of("jumprelu").state_dict().items()}
    save_file({"x": x}, folder / "rows.safetensors")
    save_file(weights | {"dead": DEAD.to(torch.uint8)}, folder / "weights.safetensors")
    ask("saelens", "tests/peers/worker_sae.py", "losses", folder)
    return x, load_file(folder / "losses.safetensors")


@pytest.mark.parametrize("variant", ["relu", "topk", "batchtopk", "jumprelu"])
def test_loss_and_gradients_are_saelenss(variant, theirs):
    x, found = theirs
    coder = coder_of(variant)
    dead = DEAD if "topk" in variant else None
    losses = coder.losses(x, coefficient=0.3, dead=dead, auxiliary=0.5)
    losses.loss.backward()
    assert_close(losses.mse.detach(), found[f"{variant}/mse"], rtol=0, atol=1e-10)
    assert_close(losses.loss.detach(), found[f"{variant}/loss"], rtol=0, atol=1e-10)
    limit = 1e-6 if variant == "jumprelu" else 1e-9  # its threshold is float32
    for name in ("encoder", "bias", "decoder_bias", "threshold", "decoder"):
        weight = getattr(coder, name)
        if weight is None or weight.grad is None or (variant, name) == ("relu", "decoder"):
            continue  # its L1 penalty has the decoder's norms in it, which stay 1 here
        assert_close(weight.grad, found[f"{variant}/{name}"], rtol=0, atol=limit)
