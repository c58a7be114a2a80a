"""The wing on two models that nobody here made: Gemma 3 270M and Qwen2.5-Coder 0.5B Instruct, in float32.

They are not shipped, and too large for every commit: ``-m real_model``, with their folders in
``$CALIBRANT_MODELS``. ``studies/real_circuits.toml`` has the long measurements.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibrant.core import Chat, Quiet
from calibrant.models.anatomy import anatomy
from calibrant.models.hooks import edited
from calibrant.models.open_model import OpenModel
from calibrant.models.prompts import whole_rows
from calibrant.models.sites import places
from calibrant.models.variants import plain, untrained
from calibrant.testbed.contrasts import open_contrasts
from calibrant.understand._contrasts import encode
from calibrant.understand._engine.patches import Edit
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand._evidence import total_effect
from calibrant.understand.attribute import Attribution, attribute

pytestmark = pytest.mark.real_model
FOLDERS = ("gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
TASKS = ({"ioi": {}}, {"greater_than_year": {}}, {"repeat": {}}, {"repeat": {"corrupt": "answer"}})


@pytest.fixture(scope="module", params=FOLDERS)
def model(request, real_models):
    return plain(OpenModel.from_folder(real_models / request.param))


def pairs_of(model, name, n=8, **options):
    return encode(model, open_contrasts(name, {"n": str(n), **options}))


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_they_do_the_english_tasks(model, task):
    ((name, options),) = task.items()
    pairs = pairs_of(model, name, 16, **options)
    effects = total_effect(model, pairs)
    assert (effects > 0).mean() >= 15 / 16


def test_no_effect_without_repetition_and_without_training(model):
    """The mean effect is within three of its standard errors of 0, and far below that of repetition."""
    repeated = total_effect(model, pairs_of(model, "repeat", 16)).mean()
    null = total_effect(model, pairs_of(model, "repeat", 16, repeat="0"))
    drawn = total_effect(untrained(model), pairs_of(model, "repeat", 16))
    for effects in (null, drawn):
        assert abs(effects.mean()) < 3 * effects.std(ddof=1) / 4
        assert abs(effects.mean()) < repeated / 4


def test_what_blocks_add_adds_up(model):
    """resid_mid - resid_pre == attn_out, resid_post - resid_mid == mlp_out, in all layers."""
    ids, layers = pairs_of(model, "ioi", 2).clean, range(len(anatomy(model.module).blocks))
    parts = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    names = [f"blocks.{layer}.hook_{part}" for layer in layers for part in parts]
    with torch.no_grad():
        seen = model.trace(whole_rows(ids), names)
    for layer in layers:
        pre, attention, mid, mlp, post = (seen[f"blocks.{layer}.hook_{part}"] for part in parts)
        scale = post.abs().max()
        assert (mid - pre - attention).abs().max() <= 1e-5 * scale
        assert (post - mid - mlp).abs().max() <= 1e-5 * scale


def test_a_sweep_skips_and_gives_what_whole_passes_give(model):
    pairs = pairs_of(model, "ioi", 2)
    read = LogitDifference(pairs.answers, pairs.foils)
    last = len(anatomy(model.module).blocks) - 1
    edits = [
        Edit("blocks.1.attn.hook_z", None, (0,)),
        Edit(f"blocks.{last // 2}.hook_resid_pre", (-1,), None),
        Edit(f"blocks.{last}.hook_mlp_out", (5, -1), None),
    ]
    sources = traced(model, pairs.corrupt, [edit.site for edit in edits])
    found = sweep(model, pairs.clean, sources, [(edit,) for edit in edits], read)
    assert found.how == "from the patch on"
    for edit, values in zip(edits, found.values, strict=True):

        def put(value, edit=edit):
            value, where = value.clone(), slice(None) if edit.positions is None else list(edit.positions)
            source = sources[edit.site]
            if edit.heads is None:
                value[:, where] = source[:, where]
            else:
                value[:, :, list(edit.heads)] = source[:, :, list(edit.heads)]
            return value

        with torch.no_grad(), edited(model.module, {edit.site: put}):
            logits = model.module(pairs.clean).logits[:, -1]
        rows = torch.arange(len(logits))
        expected = logits[rows, pairs.answers] - logits[rows, pairs.foils]
        torch.testing.assert_close(values.float(), expected, rtol=1e-3, atol=1e-3)


def test_few_heads_carry_induction(model):
    """By gradient, audited: of all heads a handful makes most of the effect, in both models."""
    result = attribute(
        model,
        open_contrasts("repeat", {"n": "8"}),
        Attribution(site="z", positions="all", top=5, sample=5),
        Quiet(),
    )
    exact = {
        name: metric.value for name, metric in result.metrics.items() if name.startswith("exact/denoise")
    }
    assert len(exact) >= 5 and max(exact.values()) > 0.2
    heads = sum(site.heads for name, site in places(model.module).items() if name.endswith("hook_z"))
    every = [m.value for name, m in result.metrics.items() if name.startswith("denoise/layer_")]
    assert len(every) == heads
    assert np.sum(np.abs(every) > 0.1) < heads / 4


def test_a_chat_model_is_read_with_and_without_its_template(real_models):
    model = OpenModel.from_folder(real_models / FOLDERS[1])
    chat = Chat.ask("The sky is")
    bare = plain(model).prompt_ids(chat)
    assert len(bare) == 3 and len(model.prompt_ids(chat)) > 15
