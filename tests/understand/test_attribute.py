"""Attribution patching: gradients against finite differences, planted heads, what the audit catches."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.core import CapabilityError, NumericalError, Quiet
from calibrant.testbed.circuits import INDUCTION, PREVIOUS, open_contrasts, open_plant, truth
from calibrant.understand._engine.gradients import gradients
from calibrant.understand._engine.patches import Edit
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand.attribute import Attribution, attribute

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

HEADS = Attribution(site="z", positions="all", top=4, sample=8)
IDS = torch.tensor([[5, 17, 60, 33, 9, 71], [9, 9, 80, 41, 3, 66]])
READ = LogitDifference([11, 22], [44, 55])


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name", ["llama", "falcon", *slow("gpt2", "gpt_neox", "gemma2", "bloom", "opt", "granite")]
)
def test_a_gradient_is_the_slope_of_a_small_patch(name):
    """In float64: a patch by a ten-thousandth of the way, and the gradient along it."""
    lm = build(name)
    lm.module.double()
    sites = [
        "blocks.0.attn.hook_z",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid_pre",
        "blocks.0.hook_attn_out",
    ]
    reading, flows = gradients(lm, IDS, sites, READ)
    here = traced(lm, IDS, sites)
    way = torch.Generator().manual_seed(0)
    for site in sites:
        step = 1e-4 * torch.randn(here[site].shape, generator=way, dtype=torch.float64)
        found = sweep(lm, IDS, {site: here[site] + step}, [(Edit(site),)], READ)
        slope = (step * flows[site]).flatten(1).sum(1)
        torch.testing.assert_close(found.values[0] - found.base, slope, rtol=2e-2, atol=1e-7)
        torch.testing.assert_close(found.base, reading, rtol=1e-9, atol=1e-9)


def run(options, how="earlier", config=HEADS, n=24):
    contrasts = open_contrasts("induction", {"corrupt": how, "n": str(n)})
    return attribute(open_plant("induction", options), contrasts, config, Quiet())


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_planted_heads_come_first(seed):
    result = run({"seed": seed})
    shares = {key: abs(e.value) for key, e in result.metrics.items() if key.startswith("denoise/")}
    top = sorted(shares, key=shares.get, reverse=True)[:2]
    assert set(top) == {f"denoise/layer_{layer}/head_{head}" for layer, head in truth({})}
    assert max(value for key, value in shares.items() if key not in top) < 0.1


def test_the_audit_shows_where_the_slope_is_wrong():
    """Attention of the previous-token head saturates: its slope at the clean run has the wrong sign."""
    metrics = run({}).metrics
    name = f"layer_{PREVIOUS[0]}/head_{PREVIOUS[1]}"
    assert metrics[f"noise/{name}"].value < 0.3 < 0.9 < metrics[f"exact/noise/{name}"].value
    assert metrics["audit/error/noise"].value > 0.1
    good = f"layer_{INDUCTION[0]}/head_{INDUCTION[1]}"
    assert metrics[f"denoise/{good}"].value == pytest.approx(metrics[f"exact/denoise/{good}"].value, abs=0.15)


def test_a_caveat_names_what_the_estimate_misses():
    config = Attribution(site="z", positions="all", floor=0.5)
    told = [caveat for caveat in run({}, config=config).caveats if "below it by estimate" in caveat]
    assert len(told) == 1 and f"noise/layer_{PREVIOUS[0]}/head_{PREVIOUS[1]}" in told[0]
    high = run({}, config=config.model_copy(update={"floor": 2.0})).caveats
    assert not any("below it by estimate" in caveat for caveat in high)


def test_what_lies_outside_the_strongest_is_bounded():
    """With one cell audited of twelve, the other planted head is missed, and the bound says so."""
    config = Attribution(site="z", positions="all", top=1, sample=12)
    missed = run({}, config=config).metrics["audit/missed/denoise"]
    assert missed.value == pytest.approx(1.0, abs=0.05) and missed.n == 11
    assert run({}, config=config.model_copy(update={"top": 12})).metrics["audit/missed/denoise"].value == 0


def test_nothing_is_testable_where_the_circuit_writes_nothing():
    metrics = run({"removed": "1"}).metrics
    assert metrics["found/denoise"].value is None and "not testable" in metrics["audit/error/noise"].reason
    assert all(e.value is None for key, e in metrics.items() if key.startswith(("denoise/", "exact/")))


def test_positions_add_up():
    """By linearity, what each position does in the stream sums to what all of them do."""
    one = run({}, config=Attribution(site="resid_pre", positions="each"), n=8).metrics
    whole = run({}, config=Attribution(site="resid_pre", positions="all"), n=8).metrics
    for layer in (0, 1):
        parts = [e.value for key, e in one.items() if key.startswith(f"denoise/layer_{layer}/")]
        assert len(parts) == 12 and np.sum(parts) == pytest.approx(
            whole[f"denoise/layer_{layer}"].value, abs=1e-4
        )


def test_a_gradient_that_is_no_number_is_an_error():
    lm = build("llama")
    lm.module.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(NumericalError, match="NaN or infinite"):
        gradients(lm, IDS, ["blocks.0.hook_resid_post"], READ)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_made_whatever_the_caller_switched_off(mode):
    model, contrasts = open_plant("induction", {}), open_contrasts("induction", {"n": "8"})
    with mode():
        inside = attribute(model, contrasts, HEADS, Quiet())
    outside = attribute(model, contrasts, HEADS, Quiet())
    name = "denoise/layer_1/head_2"
    assert inside.metrics[name].value == pytest.approx(outside.metrics[name].value)


def test_a_model_of_inference_mode_is_refused():
    with torch.inference_mode():
        model = open_plant("induction", {})
    with pytest.raises(CapabilityError, match="made in inference mode"):
        attribute(model, open_contrasts("induction", {"n": "4"}), HEADS, Quiet())


def test_what_was_counted_has_no_interval_but_itself():
    missed = run({}, config=HEADS.model_copy(update={"sample": 100})).metrics["audit/missed/denoise"]
    assert missed.method == "counted" and missed.low == missed.value == missed.high
