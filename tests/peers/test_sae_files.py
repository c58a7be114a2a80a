"""Sparse coders both ways: SAELens 6.54.12 and sparsify 1.3.3 open ours, we open theirs, outputs agree."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from calibrant.maths.sparse_coding import Shape, SparseCoder
from calibrant.understand._sae_files import open_coder, save_saelens, save_sparsify

pytestmark = pytest.mark.peers

D, M, K = 6, 20, 3
OURS = {
    "standard": Shape("relu", D, D, M),
    "no_shift": Shape("relu", D, D, M, shifted=False),
    "topk": Shape("topk", D, D, M, K),
    "batchtopk": Shape("batchtopk", D, D, M, K),
    "jumprelu": Shape("jumprelu", D, D, M),
    "transcoder": Shape("relu", D, 9, M, shifted=False),
    "skip_transcoder": Shape("relu", D, 9, M, shifted=False, skip=True),
    "jumprelu_transcoder": Shape("jumprelu", D, 9, M, shifted=False),
    "jumprelu_skip_transcoder": Shape("jumprelu", D, 9, M, shifted=False, skip=True),
}
TO_SPARSIFY = {"topk": OURS["topk"], "skip": Shape("topk", D, D, M, K, shifted=False, skip=True)}


def coder_of(shape):
    coder = SparseCoder(shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in coder.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator).abs())
    return coder.eval()


def asked(ask, folder, peer, shapes, save):
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, folder / "rows.safetensors")
    for name, shape in shapes.items():
        save(coder_of(shape), folder / "ours" / name, {"hook_name": "blocks.0.hook_resid_post"})
    ask(peer, "tests/peers/worker_sae.py", peer, folder)
    return folder, x


@pytest.fixture(scope="module")
def saelens(ask, tmp_path_factory):
    return asked(ask, tmp_path_factory.mktemp("saelens"), "saelens", OURS, save_saelens)


@pytest.fixture(scope="module")
def sparsify(ask, tmp_path_factory):
    return asked(ask, tmp_path_factory.mktemp("sparsify"), "sparsify", TO_SPARSIFY, save_sparsify)


@pytest.mark.parametrize("name", OURS)
def test_saelens_reads_ours(name, saelens):
    folder, x = saelens
    theirs, coder = load_file(folder / "outputs" / f"ours {name}.safetensors"), coder_of(OURS[name])
    assert_close(coder.encode(x), theirs["features"], rtol=1e-5, atol=1e-6)
    if not OURS[name].skip:  # SAELens's forward of a skip transcoder needs its input apart
        assert_close(coder(x), theirs["out"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["standard", "topk", "topk plain", "batchtopk", "jumprelu", "skip_transcoder"]
)
def test_we_read_saelens(name, saelens):
    folder, x = saelens
    theirs, coder = (
        load_file(folder / "outputs" / f"theirs {name}.safetensors"),
        open_coder(folder / "theirs" / name).coder,
    )
    assert_close(coder(x), theirs["out"], rtol=1e-5, atol=1e-5)
    assert (coder.encode(x) > 0).any()
    assert torch.equal(coder.encode(x) > 0, theirs["features"] > 0)


@pytest.mark.parametrize("name", TO_SPARSIFY)
def test_sparsify_reads_ours_and_we_read_it(name, sparsify):
    folder, x = sparsify
    for kind, coder in (
        ("ours", coder_of(TO_SPARSIFY[name])),
        ("theirs", open_coder(folder / "theirs" / name).coder),
    ):
        theirs = load_file(folder / "outputs" / f"{kind} {name}.safetensors")["out"]
        assert_close(coder(x), theirs, rtol=1e-5, atol=1e-5)
