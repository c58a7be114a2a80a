"""Instruments against slow references in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.core import CapabilityError, Chat, InputError, Quiet
from calibrant.data.rows import Contrast
from calibrant.models.hooks import captured
from calibrant.testbed.circuits import DECOY, INDUCTION, PREVIOUS, open_contrasts, open_plant
from calibrant.understand._cells import Cells, cells_of
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._evidence import INSTRUMENTS, joined, measured, total_effect
from calibrant.understand._patterns import eager

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import zoo

FAMILIES = ["gpt2", "llama", "neox"]


def opened(family, n=6, how="earlier"):
    model = open_plant("induction", {"family": family})
    model.module.double()
    pairs = encode(model, open_contrasts("induction", {"n": str(n), "corrupt": how}))
    return model, pairs, cells_of(model, Cells(site="z", positions="all"), pairs.clean.shape[1])


def margin(model, pairs, ids):
    logits = model.module(ids).logits[:, -1]
    rows = torch.arange(len(ids))
    return logits[rows, pairs.answers] - logits[rows, pairs.foils]


def output_weights(model, family, layer):
    """(H * dh, D) of a layer's attention."""
    if family == "gpt2":
        return model.module.transformer.h[layer].attn.c_proj.weight
    if family == "llama":
        return model.module.model.layers[layer].self_attn.o_proj.weight.T
    return model.module.gpt_neox.layers[layer].attention.dense.weight.T


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_effect_is_output_weights_times_the_slope_of_the_last_norm(family):
    model, pairs, cells = opened(family)
    found = measured(model, pairs, cells, [[at] for at in range(len(cells))], Quiet()).effects["direct"]
    sites = [f"blocks.{layer}.attn.hook_z" for layer in (0, 1)]
    with torch.no_grad(), captured(model.module, sites) as clean:
        margin(model, pairs, pairs.clean)
    with torch.no_grad(), captured(model.module, sites) as corrupt:
        margin(model, pairs, pairs.corrupt)
    with torch.no_grad(), captured(model.module, ["blocks.1.hook_resid_post"]) as acts:
        margin(model, pairs, pairs.clean)
    end = acts["blocks.1.hook_resid_post"].clone().requires_grad_()
    logits = model.unembed(end)[:, -1]
    rows = torch.arange(len(pairs.rows))
    (flow,) = torch.autograd.grad((logits[rows, pairs.answers] - logits[rows, pairs.foils]).sum(), [end])
    for at, cell in enumerate(cells):
        layer, head = int(cell.name[6]), int(cell.name[-1])
        change = (clean[sites[layer]] - corrupt[sites[layer]])[:, :, head]
        size = change.shape[-1]
        written = change @ output_weights(model, family, layer)[head * size : (head + 1) * size]
        assert np.allclose(found[at], (written * flow).sum((1, 2)).detach().numpy(), atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_puts_in_the_mean_over_corrupted_prompts(family):
    model, pairs, cells = opened(family)
    names = {cell.name: at for at, cell in enumerate(cells)}
    chosen = [names[f"layer_{layer}/head_{head}"] for layer, head in (PREVIOUS, INDUCTION)]
    found = measured(model, pairs, cells, [chosen], Quiet()).effects["ablation"][0]
    sites = {"blocks.0.attn.hook_z": PREVIOUS[1], "blocks.1.attn.hook_z": INDUCTION[1]}
    with torch.no_grad(), captured(model.module, list(sites)) as acts:
        margin(model, pairs, pairs.corrupt)

    def mean_of(site, head):
        def change(value):
            value = value.clone()
            value[:, :, head] = acts[site][:, :, head].mean(0)
            return value

        return change

    changes = {site: mean_of(site, head) for site, head in sites.items()}
    with torch.no_grad():
        before = margin(model, pairs, pairs.clean)
    with torch.no_grad(), model.edit(changes):
        after = margin(model, pairs, pairs.clean)
    assert np.allclose(found, (before - after).numpy(), atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_that_to_the_answer_and_the_decoy_has_it(family):
    model, pairs, cells = opened(family)
    effects = measured(model, pairs, cells, [[at] for at in range(len(cells))], Quiet())
    attention = effects.effects["attention"] / effects.total.mean()
    with torch.no_grad(), eager(model.module):
        maps = [model.module(ids, output_attentions=True).attentions for ids in (pairs.clean, pairs.corrupt)]
    for at, cell in enumerate(cells):
        layer, head = int(cell.name[6]), int(cell.name[-1])
        for row in range(len(pairs.rows)):
            (place,) = [p for p, token in enumerate(pairs.clean[row]) if token == pairs.answers[row]]
            one, other = (float(side[layer][row, head, -1, place]) for side in maps)
            assert attention[at, row] == pytest.approx(one - other, abs=1e-6)
    decoy = next(at for at, cell in enumerate(cells) if cell.name == f"layer_{DECOY[0]}/head_{DECOY[1]}")
    assert attention[decoy].mean() > 0.5 and abs(effects.effects["denoise"][decoy]).max() < 1e-6


def test_total_effect_is_the_difference_of_the_readings():
    model, pairs, _ = opened("gpt2")
    with torch.no_grad():
        expected = margin(model, pairs, pairs.clean) - margin(model, pairs, pairs.corrupt)
    assert np.allclose(total_effect(model, pairs), expected.numpy(), atol=1e-9)


def test_heads_of_a_layer_share_an_edit_and_an_empty_list_is_refused():
    model, pairs, cells = opened("gpt2")
    assert len(joined([cells[0], cells[3], cells[7]])) == 2
    assert set(measured(model, pairs, cells, [[0, 3]], Quiet()).effects) == set(INSTRUMENTS)
    with pytest.raises(InputError, match="nothing to measure"):
        measured(model, pairs, cells, [], Quiet())


def random_pairs(model):
    """Three pairs of random ids whose answer is in the prompt."""
    clean = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 2] = (corrupt[:, 2] + 3) % 50 + 2
    rows = tuple(
        Contrast(id=str(at), clean=Chat.ask("a"), corrupt=Chat.ask("b"), answer="x", foil="y")
        for at in range(3)
    )
    answers = clean[:, 4].tolist()
    return Encoded(rows, clean, corrupt, answers, [one + 1 for one in answers])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_every_family_is_measured_or_refused_by_name(name):
    model = zoo.build(name)
    model.module.eval()
    pairs = random_pairs(model)
    try:
        cells = cells_of(model, Cells(site="z", positions="all"), 8)
    except CapabilityError as error:
        assert name in str(error) or type(model.module).__name__ in str(error)
        return
    found = measured(model, pairs, cells, [[0], [0, 1]], Quiet())
    assert set(INSTRUMENTS) - {"attention"} <= set(found.effects)
    assert np.allclose(total_effect(model, pairs), found.total, atol=1e-4)
    single = measured(model, pairs, cells, [[0]], Quiet())
    assert np.allclose(single.effects["gradient"], found.effects["gradient"][:1], atol=1e-5)


@pytest.mark.parametrize("name", ["ctrl", "jamba", "rwkv"])
def test_families_that_change_their_embedding_or_have_no_patterns_are_measured(name):
    """CTRL scales its embedding in place, Jamba has attention in some layers, RWKV calls a state so."""
    model = zoo.build(name)
    model.module.eval()
    cells = cells_of(model, Cells(site="z", positions="all"), 8)
    found = measured(model, random_pairs(model), cells, [[0]], Quiet())
    assert ("attention" in found.effects) is (name != "rwkv")
    assert all(np.isfinite(effect).all() for effect in found.effects.values())
