"""Files of sparse coders: what is written reads back, and what is wrong is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibrant.core import CapabilityError, InputError, NumericalError
from calibrant.maths.sparse_coding import Shape, SparseCoder
from calibrant.understand import _sae_files as files
from calibrant.understand._sae_files import open_coder, save_saelens, save_sparsify

D, M, K = 6, 20, 3
SHAPES = {
    "standard": Shape("relu", D, D, M),
    "standard, no shift": Shape("relu", D, D, M, shifted=False),
    "topk": Shape("topk", D, D, M, K),
    "batchtopk": Shape("batchtopk", D, D, M, K),
    "jumprelu": Shape("jumprelu", D, D, M),
    "transcoder": Shape("relu", D, 9, M, shifted=False),
    "skip_transcoder": Shape("relu", D, 9, M, shifted=False, skip=True),
    "jumprelu_transcoder": Shape("jumprelu", D, 9, M, shifted=False),
    "jumprelu_skip_transcoder": Shape("batchtopk", D, D, M, K, shifted=False, skip=True),
}
KINDS = {"standard, no shift": "standard", "batchtopk": "jumprelu"}


def coder_of(shape, seed=0):
    coder = SparseCoder(shape, mean=torch.randn(shape.d_out, generator=torch.Generator().manual_seed(seed)))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in (coder.bias, coder.skip, coder.threshold):
            if weight is not None:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator).abs())
    return coder.eval()


def rows(shape):
    return torch.randn(50, shape.d_in, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("layout", ["d_in,d_sae", "d_sae,d_in"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_saved_reads_back(name, layout, tmp_path):
    coder = coder_of(SHAPES[name])
    save_saelens(coder, tmp_path, {"hook_name": "blocks.1.hook_resid_post"}, layout)
    found = open_coder(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == KINDS.get(name, name)
    assert (found.form, found.metadata["hook_name"]) == ("saelens", "blocks.1.hook_resid_post")
    x = rows(coder.shape)
    assert torch.equal(found.coder(x), coder(x))
    assert torch.equal(found.coder.encode(x), coder.encode(x))
    shape = load_file(tmp_path / files.SAELENS)["W_enc"].shape
    assert tuple(shape) == ((D, M) if layout == "d_in,d_sae" else (M, D))


@pytest.mark.parametrize("shape", [SHAPES["topk"], Shape("topk", D, D, M, K, shifted=False, skip=True)])
def test_sparsify_folders_read_back(shape, tmp_path):
    coder = coder_of(shape)
    save_sparsify(coder, tmp_path, {})
    found = open_coder(tmp_path)
    assert (found.form, found.coder.shape) == ("sparsify", shape)
    assert torch.equal(found.coder(rows(shape)), coder(rows(shape)))


def test_activations_rescaled_by_norm_are_folded(tmp_path):
    """By hand as SAELens has it: the largest of z |w|, written with w / |w|."""
    coder = coder_of(SHAPES["topk"])
    save_saelens(coder, tmp_path, {})
    weights = load_file(tmp_path / files.SAELENS)
    weights["W_dec"] = weights["W_dec"] * torch.linspace(0.2, 5, M)[:, None]
    save_file(weights, tmp_path / files.SAELENS)
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    x, norms = rows(coder.shape), weights["W_dec"].norm(dim=-1)
    pre = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    kept = torch.zeros_like(pre).scatter(1, pre.topk(K).indices, pre.topk(K).values.relu())
    expected = (kept / norms) @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(open_coder(tmp_path).coder(x), expected)


def test_a_feature_that_writes_nothing_stays_one(tmp_path):
    """Its row has no norm to be divided by."""
    save_saelens(coder_of(SHAPES["topk"]), tmp_path, {})
    weights = load_file(tmp_path / files.SAELENS)
    weights["W_dec"][2] = 0
    save_file(weights, tmp_path / files.SAELENS)
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    coder = open_coder(tmp_path).coder
    assert coder(rows(coder.shape)).isfinite().all()


def spoilt(tmp_path, change_config=None, change_weights=None, shape="jumprelu"):
    save_saelens(coder_of(SHAPES[shape]), tmp_path, {})
    if change_config:
        config = json.loads((tmp_path / "cfg.json").read_text())
        change_config(config)
        (tmp_path / "cfg.json").write_text(json.dumps(config))
    if change_weights:
        weights = load_file(tmp_path / files.SAELENS)
        change_weights(weights)
        save_file(weights, tmp_path / files.SAELENS)
    return tmp_path


def turned(weights):
    weights["W_enc"] = weights["W_enc"].T.contiguous()


@pytest.mark.parametrize(
    ("config", "weights", "error", "told"),
    [
        (lambda c: c.update(d_in=7), None, InputError, r"shape \[6, 20\], cfg\.json says \[7, 20\]"),
        (lambda c: c.update(d_sae=0), None, InputError, "d_sae = 0"),
        (lambda c: c.pop("d_in"), None, InputError, "d_in = None"),
        (lambda c: c.update(d_sae=True), None, InputError, "d_sae = True"),
        (lambda c: c.update(architecture="gated"), None, CapabilityError, "architecture 'gated'"),
        (lambda c: c.update(architecture=["jumprelu"]), None, CapabilityError, "architecture"),
        (lambda c: c.update(apply_b_dec_to_input="no"), None, InputError, "apply_b_dec_to_input = 'no'"),
        (lambda c: c.update(architecture="standard"), None, InputError, "has 'threshold', which"),
        (
            lambda c: c.update(normalize_activations="layer_norm"),
            None,
            CapabilityError,
            "normalises its input",
        ),
        (lambda c: c["metadata"].update(w_enc_layout="x"), None, InputError, "w_enc_layout = 'x'"),
        (None, turned, InputError, "in the other layout"),
        (None, lambda w: w.pop("threshold"), InputError, "has no 'threshold'"),
        (None, lambda w: w.update(b_dec=w["b_dec"].int()), InputError, "is of type I32"),
        (None, lambda w: w["b_enc"].fill_(float("nan")), InputError, "'b_enc' in .* holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(config, weights, error, told, tmp_path, monkeypatch):
    spoilt(tmp_path, config, weights)
    monkeypatch.setattr(SparseCoder, "forward", lambda *_: pytest.fail("nothing is computed"))
    with pytest.raises(error, match=told):
        open_coder(tmp_path)


def test_folders_that_hold_none(tmp_path):
    with pytest.raises(InputError, match="is no sparse autoencoder"):
        open_coder(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "ae.pt").write_bytes(b"pickle")
    with pytest.raises(InputError, match="is no sparse autoencoder"):
        open_coder(tmp_path)
    spoilt(tmp_path)
    data = (tmp_path / files.SAELENS).read_bytes()
    (tmp_path / files.SAELENS).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is damaged"):
        open_coder(tmp_path)
    (tmp_path / "cfg.json").write_text("[")
    with pytest.raises(InputError, match="not a JSON object"):
        open_coder(tmp_path)


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(CapabilityError, match="no TopK transcoder"):
        save_saelens(coder_of(Shape("topk", D, 9, M, K, shifted=False)), tmp_path, {})
    with pytest.raises(CapabilityError, match="no relu coder"):
        save_sparsify(coder_of(SHAPES["standard"]), tmp_path, {})
    bad = coder_of(SHAPES["topk"])
    bad.bias.data[0] = float("nan")
    with pytest.raises(NumericalError, match="'b_enc' is NaN"):
        save_saelens(bad, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_reads_otherwise_is_found_out(tmp_path, monkeypatch):
    """Holds against SAELens#354 and PR#212: a saved autoencoder was not the trained one."""
    real = files._filled

    def other(*args):
        coder = real(*args)
        coder.bias.add_(1e-3)
        return coder

    monkeypatch.setattr(files, "_filled", other)
    with pytest.raises(NumericalError, match="gives other outputs"):
        save_saelens(coder_of(SHAPES["standard"]), tmp_path, {})
