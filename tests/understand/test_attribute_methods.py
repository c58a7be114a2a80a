"""AtP* and RelP: against slow float64 references, and on plants where the plain slope fails."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from pydantic import ValidationError
from scipy.stats import t as student
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from calibrant.core import CapabilityError, InputError, Quiet
from calibrant.models.hooks import captured, edited
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._cells import Cells, cells_of
from calibrant.understand._contrasts import Encoded
from calibrant.understand._effects import both_ways
from calibrant.understand._engine.gradients import gradients, leaf
from calibrant.understand._engine.patches import Edit
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.relevance import relevance
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand._slopes import Dropped, estimated
from calibrant.understand.attribute import Attribution, attribute

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

CLEAN = torch.tensor([[5, 17, 60, 33, 9, 71], [9, 9, 80, 41, 3, 66]])
CORRUPT = torch.tensor([[5, 18, 60, 33, 9, 71], [9, 44, 80, 41, 3, 66]])
PAIRS = Encoded((), CLEAN, CORRUPT, [11, 22], [44, 55])
READ = LogitDifference(PAIRS.answers, PAIRS.foils)
DEEP = {"gpt2": {"n_layer": 3}, "llama": {"num_hidden_layers": 3}, "gpt_neox": {"num_hidden_layers": 3}}
SITE = "layer_1/head_2"


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def over(seeds: ArrayLike) -> tuple[float, float]:
    """95 % interval of a mean over seeds."""
    values = np.asarray(seeds, float)
    half = student.ppf(0.975, values.size - 1) * values.std(ddof=1) / values.size**0.5
    return values.mean() - half, values.mean() + half


def doubled(name, **changes):
    lm = build(name, **changes)
    lm.module.double()
    return lm


def reading(lm, ids):
    """(N,), with gradients."""
    logits = lm.module(input_ids=ids).logits[:, -1]
    rows = torch.arange(len(ids))
    return logits[rows, PAIRS.answers] - logits[rows, PAIRS.foils]


def replaced(source, columns, value):
    value = value.clone()
    value[..., columns] = source[..., columns]
    return value


# Queries, keys and values as cells


@pytest.mark.parametrize("site", ["q", "k", "v"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", *slow("gpt2", "falcon", "qwen3", "gemma2", "gptj")])
def test_patched_queries_keys_and_values_are_those_of_one_run_a_cell(name, site):
    lm = doubled(name)
    cells = cells_of(lm, Cells(site=site, positions="all"), 6)
    found = both_ways(lm, PAIRS, [(cell.edit,) for cell in cells], Quiet())[0]
    sources = traced(lm, CLEAN, [cell.edit.site for cell in cells])
    for cell, values in zip(cells, found.values, strict=True):
        put = partial(replaced, sources[cell.edit.site], list(cell.edit.columns))
        with torch.no_grad(), edited(lm.module, {cell.edit.site: put}):
            torch.testing.assert_close(reading(lm, CORRUPT), values, rtol=1e-9, atol=1e-9)


def test_columns_that_do_not_exist_are_refused():
    lm = build("llama")
    path = "model.layers.0.self_attn.q_proj"
    source = traced(lm, CLEAN, [path])
    with pytest.raises(InputError, match="no column 32"):
        sweep(lm, CORRUPT, source, [(Edit(path, None, None, (32,)),)], READ)
    z = "blocks.0.attn.hook_z"
    with pytest.raises(InputError, match="made of heads"):
        sweep(lm, CORRUPT, traced(lm, CLEAN, [z]), [(Edit(z, None, None, (1,)),)], READ)


# AtP*


@pytest.mark.parametrize("site", ["q", "k"])
@pytest.mark.parametrize("name", ["llama", *slow("gpt2", "gpt_neox", "qwen3")])
def test_the_fix_of_attention_is_the_slope_by_the_pattern(name, site):
    """A pass a cell with the patched query or key, its pattern, and autograd's gradient by the pattern."""
    lm = doubled(name)
    lm.module.set_attn_implementation("eager")
    cells = cells_of(lm, Cells(site=site, positions="all"), 6)
    found = estimated(lm, PAIRS, cells, site, "atp_star", False, Quiet()).values
    for side, (ids, other) in enumerate(((CORRUPT, CLEAN), (CLEAN, CORRUPT))):
        with edited(lm.module, {"hook_embed": leaf}):
            output = lm.module(input_ids=ids, output_attentions=True)
        rows = torch.arange(len(ids))
        logits = output.logits[:, -1]
        read = logits[rows, PAIRS.answers] - logits[rows, PAIRS.foils]
        flows = torch.autograd.grad(read.sum(), output.attentions)
        sources = traced(lm, other, [cell.edit.site for cell in cells])
        for at, cell in enumerate(cells):
            put = partial(replaced, sources[cell.edit.site], list(cell.edit.columns))
            layer = int(cell.name[6])
            with torch.no_grad(), edited(lm.module, {cell.edit.site: put}):
                moved = lm.module(input_ids=ids, output_attentions=True).attentions[layer]
            slope = ((moved - output.attentions[layer]) * flows[layer]).flatten(1).sum(1)
            expected = (slope if side == 0 else -slope).detach().numpy()
            np.testing.assert_allclose(found[side, at], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z"])
@pytest.mark.parametrize("name", ["gpt2", *slow("llama", "gpt_neox")])
def test_graddrop_is_a_run_a_block_with_that_block_held(name, site):
    lm = doubled(name, **DEEP[name])
    cells = cells_of(lm, Cells(site=site, positions="all"), 6)
    found = estimated(lm, PAIRS, cells, site, "atp_star", False, Quiet())
    sites = list(dict.fromkeys(cell.edit.site for cell in cells))
    clean, corrupt = traced(lm, CLEAN, sites), traced(lm, CORRUPT, sites)
    for block in range(3):
        kept = {}

        def enter(value, kept=kept):
            kept["stream"] = value
            return value

        def leave(value, kept=kept):
            return kept["stream"] + (value - kept["stream"]).detach()

        pre, post = f"blocks.{block}.hook_resid_pre", f"blocks.{block}.hook_resid_post"
        changes = {"hook_embed": leaf, pre: enter, post: leave}
        with edited(lm.module, changes), captured(lm.module, sites) as acts:
            read = reading(lm, CORRUPT)
        flows = torch.autograd.grad(read.sum(), [acts[one] for one in sites], allow_unused=True)
        for at, cell in enumerate(cells):
            flow = flows[sites.index(cell.edit.site)]
            one = (clean[cell.edit.site] - corrupt[cell.edit.site]) * (0 if flow is None else flow)
            one = one if cell.edit.heads is None else one[:, :, list(cell.edit.heads)]
            expected = one.flatten(1).sum(1).numpy()
            if f"blocks.{block}." in cell.edit.site and site != "resid_pre":
                assert np.abs(expected).max() < 1e-12
            np.testing.assert_allclose(found.drops[0, block, at], expected, rtol=1e-8, atol=1e-10)
    sizes = np.abs(found.drops.mean(-1)).sum(1) / (3 if site == "resid_pre" else 2)
    np.testing.assert_allclose(np.abs(found.values.mean(-1)), sizes, rtol=1e-10)


HEADS = Attribution(site="z", positions="all", top=2, sample=2)


def run(model, config, n=20, seed=0):
    contrasts = open_contrasts("induction", {"n": str(n), "seed": str(seed)})
    return attribute(model, contrasts, config, Quiet()).metrics


@pytest.mark.parametrize(
    ("family", "seeds"), [("gpt2", 4), ("llama", 3), pytest.param("neox", 12, marks=pytest.mark.slow)]
)
def test_a_saturated_key_is_missed_by_the_slope_and_found_by_the_fix(family, seeds):
    """At the clean run the induction head's pattern is 1 and 0: its softmax has no slope."""
    name = {"llama": "layer_1/head_1"}.get(family, SITE)
    keys = HEADS.model_copy(update={"site": "k"})
    shares = {"atp": [], "atp_star": [], "exact": []}
    for seed in range(seeds):
        model = open_plant("induction", {"family": family, "seed": str(seed)})
        for method in ("atp", "atp_star"):
            config = keys.model_copy(update={"method": method})
            metrics = run(model, config, n=32, seed=seed)
            shares[method].append(metrics[f"noise/{name}"].value)
            if method == "atp_star":
                shares["exact"].append(metrics[f"exact/noise/{name}"].value)
                assert metrics["found/noise"].value == 1
    assert over(shares["exact"])[0] > 0.9
    assert over(shares["atp"])[1] < 0.1 and over(shares["atp_star"])[0] > 0.6


def cancelling(seed):
    """Block 2 takes away what the induction head writes, and more, as long as it is little."""
    lm = open_plant("induction", {"negative": "1", "seed": str(seed)})
    module, width, slope = lm.module, 0.1, 1.5
    with torch.no_grad():
        module.transformer.h[2].attn.c_proj.weight.zero_()
        output = module.get_output_embeddings().weight / 1.2
        count = len(output)
        with torch.random.fork_rng(devices=[]):
            mlp = GPT2MLP(2 * count, GPT2Config(n_embd=192, activation_function="relu", resid_pdrop=0.0))
        mlp.c_fc.weight.copy_(torch.cat([output, output]).T / (192 / 2) ** 0.5)
        mlp.c_fc.bias.copy_(torch.cat([torch.full((count,), width), torch.full((count,), -width)]))
        mlp.c_proj.weight.copy_(torch.cat([-slope * output, slope * output]))
        mlp.c_proj.bias.zero_()
        module.transformer.h[2].mlp = mlp.eval()
    return lm


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 16), marks=pytest.mark.slow)])
def test_paths_that_cancel_are_missed_by_the_slope_and_found_by_graddrop(seeds):
    """Directly the head adds to the answer; by block 2 it takes as much away, but only at first."""
    slopes, sizes, exact, ranks = [], [], [], []
    for seed in seeds:
        model = cancelling(seed)
        for method, found in (("atp", slopes), ("atp_star", sizes)):
            metrics = run(model, HEADS.model_copy(update={"method": method}), seed=seed)
            found.append(metrics[f"denoise/{SITE}"].value)
        exact.append(metrics[f"exact/denoise/{SITE}"].value)
        ranks.append(metrics["found/denoise"].value)
    assert over(exact)[0] > 0.9
    assert over(slopes)[1] < 0.25 and over(sizes)[0] > 0.5
    assert min(ranks) >= 1


def test_with_two_blocks_none_is_left_out_and_signs_stay():
    contrasts = open_contrasts("induction", {"n": "8"})
    result = attribute(
        open_plant("induction", {}), contrasts, HEADS.model_copy(update={"method": "atp_star"}), Quiet()
    )
    plain = run(open_plant("induction", {}), HEADS, n=8)
    assert any("GradDrop needs three blocks" in note for note in result.caveats)
    for name, one in plain.items():
        if name.startswith(("denoise/", "noise/")) and one.value is not None:
            assert result.metrics[name].value == pytest.approx(one.value, abs=1e-5)
            assert (result.metrics[name].low is None) == (one.low is None)


def test_finds_of_sizes_are_corrected_for_every_block_left_out():
    """Of 300 tables of noise some 15 have a find; 26 would be a chance of .5 %. A strong cell is found."""
    rng, false, hits = np.random.default_rng(0), 0, 0
    cells = cells_of(build("llama"), Cells(site="mlp_out", positions="all"), 6)
    pairs = Encoded((), CLEAN, CORRUPT, [], [])
    for _ in range(300):
        drops = rng.standard_normal((2, 4, 2, 12)) * rng.uniform(0.5, 2, (1, 4, 2, 1))
        one = Dropped(cells, pairs, np.abs(drops).sum(1), np.ones(12), np.zeros(12), drops=drops)
        false += bool((one.chances(0.05, 0)[0] <= 0.05).any())
        drops[0, 1, 0] += 8
        hits += bool(one.chances(0.05, 0)[0][0, 0] <= 0.05)
    assert false <= 25 and hits == 300


# RelP


def scaled(stream, gain, centre):
    """A norm with its scale frozen."""
    moved = stream - stream.mean(-1, keepdim=True) if centre else stream
    return moved * (moved.detach().square().mean(-1, keepdim=True) + EPSILON).rsqrt() * gain


EPSILON = 1e-5


def halves(one, two):
    """A product, half of whose relevance goes to either."""
    return (one * two.detach() + one.detach() * two) / 2


def ratio(pre, function):
    return pre * (function(pre) / (pre + torch.where(pre < 0, -1e-6, 1e-6))).detach()


def masked_softmax(scores, frozen):
    length = scores.shape[-1]
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return scores.softmax(-1).detach() if frozen else scores.softmax(-1)


def llama_by_hand(module, stream, frozen):
    """Logits of a Llama of 4 heads, of which two share keys, under the rules of RelP."""
    inner, length = module.model, stream.shape[1]
    cos, sin = inner.rotary_emb(stream, torch.arange(length)[None])

    def turned(x):
        left, right = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]

    for block in inner.layers:
        normed = scaled(stream, block.input_layernorm.weight, False)
        q, k, v = (
            (normed @ part.weight.T).view(*normed.shape[:2], -1, 8).transpose(1, 2)
            for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        )
        k, v = turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        pattern = masked_softmax(turned(q) @ k.transpose(-1, -2) / 8**0.5, frozen)
        z = (pattern @ v).transpose(1, 2).flatten(2)
        stream = stream + z @ block.self_attn.o_proj.weight.T
        normed = scaled(stream, block.post_attention_layernorm.weight, False)
        gate = ratio(normed @ block.mlp.gate_proj.weight.T, torch.nn.functional.silu)
        stream = stream + halves(gate, normed @ block.mlp.up_proj.weight.T) @ block.mlp.down_proj.weight.T
    return scaled(stream, inner.norm.weight, False) @ module.lm_head.weight.T


def gpt2_by_hand(module, stream, frozen):
    """Logits of a GPT-2 of 4 heads under the rules of RelP."""
    inner = module.transformer
    for block in inner.h:
        normed = scaled(stream, block.ln_1.weight, True) + block.ln_1.bias
        joint = normed @ block.attn.c_attn.weight + block.attn.c_attn.bias
        q, k, v = (part.view(*part.shape[:2], 4, 8).transpose(1, 2) for part in joint.chunk(3, -1))
        pattern = masked_softmax(q @ k.transpose(-1, -2) / 8**0.5, frozen)
        z = (pattern @ v).transpose(1, 2).flatten(2)
        stream = stream + z @ block.attn.c_proj.weight + block.attn.c_proj.bias
        normed = scaled(stream, block.ln_2.weight, True) + block.ln_2.bias
        pre = normed @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        stream = stream + ratio(pre, block.mlp.act) @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return (scaled(stream, inner.ln_f.weight, True) + inner.ln_f.bias) @ module.lm_head.weight.T


BY_HAND = {"llama": (llama_by_hand, {"rms_norm_eps": EPSILON}), "gpt2": (gpt2_by_hand, {})}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_relevance_is_that_of_the_rules_written_out(name, frozen):
    by_hand, changes = BY_HAND[name]
    lm = doubled(name, **changes)
    site = "blocks.0.hook_resid_pre"
    with relevance(lm.module, frozen=frozen):
        readings, flows = gradients(lm, CLEAN, [site], READ)
    stream = traced(lm, CLEAN, [site])[site].clone().requires_grad_()
    logits = by_hand(lm.module, stream, frozen)[:, -1]
    rows = torch.arange(2)
    read = logits[rows, PAIRS.answers] - logits[rows, PAIRS.foils]
    torch.testing.assert_close(read, reading(lm, CLEAN), rtol=1e-4, atol=1e-4)
    expected = torch.autograd.grad(read.sum(), stream)[0]
    torch.testing.assert_close(flows[site], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    plain = gradients(lm, CLEAN, [site], READ)
    assert torch.equal(plain[0], readings)  # forward passes are the model's own
    assert float((plain[1][site] - expected).abs().max()) > 0.05 * float(expected.abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "gemma2",
        "gpt_neox",
        "qwen3",
        *slow("qwen2", "gemma3_text", "phi3", "falcon", "bloom", "olmo2", "mixtral"),
    ],
)
def test_families_are_measured_and_left_as_they_were(name):
    lm = build(name)
    felt = [weight.requires_grad for weight in lm.module.parameters()]
    before = traced(lm, CLEAN, ["blocks.1.hook_resid_post"])
    cells = cells_of(lm, Cells(site="resid_pre", positions="each"), 6)
    for frozen in (False, True):
        found = estimated(lm, PAIRS, cells, "resid_pre", "relp", frozen, Quiet())
        assert np.isfinite(found.values).all() and np.abs(found.values).max() > 0
    assert felt == [weight.requires_grad for weight in lm.module.parameters()]
    assert not any(child._forward_hooks for child in lm.module.modules())
    torch.testing.assert_close(traced(lm, CLEAN, ["blocks.1.hook_resid_post"]), before)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen2_moe", *slow("deepseek_v3", "llama4_text", "mamba")])
def test_what_no_rule_covers_is_refused_by_name(name):
    lm = build(name)
    refused = pytest.raises(CapabilityError, match=r"no RelP for .*: relevance does not add up")
    with refused, relevance(lm.module, frozen=False):
        pass


def test_a_saturated_norm_is_overrated_by_the_slope_and_not_by_relevance():
    """The induction head's write is most of the last norm at the clean run, whose scale RelP keeps."""
    slopes, kept = [], []
    for seed in range(6):
        model = open_plant("induction", {"seed": str(seed)})
        slopes.append(run(model, HEADS, seed=seed)[f"noise/{SITE}"].value)
        kept.append(run(model, HEADS.model_copy(update={"method": "relp"}), seed=seed)[f"noise/{SITE}"].value)
    assert over(slopes)[1] < 0.95 and over(np.abs(np.array(kept) - 1))[1] < 0.1


@pytest.mark.parametrize("method", ["atp_star", "relp"])
@pytest.mark.parametrize("site", ["z", "k"])
def test_nothing_is_testable_where_the_circuit_writes_nothing(method, site):
    config = HEADS.model_copy(update={"method": method, "site": site})
    metrics = run(open_plant("induction", {"removed": "1", "negative": "1"}), config)
    assert metrics["found/denoise"].value is None
    assert all(e.value is None for key, e in metrics.items() if key.startswith(("denoise/", "exact/")))


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(ValidationError, match="a rule of relp"):
        Attribution(pattern="frozen")
    with pytest.raises(ValidationError, match="no k carries anything"):
        Attribution(method="relp", pattern="frozen", site="k", positions="all")
    with pytest.raises(ValidationError, match=r"heads \(q\)"):
        Attribution(site="q")
