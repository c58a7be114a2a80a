"""understand.sae: scores by hand, known answers in a model, the control, files, pages, kills and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t

from calibrant.core import CapabilityError, Chat, InputError, NumericalError, Quiet
from calibrant.data.rows import Prompt, Prompts
from calibrant.maths.sparse_coding import Shape, SparseCoder
from calibrant.understand import sae as technique
from calibrant.understand._engine.harvest import Texts, harvest, source_of
from calibrant.understand._sae_files import open_coder
from calibrant.understand._sae_scores import Sites, in_the_model, ratio, reconstruction, tallied
from calibrant.understand.sae import SAE, sae

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from zoo import build

SITE = "blocks.0.hook_resid_post"
SMALL = {"tokens": 3000, "batch": 64, "expansion": 2, "k": 4, "features": 4, "contexts": 2}


@pytest.fixture(scope="module")
def model():
    return build("llama")


def prompts(count=14):
    words = ["a", "stone,", "the", "mill", "&", "<b>barn</b>", "where", "it", "is;", "dusk"]
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(words, 2 + i % 4)) + f" {i}" for i in range(count)]
    return Prompts(rows=tuple(Prompt(id=str(i), prompt=Chat.ask(row)) for i, row in enumerate(rows)))


def texts_of(model, count=8):
    chats = tuple(row.prompt for row in prompts(count))
    return Texts(chats, tuple(tuple(model.prompt_ids(chat)) for chat in chats), "data")


def identity(d):
    coder = SparseCoder(Shape("relu", d, d, 2 * d, shifted=False))
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    coder.encoder.data.copy_(both)
    coder.decoder.data.copy_(both)
    return coder.eval()


def constant(vector):
    coder = SparseCoder(Shape("relu", len(vector), len(vector), 2, shifted=False), mean=vector)
    coder.bias.data.fill_(-1e9)
    return coder.eval()


def scores(model, coder_of, tmp_path, site=SITE, dtype="float32"):
    texts = texts_of(model)
    store = harvest(model, texts, source_of(model, texts, [site], dtype=dtype), tmp_path)
    coder = coder_of(store)
    found = in_the_model(model, coder, texts, range(len(texts.ids)), store, Sites(site, site), Quiet())
    tally = tallied(coder, store, Sites(site, site), torch.arange(len(store)))
    return found | reconstruction(tally), store, texts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba", "bloom", "falcon"])
def test_the_identity_recovers_all(family, tmp_path):
    """Holds against SAELens#518 and #659: MSE 0, all of the variance and of the loss."""
    found, *_ = scores(build(family), lambda store: identity(32), tmp_path)
    for name in ("ce_recovered/zero", "kl_score/zero", "kl_score/mean", "explained_variance", "gamma"):
        if found[name].value is not None:
            assert found[name].value == pytest.approx(1.0, abs=1e-3), name
    assert found["kl_score/zero"].value is not None
    assert found["mse"].value == pytest.approx(0.0, abs=1e-9)
    assert found["l0"].value == pytest.approx(32.0, abs=0.5)


def test_the_mean_recovers_nothing_over_the_mean(model, tmp_path):
    """Holds against SAELens#659 and SAEBench#76: whoever predicts the mean explains nothing."""
    found, *_ = scores(model, lambda store: constant(store.header.mean(SITE).float()), tmp_path)
    assert found["kl_score/mean"].value == pytest.approx(0.0, abs=1e-5)
    assert found["explained_variance"].value == pytest.approx(0.0, abs=1e-5)
    assert found["dead_share"].value == 1.0
    assert found["dead_share"].reason.startswith("features that were on at none of ")
    zero, *_ = scores(model, lambda store: constant(torch.zeros(32)), tmp_path)
    assert zero["kl_score/zero"].value == pytest.approx(0.0, abs=1e-6)
    assert zero["explained_variance"].value < 0


def test_scores_are_those_of_plain_loops(model, tmp_path):
    """Hooks by hand, a text at a time, sums in Python."""
    torch.manual_seed(0)
    coder = SparseCoder(Shape("topk", 32, 32, 64, 8)).eval()
    found, store, texts = scores(model, lambda store: coder, tmp_path)
    centre, block = store.header.mean(SITE).float(), model.module.model.layers[0]

    def run(ids, change):
        def hook(module, args, output):
            stream = output if isinstance(output, torch.Tensor) else output[0]
            changed = stream.clone()
            changed[:, 1:] = change(stream[:, 1:])
            return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = model.module(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        handle.remove()
        return logits

    changes = {
        "clean": lambda x: x,
        "sae": lambda x: coder(x[0])[None],
        "zero": torch.zeros_like,
        "mean": lambda x: centre.expand_as(x),
    }
    ce, kl = dict.fromkeys(changes, 0.0), dict.fromkeys(changes, 0.0)
    for ids in texts.ids:
        assert model.tokenizer.bos_token_id not in ids[1:]
        out = {name: run(ids, change) for name, change in changes.items()}
        for name, logits in out.items():
            ce[name] -= sum(float(logits[at, ids[at + 1]]) for at in range(len(ids) - 1))
            kl[name] += float((out["clean"].exp() * (out["clean"] - logits)).sum())
    for name in ("zero", "mean"):
        recovered = found[f"ce_recovered/{name}"].value
        if recovered is not None:
            assert recovered == pytest.approx((ce[name] - ce["sae"]) / (ce[name] - ce["clean"]), rel=1e-3)
        assert found[f"kl_score/{name}"].value == pytest.approx(1 - kl["sae"] / kl[name], rel=1e-4)


def test_a_ratio_covers_its_truth():
    """Nominal 95 %, 400 samples of 20 texts; and a denominator that may be 0 has none."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        below = rng.exponential(1.0, 20) + 0.5
        found = ratio(0.7 * below + rng.normal(0, 0.3, 20), below, better="none")
        hits += found.low <= 0.7 <= found.high
    assert hits / 400 > 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5
    assert ratio([1.0, 2.0, 1.5], [1.0, -1.0, 0.1], better="none", doubtful="it is 0").value is None


def test_a_whole_run(model, tmp_path):
    result = sae(model, prompts(), SAE(**SMALL), Quiet(0, tmp_path))
    assert {name.partition("/")[0] for name in result.metrics} == {
        "explained_variance", "mse", "l0", "l2_ratio", "gamma", "dead_share", "ce_recovered", "kl_score",
        "random",
    }  # fmt: skip
    assert result.metrics["explained_variance"].value > 0.3
    assert result.metrics["l0"].value <= 4.0
    assert result.metrics["explained_variance"].n == 2
    folder = tmp_path / "artifacts"
    opened = open_coder(folder / "sae")
    x = torch.randn(9, 32)
    assert torch.equal(opened.coder(x), result.coder(x))
    assert opened.metadata["hook_name"] == SITE
    pages = json.loads((folder / "features.json").read_text())
    assert len(pages["features"]) == 4
    assert sum(pages["density_histogram"]["counts"]) + pages["density_histogram"]["never"] == 64
    html = (folder / "features.html").read_text()
    assert "<b>" not in html
    assert "Content-Security-Policy" in html
    assert any("random weights" in caveat for caveat in result.caveats)


def test_pages_show_the_strongest_places(model, tmp_path):
    result = sae(model, prompts(), SAE(**SMALL, control=False), Quiet(0, tmp_path))
    assert result.metrics["explained_variance"].low is None  # of two texts
    pages = json.loads((tmp_path / "artifacts" / "features.json").read_text())["features"]
    densities = [page["density"] for page in pages]
    assert densities == sorted(densities, reverse=True)
    page = pages[0]
    streams = {}
    for number, row in enumerate(prompts()):
        batch = model.encode([row.prompt])
        stream = model.trace(batch, [SITE])[SITE][0].detach().half().float()
        acts = result.coder.encode(stream)[:, page["feature"]]
        acts[0] = 0.0
        streams[number] = (float(acts.max()), int(acts.argmax()))
    best = sorted(streams, key=lambda n: -streams[n][0])[:2]
    assert [c["text"] for c in page["contexts"]] == best
    assert [c["position"] for c in page["contexts"]] == [streams[n][1] for n in best]
    assert page["strongest"] == pytest.approx(streams[best[0]][0], rel=1e-4)


def test_a_seed_repeats_and_a_kill_resumes(model, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrant.models.checkpoint.EVERY", 0.0)
    config = SAE(**SMALL, variant="batchtopk", control=False)

    class Dies(Quiet):
        def progress(self, done, total, note=""):
            if note.startswith("loss") and done == 20:
                raise KeyboardInterrupt

    whole = sae(model, prompts(), config, Quiet(1, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        sae(model, prompts(), config, Dies(1, tmp_path / "cut"))
    resumed = sae(model, prompts(), config, Quiet(1, tmp_path / "cut"))
    assert resumed.metrics == whole.metrics
    assert torch.equal(resumed.coder.encoder, whole.coder.encoder)


@pytest.mark.parametrize("variant", ["relu", "batchtopk", "topk", "jumprelu"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transcoders(family, variant, tmp_path):
    site, target = "blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"
    config = SAE(**SMALL, site=site, target=target, skip=True, variant=variant, control=False)
    result = sae(build(family), prompts(), config, Quiet(0, tmp_path))
    assert result.coder.shape.skip
    assert not result.coder.shape.shifted
    assert result.metrics["kl_score/zero"].value is not None
    opened = open_coder(tmp_path / "artifacts" / "sae")
    assert opened.form == ("sparsify" if variant == "topk" else "saelens")
    assert opened.metadata["hook_name_out"] == target


def test_half_precision_and_heads(tmp_path):
    half = build("qwen2")
    half.module.to(torch.bfloat16)
    site = "blocks.1.attn.hook_z"
    result = sae(
        half, prompts(), SAE(**SMALL, site=site, control=False, stored="bfloat16"), Quiet(0, tmp_path)
    )
    assert result.metrics["explained_variance"].value is not None
    assert (
        json.loads((tmp_path / "artifacts" / "sae" / "cfg.json").read_text())["reshape_activations"]
        == "hook_z"
    )


def test_what_cannot_be_done_is_refused_before_any_training(model, monkeypatch):
    monkeypatch.setattr(technique, "train", lambda *_: pytest.fail("nothing is trained"))
    for config, rows, error, told in (
        (SAE(), Prompts(rows=()), InputError, "no texts"),
        (SAE(), prompts(3), InputError, "at least four"),
        (SAE(site="model.rotary_emb"), prompts(), InputError, "a vector for every token"),
        (SAE(k=65, expansion=2), prompts(), InputError, "k = 65 of 64"),
        (SAE(site="blocks.9.hook_resid_post"), prompts(), CapabilityError, "no site"),
        (
            SAE(site="model.layers.0.mlp.gate_proj", target=SITE),
            prompts(),
            CapabilityError,
            "holds a topk transcoder",
        ),
    ):
        with pytest.raises(error, match=told):
            sae(model, rows, config, Quiet())
    long = Prompts(rows=tuple(Prompt(id=str(i), prompt=Chat.ask(f"{i} " * 200)) for i in range(5)))
    with pytest.raises(InputError, match="0 of 5 texts fit"):
        sae(model, long, SAE(), Quiet())
    model.module.train()
    try:
        with pytest.raises(CapabilityError, match="training mode"):
            sae(model, prompts(), SAE(), Quiet())
    finally:
        model.module.eval()
    broken = build("llama")
    broken.module.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        sae(broken, prompts(), SAE(**SMALL), Quiet())
    with pytest.raises(ValueError, match="skip belongs to a transcoder"):
        SAE(skip=True)
    with pytest.raises(ValueError, match="another site"):
        SAE(site=SITE, target=SITE)


def test_it_runs_where_gradients_are_off_and_says_what_was_seen_before(model):
    with torch.inference_mode():
        result = sae(model, Prompts(rows=prompts(5).rows * 3), SAE(**SMALL, control=False), Quiet())
    assert result.metrics["explained_variance"].value is not None
    assert any("held-out texts are also trained on" in caveat for caveat in result.caveats)


def test_a_target_that_runs_first_is_refused(model):
    config = SAE(**SMALL, site="blocks.1.hook_resid_post", target=SITE, variant="relu", control=False)
    with pytest.raises(CapabilityError, match="runs before"):
        sae(model, prompts(), config, Quiet())


@pytest.mark.slow
def test_null_random_weights_are_no_better_than_themselves():
    """Model and control are both random: over five seeds the difference of EV has an interval around 0."""
    apart = []
    for seed in range(5):
        base = build("gpt2", initializer_range=0.02)
        result = sae(base, prompts(24), SAE(**SMALL), Quiet(seed))
        apart.append(
            result.metrics["explained_variance"].value - result.metrics["random/explained_variance"].value
        )
    reach = float(t.ppf(0.975, 4)) * np.std(apart, ddof=1) / 5**0.5
    assert abs(np.mean(apart)) < max(reach, 0.05)


def test_moments_are_of_the_training_rows_alone(model, tmp_path):
    texts = texts_of(model)
    store = harvest(model, texts, source_of(model, texts, [SITE]), tmp_path)
    held = torch.arange(len(store))[::3]
    rest = torch.tensor([i for i in range(len(store)) if i % 3])
    centre, second = technique._moments(store, SITE, held)
    rows = store.rows(SITE, rest).double()
    torch.testing.assert_close(centre, rows.mean(0))
    assert second == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-9)
