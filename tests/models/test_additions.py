"""What a block adds to the stream: the sites hold on every family, raw outputs fail where a norm follows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.core import CapabilityError
from calibrant.models.additions import additions
from calibrant.models.open_model import OpenModel
from calibrant.models.sites import places

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import ZOO, build

NONE = {
    "openai-gpt": "a norm after each sum",
    "bert, as decoder": "a norm after each sum",
    "roberta, as decoder": "a norm after each sum",
    "electra, as decoder": "a norm after each sum",
    "bert": "a norm after each sum",
    "bart": "a norm after each sum",
    "marian": "a norm after each sum",
    "trocr": "a norm after each sum",
    "minimax": "the stream itself is multiplied",
    "mamba": "one part",
    "falcon_mamba": "one part",
    "mamba2": "one part",
    "xlstm": "one part",
    "nemotron_h": "one part a block",
    "zamba2": "one part a block",
    "falcon_h1": "attention and a state space model side by side, beside the MLP",
    "granitemoehybrid": "experts and an MLP are added before their sum is",
    "xlm": "blocks are no modules",
    "xlnet": "two streams",
}
"""Families whose blocks are not stream + attention + MLP, and why."""
ONE_BLOCK = ("rwkv", "recurrent_gemma", "jamba", "bamba", "lfm2", "lfm2_moe")
"""Of their two blocks, only the second is; the first has no attention (rwkv: normalises the stream)."""
SLICE = ("llama", "gpt2", "gpt_neox", "falcon", "bloom", "opt", "gemma2", "minicpm3")


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


IDS = torch.tensor([[5, 17, 60, 33, 9, 71, 28, 44, 12], [9, 9, 80, 41, 3, 66, 7, 52, 19]])


def seen(lm: OpenModel, names: list[str]) -> dict[str, torch.Tensor]:
    batch = lm._pad([row.tolist() for row in IDS], [[], []])
    with torch.no_grad():
        return lm.trace(batch, names)


def check_block(lm: OpenModel, i: int) -> None:
    known = places(lm.module)
    parts = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    names = [f"blocks.{i}.hook_{part}" for part in parts if f"blocks.{i}.hook_{part}" in known]
    at = {name.rpartition("hook_")[2]: value for name, value in seen(lm, names).items()}
    near = {"rtol": 0.0, "atol": 1e-5 * float(at["resid_post"].abs().max())}
    torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"], **near)
    if "resid_mid" in at:
        torch.testing.assert_close(at["resid_mid"] - at["resid_pre"], at["attn_out"], **near)
        torch.testing.assert_close(at["resid_post"] - at["resid_mid"], at["mlp_out"], **near)
    assert at["attn_out"].abs().max() > 0 and at["mlp_out"].abs().max() > 0


@pytest.mark.parametrize("name", [n if n in SLICE else pytest.param(n, marks=pytest.mark.slow) for n in ZOO])
def test_sites_are_what_the_block_adds_or_are_not_there(name: str) -> None:
    lm = build(name)
    found = [i for i, parts in enumerate(additions(lm.module)) if parts.attention is not None]
    assert found == ([] if name in NONE else [1] if name in ONE_BLOCK else [0, 1])
    for i in found:
        check_block(lm, i)
    if not found:
        with pytest.raises(CapabilityError, match="hook_attn_out' is no site"):
            lm.trace(lm._pad([[5, 6]], [[]]), ["blocks.0.hook_attn_out"])


MULTIPLIED = {"granite": {"residual_multiplier": 0.22}, "minicpm3": {"scale_depth": 0.7}}


@pytest.mark.parametrize("name", MULTIPLIED)
def test_a_multiplier_belongs_to_what_is_added(name: str) -> None:
    lm = build(name, **MULTIPLIED[name])
    scale = 0.22 if name == "granite" else 0.7 / 2**0.5
    assert [parts.mlp.scale for parts in additions(lm.module)] == [pytest.approx(scale)] * 2
    check_block(lm, 0)
    check_block(lm, 1)


RAW = {
    "gemma2": "model.layers.{}.self_attn", "gemma3_text": "model.layers.{}.self_attn",
    "olmo2": "model.layers.{}.self_attn", "granite": "model.layers.{}.self_attn",
    "bloom": "transformer.h.{}.self_attention",
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_the_raw_output_is_not_what_is_added(name: str) -> None:
    """Holds against TransformerLens#1648: before the norm behind it, before the multiplier, or with the
    stream in it.
    """
    lm = build(name, **MULTIPLIED.get(name, {}))
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", RAW[name].format(0)]
    before, middle, raw = (seen(lm, names)[site] for site in names)
    assert (middle - before - raw).abs().max() > 0.01 * raw.abs().max()
    check_block(lm, 0)


@pytest.mark.parametrize("name", ["llama", "granite", "opt", "falcon", "gemma2", "bloom"])
def test_an_edit_of_what_is_added_moves_the_stream_by_just_that(name: str) -> None:
    lm = build(name, **MULTIPLIED.get(name, {}))
    added, after = "blocks.1.hook_attn_out", "blocks.1.hook_resid_post"
    plain, shift = seen(lm, [added, "blocks.1.hook_resid_pre"]), torch.linspace(-1, 1, 32)
    with lm.edit({"blocks.1.hook_mlp_out": torch.zeros_like, added: lambda x: x + shift}):
        changed = seen(lm, [after])[after]
    expected = plain["blocks.1.hook_resid_pre"] + plain[added] + shift
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "bloom", *slow("qwen3", "gpt_neox", "falcon", "gemma2", "mixtral", "phi")]
)
def test_heads_add_up_to_attention(name: str) -> None:
    """What attention's projection gives is the sum of what it gives for each head alone."""
    lm = build(name)
    z, out = "blocks.0.attn.hook_z", places(lm.module)["blocks.0.attn.hook_z"].path
    plain = seen(lm, [z, out])
    assert plain[z].shape == (2, 9, 4, plain[z].shape[-1])
    shares = []
    for head in range(4):
        kept = torch.arange(4)[:, None] == head
        with lm.edit({z: lambda value, kept=kept: value * kept}):
            shares.append(seen(lm, [out])[out])
    with lm.edit({z: torch.zeros_like}):
        bias = seen(lm, [out])[out]
    torch.testing.assert_close(sum(shares) - 3 * bias, plain[out], rtol=1e-4, atol=1e-5)


def test_an_overwritten_output_is_seen_as_it_was() -> None:
    """Falcon adds attention's output into the MLP's own memory."""
    lm = build("falcon")
    assert additions(lm.module)[0].mlp.overwritten
    check_block(lm, 0)


@pytest.mark.parametrize("name", ["granite", "opt", "falcon", "llama"])
def test_gradients_reach_what_was_traced(name: str) -> None:
    lm = build(name, **MULTIPLIED.get(name, {}))
    sites = [f"blocks.0.hook_{part}" for part in ("attn_out", "mlp_out", "resid_post")]
    lm.module.get_input_embeddings().weight.requires_grad_(True)
    batch = lm._pad([row.tolist() for row in IDS], [[], []])
    acts = lm.trace(batch, [*sites, "blocks.0.attn.hook_z", "blocks.1.hook_resid_post"])
    loss = acts["blocks.1.hook_resid_post"].square().sum()
    gradients = torch.autograd.grad(loss, [acts[site] for site in [*sites, "blocks.0.attn.hook_z"]])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    torch.testing.assert_close(gradients[1], gradients[2])  # the MLP's share reaches the stream alone


@pytest.mark.parametrize("name", ["llama", "gpt_neox", *slow("gemma2", "falcon", "bloom", "opt", "mixtral")])
def test_half_precision_has_the_same_sites(name: str) -> None:
    whole = additions(build(name).module)
    half = build(name)
    assert additions(OpenModel.from_module(half.module.bfloat16(), half.tokenizer, name).module) == whole
