"""Attention on the planted circuit: a decoy looks hardest and does nothing; patterns of many families."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from calibrant.core import CapabilityError, Chat, InputError, Quiet
from calibrant.data.rows import Contrast, Contrasts
from calibrant.models.hooks import edited
from calibrant.models.sites import places
from calibrant.testbed.circuit_weights import HEADS, WIDTH
from calibrant.testbed.circuits import DECOY, INDUCTION, PREVIOUS, open_contrasts, open_plant, truth
from calibrant.understand._contrasts import encode
from calibrant.understand._patterns import patterns
from calibrant.understand.attention import Attention, attention

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

KINDS = ("attention", "norm", "direct", "effect")
TO_ANSWER = Attention(to="answer")


def name(place):
    return f"layer_{place[0]}/head_{place[1]}"


def run(options=None, how="earlier", config=TO_ANSWER, n=24, made=None):
    contrasts = open_contrasts("induction", {"corrupt": how, "n": str(n)})
    return attention(open_plant("induction", options or {}), contrasts, config, made or Quiet())


def of(result, kind):
    return {key.partition("/")[2]: e.value for key, e in result.metrics.items() if key.startswith(f"{kind}/")}


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_decoy_comes_first_by_attention_and_last_by_effect(seed):
    result = run({"seed": seed})
    looks, does = of(result, "attention"), {key: abs(value) for key, value in of(result, "effect").items()}
    assert looks[name(DECOY)] > 0.99 and looks[name(DECOY)] == pytest.approx(max(looks.values()), abs=1e-5)
    assert does[name(DECOY)] == min(does.values()) < 1e-6
    for kind in ("norm", "direct"):
        assert abs(of(result, kind)[name(DECOY)]) < 1e-5
    assert {key for key, value in does.items() if value > 1} == {name(place) for place in truth({})}
    assert result.metrics["found"].value == 2
    assert result.metrics["agreement/attention"].high < 0.2 < result.metrics["agreement/direct"].low
    assert any(
        c.startswith("attention says where a head looks, not what it does: its rank") for c in result.caveats
    )


def auroc(scores, planted):
    wins = [(a > b) + 0.5 * (a == b) for p, a in scores.items() if p in planted for q, b in scores.items()
            if q not in planted]  # fmt: skip
    return float(np.mean(wins))


def test_attention_alone_tells_planted_heads_no_better_than_chance():
    planted = {name(place) for place in truth({})}
    found = {kind: [] for kind in KINDS}
    for seed in range(4):
        result = run({"seed": str(seed)}, n=12)
        for kind in KINDS:
            scores = {key: abs(value) for key, value in of(result, kind).items()}
            found[kind].append(auroc(scores, planted))
    assert np.mean(found["attention"]) < 0.65 < 0.99 < min(*found["effect"], *found["direct"])


def test_the_most_attended_head_is_told_with_its_effect():
    """The largest weight anywhere: three heads attend sharply; ties go to the first, which here does much."""
    result = run(config=Attention(to="largest"))
    looks = of(result, "attention")
    first = max(looks, key=looks.get)
    assert result.metrics["most_attended_effect"].value == pytest.approx(of(result, "effect")[first])
    assert {key for key, value in looks.items() if value > 0.9} == {
        name(p) for p in (PREVIOUS, INDUCTION, DECOY)
    }


def test_where_the_prompts_differ():
    looks = of(run(how="answer", config=Attention()), "attention")
    assert looks[name(INDUCTION)] > 0.99 and looks[name(PREVIOUS)] < 0.01


def test_a_mean_in_place_of_the_corrupted_prompt():
    found = run(config=Attention(to="answer", ablation="mean"))
    does = of(found, "effect")
    assert does[name(INDUCTION)] > 4 and does[name(PREVIOUS)] > 2
    assert abs(does[name(DECOY)]) < 1e-5
    assert found.metrics["total_effect"].value == pytest.approx(6.8, abs=0.5)


def test_nothing_is_testable_where_the_circuit_writes_nothing():
    for seed in ("0", "1", "2"):
        metrics = run({"removed": "1", "seed": seed}).metrics
        found = metrics["found"]
        assert found.value is None or found.value <= 1
        if found.value is None:
            assert "not testable" in found.reason and metrics["effect/layer_0/head_1"].value is None
            assert metrics["agreement/attention"].value is None
        assert metrics["attention/layer_1/head_0"].value is not None


def test_patterns_are_those_of_queries_and_keys():
    """By hand from GPT-2's matrices, in float64."""
    model = open_plant("induction", {})
    pairs = encode(model, open_contrasts("induction", {"n": "4"}))
    seen = patterns(model, pairs.clean, [f"blocks.{i}.attn.hook_z" for i in (0, 1)])
    assert seen.checked
    for layer in (0, 1):
        block = model.module.transformer.h[layer]
        with torch.no_grad():
            stream = model.trace(
                model.encode([row.clean for row in pairs.rows]), [f"blocks.{layer}.hook_resid_pre"]
            )
            state = block.ln_1(stream[f"blocks.{layer}.hook_resid_pre"]).double()
        joint = state @ block.attn.c_attn.weight.double() + block.attn.c_attn.bias.double()
        query, key, _ = (part.unflatten(-1, (HEADS, -1)) for part in joint.split(WIDTH, -1))
        scores = torch.einsum("nhd,nthd->nht", query[:, -1], key) / math.sqrt(WIDTH // HEADS)
        torch.testing.assert_close(seen.weights[layer], scores.softmax(-1), rtol=1e-4, atol=1e-5)


IDS = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(0))
CHECKED = (
    "qwen3", "gpt_neox", "phi3", "gptj", "olmo2", "granite", "cohere2", "gpt_bigcode", "falcon", "mistral",
    "gemma3_text", "gpt_oss", "gpt_neo", "opt", "bloom", "mpt", "mixtral", "llama4_text",
)  # fmt: skip


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma2", *(pytest.param(f, marks=pytest.mark.slow) for f in CHECKED)]
)
def test_weights_times_values_are_what_heads_hand_on(family):
    """GQA, MQA, windows, sinks, ALiBi: the check inside finds its values, and the model is left as it was."""
    model = build(family)
    before = model.module.config._attn_implementation
    logits = model.module(IDS).logits
    sites = [site for site in places(model.module) if site.endswith("hook_z")]
    seen = patterns(model, IDS, sites)
    assert seen.checked and seen.weights.shape == (len(sites), 3, 4, 9)
    assert model.module.config._attn_implementation == before
    assert torch.equal(model.module(IDS).logits, logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert patterns(model, IDS, sites).weights.equal(seen.weights)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("diffllama", "weights times values are not what its heads hand on"),
        pytest.param("rwkv", "it ", marks=pytest.mark.slow),
    ],
)
def test_families_without_a_true_pattern_are_refused_by_name(family, why):
    model = build(family)
    sites = [site for site in places(model.module) if site.endswith("hook_z")]
    with pytest.raises(CapabilityError, match=f"no attention patterns of .*{family}.*{why}"):
        patterns(model, IDS, sites)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepseek_v3", "jamba", "qwen3_next", "lfm2"])
def test_patterns_that_cannot_be_checked_say_so(family):
    model = build(family)
    sites = [site for site in places(model.module) if site.endswith("hook_z")]
    assert not patterns(model, IDS, sites).checked


def letters(n=8):
    rows = [
        Contrast(
            id=str(i), clean=Chat.ask(f"ab{'cdefghij'[i]}xyk"), corrupt=Chat.ask(f"ab{'klmnopqr'[i]}xyk"),
            answer="v", foil="w",
        )
        for i in range(n)
    ]  # fmt: skip
    return Contrasts(rows=tuple(rows))


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("phi", "granite", "opt"))]
)
def test_norm_direct_and_effect_by_hand(family, tmp_path):
    """One pair and head at a time, by hooks: the head's part by zeroing the others at the projection."""
    model, pairs = build(family), letters()
    attention(model, pairs, Attention(level=0.5), Quiet(work=tmp_path))
    stored = json.loads((tmp_path / "artifacts" / "attention.json").read_text())["heads"]
    told = encode(model, pairs)
    read = torch.tensor([told.answers[0], told.foils[0]])
    names = [
        f"blocks.{i}.{part}" for i in (0, 1) for part in ("hook_attn_out", "attn.hook_z", "hook_resid_post")
    ]
    for number in (0, 5):
        ids, other = told.clean[number : number + 1], told.corrupt[number : number + 1]
        with torch.no_grad():
            clean, corrupt = (model.trace(model._pad([row[0].tolist()], [[]]), names) for row in (ids, other))
            whole = model.module(ids).logits[0, -1, read]
        for layer, head in ((0, 1), (1, 3)):
            site, added = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"

            def without(value, head=head):
                value = value.clone()
                value[:, :, head] = 0
                return value

            def swapped(value, head=head, corrupt=corrupt, site=site):
                value = value.clone()
                value[:, :, head] = corrupt[site][:, :, head]
                return value

            kept: list[torch.Tensor] = []
            with (
                torch.no_grad(),
                edited(model.module, {site: without, added: lambda v, kept=kept: (kept.append(v), v)[1]}),
            ):
                model.module(ids)
            part = (clean[added] - kept[0])[0, -1]
            with torch.no_grad():
                rest = model.unembed((clean["blocks.1.hook_resid_post"][0, -1] - part)[None, None])[
                    0, 0, read
                ]
                with edited(model.module, {site: swapped}):
                    ablated = model.module(ids).logits[0, -1, read]
            row = next(one for one in stored if one["head"] == f"layer_{layer}/head_{head}")
            assert row["norm"][number] == pytest.approx(float(part.norm()), rel=1e-3)
            assert row["direct"][number] == pytest.approx(
                float((whole - rest) @ torch.tensor([1.0, -1.0])), abs=1e-4
            )
            assert row["effect"][number] == pytest.approx(
                float((whole - ablated) @ torch.tensor([1.0, -1.0])), abs=1e-4
            )


def test_agreement_is_spearmans(tmp_path):
    result = run(n=12, made=Quiet(work=tmp_path))
    stored = json.loads((tmp_path / "artifacts" / "attention.json").read_text())["heads"]
    effects = np.abs([head["effect"] for head in stored])
    for kind in KINDS[:3]:
        scores = np.abs([head[kind] for head in stored])
        expected = [spearmanr(scores[:, i], effects[:, i]).statistic for i in range(12)]
        assert result.metrics[f"agreement/{kind}"].value == pytest.approx(np.mean(expected), abs=0.02)


@pytest.mark.parametrize("family", ["gemma2", pytest.param("olmo2", marks=pytest.mark.slow)])
def test_behind_a_norm_heads_have_shares_at_its_scale(family, tmp_path):
    """An RMS norm follows attention: shares that add up, held against the norm's own weight and size."""
    model = build(family)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "post_attention" in name:
                weight.copy_(torch.linspace(-0.5, 1.5, len(weight)))
    result = attention(model, letters(), Attention(level=0.5), Quiet(work=tmp_path))
    stored = json.loads((tmp_path / "artifacts" / "attention.json").read_text())["heads"]
    assert any("share at the norm's scale" in caveat for caveat in result.caveats)
    ids = encode(model, letters()).clean[:1]
    names = ["blocks.1.attn.hook_z", "blocks.1.hook_attn_out"]
    with torch.no_grad():
        seen = model.trace(model._pad([ids[0].tolist()], [[]]), names)
        block = model.module.model.layers[1]
        z = seen[names[0]][0, -1]
        maps = block.self_attn.o_proj.weight.view(-1, *z.shape)
        parts = torch.einsum("dhe,he->hd", maps, z)
        gain = block.post_attention_layernorm(parts.sum(0)) / parts.sum(0)
    torch.testing.assert_close((parts * gain).sum(0), seen[names[1]][0, -1], rtol=1e-3, atol=1e-5)
    for head in range(4):
        row = next(one for one in stored if one["head"] == f"layer_1/head_{head}")
        assert row["norm"][0] == pytest.approx(float((parts[head] * gain).norm()), rel=1e-2)


def test_heads_that_do_not_add_up_are_unknown(monkeypatch):
    """A map that is no RMS norm stands behind the heads: what each adds cannot be told."""
    model = build("gemma2")
    for block in model.module.model.layers:
        inner = block.post_attention_layernorm.forward
        monkeypatch.setattr(
            block.post_attention_layernorm, "forward", lambda x, inner=inner: inner(x).tanh() + 0.3
        )
    result = attention(model, letters(), Attention(level=0.5), Quiet())
    assert (
        result.metrics["norm/layer_0/head_0"].value is None is result.metrics["direct/layer_1/head_3"].value
    )
    assert "cannot be told" in result.metrics["norm/layer_0/head_0"].reason
    assert result.metrics["attention/layer_0/head_0"].value is not None
    assert any("2 of 2 layers do not add up their heads" in c for c in result.caveats)


def test_half_precision_and_clusters():
    model = build("llama")
    model.module.bfloat16()
    rows = tuple(row.model_copy(update={"cluster": f"c{i % 4}"}) for i, row in enumerate(letters()))
    result = attention(model, Contrasts(rows=rows), Attention(level=0.5), Quiet())
    assert result.metrics["attention/layer_0/head_0"].clusters == 4
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_an_answer_that_stands_in_no_prompt_is_refused():
    with pytest.raises(InputError, match="stands in 0 of 8 clean prompts"):
        attention(build("llama"), letters(), TO_ANSWER, Quiet())


def test_one_pair_and_training_mode_are_refused():
    with pytest.raises(InputError, match="two pairs, got 1"):
        attention(build("llama"), letters(1), Attention(), Quiet())
    model = build("llama")
    model.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        attention(model, letters(), Attention(), Quiet())


def test_a_model_without_heads_is_refused():
    with pytest.raises(CapabilityError, match=r"has no attn\.hook_z"):
        attention(build("mamba"), letters(), Attention(), Quiet())
