"""AtP*, RelP and parts of path patching as instruments: planted heads, by hand, models that they refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.core import Quiet
from calibrant.models.hooks import captured, edited
from calibrant.stats.max_statistic import max_sign_flip
from calibrant.testbed.circuits import INDUCTION, PREVIOUS, open_contrasts, open_plant
from calibrant.understand._cells import Cells, cells_of
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._methods import METHODS, method_sweeps, methods_of, sweep_of
from calibrant.understand._slopes import Dropped
from calibrant.understand.path_patch import PathPatching, path_patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import zoo


def swept(model, contrasts, site="z"):
    """Cell names, method -> (C,) shares, and the sweeps."""
    pairs = encode(model, contrasts)
    cells = cells_of(model, Cells(site=site, positions="all"), pairs.clean.shape[1])
    found = method_sweeps(model, pairs, cells, site, 0.05, Quiet())
    readings = []
    for ids in (pairs.clean, pairs.corrupt):
        with torch.no_grad():
            logits = model.module(ids).logits[:, -1].double()
        rows = torch.arange(len(ids))
        readings.append(logits[rows, pairs.answers] - logits[rows, pairs.foils])
    total = float((readings[0] - readings[1]).mean())
    return [c.name for c in cells], {name: one.effects.mean(1) / total for name, one in found.items()}, found


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_each_part_of_path_patching_finds_the_head_that_works_by_that_way(family):
    model = open_plant("induction", {"family": family})
    names, shares, found = swept(model, open_contrasts("induction", {"n": "12"}))
    assert tuple(found) == METHODS
    writes, keyed = (names.index(f"layer_{layer}/head_{head}") for layer, head in (INDUCTION, PREVIOUS))
    for name, right in (("path_logits", writes), ("path_heads", keyed)):
        rest = np.delete(shares[name], right)
        assert shares[name][right] > 0.8 and np.abs(rest).max() < 0.2
        assert found[name].chances[right] <= 0.05
    last = [at for at, name in enumerate(names) if name.startswith("layer_1/")]
    assert not shares["path_heads"][last].any()  # no later head: 0, not rounding
    for name in ("atp_star", "relp"):
        assert set(np.argsort(-np.abs(shares[name]))[:2]) == {writes, keyed}


def test_direct_paths_are_those_of_the_technique():
    model, contrasts = open_plant("induction", {}), open_contrasts("induction", {"n": "6"})
    names, shares, _ = swept(model, contrasts)
    metrics = path_patch(model, contrasts, PathPatching()).metrics
    for name, share in zip(names, shares["path_logits"], strict=True):
        layer, head = name.removeprefix("layer_").split("/head_")
        assert share == pytest.approx(metrics[f"noise/a{layer}.h{head}"].value, abs=1e-4)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_what_a_layer_adds_is_put_into_the_last_stream_alone(site):
    model = zoo.build("llama")
    model.module.double()
    clean = torch.tensor([[5, 17, 60, 33, 9, 71], [9, 9, 80, 41, 3, 66]])
    corrupt = torch.tensor([[5, 18, 60, 33, 9, 71], [9, 44, 80, 41, 3, 66]])
    pairs = Encoded((), clean, corrupt, [11, 22], [44, 55])
    cells = cells_of(model, Cells(site=site, positions="all"), 6)
    found = method_sweeps(model, pairs, cells, site, 0.05, Quiet())["path_logits"].effects
    rows = torch.arange(2)

    def reading():
        logits = model.module(clean).logits[:, -1]
        return logits[rows, pairs.answers] - logits[rows, pairs.foils]

    for at, cell in enumerate(cells):
        acts = []
        for ids in (clean, corrupt):
            with torch.no_grad(), captured(model.module, [cell.edit.site]) as seen:
                model.module(ids)
            acts.append(seen[cell.edit.site].clone())
        end = f"blocks.{len(cells) - 1}.hook_resid_post"
        put = {end: lambda value, acts=acts: value + acts[1] - acts[0]}
        with torch.no_grad():
            before = reading()
            with edited(model.module, put):
                after = reading()
        np.testing.assert_allclose(found[at], (before - after).numpy(), atol=1e-4 * float(before.abs().max()))


def test_a_model_that_a_method_refuses_has_no_row_of_it():
    assert methods_of(zoo.build("llama")) == METHODS
    refused = zoo.build("gpt_oss")
    assert "relp" not in methods_of(refused) and "atp_star" in methods_of(refused)
    model = zoo.build("rwkv")
    model.module.eval()
    assert not {"path_logits", "path_heads"} & set(methods_of(model))


def test_sizes_are_found_by_their_parts_and_not_because_they_are_above_0():
    """Of 200 tables of noise some 10 have a find; 22 would be a chance of .1 %. Sizes alone have many."""
    rng, false, naive = np.random.default_rng(0), 0, 0
    ids = torch.zeros(12, 6, dtype=torch.long)
    pairs = Encoded((), ids, ids, [], [])
    for _ in range(200):
        drops = rng.standard_normal((2, 3, 6, 12))
        signs = np.sign(drops.mean(-1, keepdims=True))
        one = Dropped((), pairs, (signs * drops).mean(1), np.ones(12), np.zeros(12), drops=drops)
        false += bool((sweep_of(one, 0.05).chances <= 0.05).any())
        naive += bool((max_sign_flip(one.values.mean(0)) <= 0.05).any())
    assert false <= 21 and naive > 60


def test_with_nothing_written_no_method_is_far_from_0():
    """The heads attend as they did; of what they write nothing is left."""
    model = open_plant("induction", {"removed": "1"})
    pairs = encode(model, open_contrasts("induction", {"n": "8"}))
    cells = cells_of(model, Cells(site="z", positions="all"), pairs.clean.shape[1])
    found = method_sweeps(model, pairs, cells, "z", 0.05, Quiet())
    names = [cell.name for cell in cells]
    planted = [names.index(f"layer_{layer}/head_{head}") for layer, head in (INDUCTION, PREVIOUS)]
    for name in METHODS:
        assert np.abs(found[name].effects[planted]).max() < 1e-4
