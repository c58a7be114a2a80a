"""Path patching against the two runs of the paper, taken literally; planted paths; what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from calibrant.core import CapabilityError, InputError, Quiet
from calibrant.models.hooks import captured, edited
from calibrant.stats.proportion import proportion_interval
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.paths import path_runs
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.stream import watched, written
from calibrant.understand.path_patch import PathPatching, path_patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

CLEAN = torch.tensor([[5, 17, 60, 33, 9, 71], [9, 9, 80, 41, 3, 66]])
CORRUPT = torch.tensor([[5, 18, 60, 33, 9, 71], [9, 44, 80, 41, 3, 66]])
READ = LogitDifference([11, 22], [44, 55])
DEEP = {"gpt2": "n_layer", "falcon": "num_hidden_layers"}


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


class Literal:
    """Wang et al. 2022: hold all heads but the sender, keep what receivers are given, then put that in."""

    def __init__(self, name):
        self.lm = build(name, **{DEEP.get(name, "num_hidden_layers"): 3})
        self.lm.module.double()
        self.graph = graph_of(self.lm.module)
        self.terms = {at: self.writes(ids) for at, ids in (("own", CORRUPT), ("other", CLEAN))}

    def writes(self, ids):
        with torch.no_grad(), watched(self.lm.module, self.graph) as seen:
            self.lm.module(input_ids=ids)
        return written(self.lm.module, self.graph, seen)

    def reading(self, ids):
        logits = self.lm.module(input_ids=ids).logits[:, -1][:, READ.columns]
        return READ(logits, torch.arange(len(ids)))

    def run(self, sender, receiver, through):
        layers, name = self.graph.layers, self.graph.writers[sender]
        reader = self.graph.readers[receiver]
        additions = [f"blocks.{at}.hook_{part}_out" for at in range(3) for part in ("attn", "mlp")]
        with torch.no_grad(), captured(self.lm.module, additions) as plain:
            self.lm.module(input_ids=CORRUPT)
        apart = self.terms["other"][:, sender] - self.terms["own"][:, sender]
        changes = {}
        for site in additions:
            held = plain[site].clone()
            layer, attention = int(site.split(".")[1]), "attn" in site
            if (name.startswith(f"a{layer}.") and attention) or (name == f"m{layer}" and not attention):
                held = held + apart
            elif not attention and through:
                continue
            changes[site] = lambda value, held=held: held
        if name == "input":
            changes["blocks.0.hook_resid_pre"] = lambda value: value + apart
        if reader.kind == "logits":
            with torch.no_grad(), edited(self.lm.module, changes):
                return self.reading(CORRUPT)
        layer = reader.layer
        if reader.kind == "m":
            site = f"blocks.{layer}.hook_mlp_out"
            held = changes.pop(site, None)
            with torch.no_grad(), edited(self.lm.module, changes), captured(self.lm.module, [site]) as given:
                self.lm.module(input_ids=CORRUPT)
            put = {site: lambda value: given[site]}
        else:
            path, columns = layers[layer].heads[reader.kind]
            mine = columns[reader.head].tolist()
            with torch.no_grad(), edited(self.lm.module, changes), captured(self.lm.module, [path]) as given:
                self.lm.module(input_ids=CORRUPT)

            def replace(value):
                value = value.clone()
                value[..., mine] = given[path][..., mine]
                return value

            put = {path: replace}
        with torch.no_grad(), edited(self.lm.module, put):
            return self.reading(CORRUPT)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", *slow("gpt2", "gemma2", "falcon", "qwen3", "gptj")])
def test_paths_are_those_of_two_runs_a_sender(name, through):
    """In float64, up to the norms that many families work out in float32."""
    literal = Literal(name)
    graph = literal.graph
    for receiver in ("a2.h1<q>", "a2.h0<k>", "a1.h0<v>", "m2", "logits"):
        at = [one.name for one in graph.readers].index(receiver)
        senders = list(range(graph.readers[at].upstream))[:: 2 if receiver == "logits" else 1]
        found = path_runs(literal.lm, graph, CORRUPT, CLEAN, senders, [at], through, READ)
        expected = torch.stack([literal.run(sender, at, through) for sender in senders])
        torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
        assert float((found - literal.reading(CORRUPT)).abs().max()) > 1e-3


def run(options, receivers, how="earlier", n=24, **config):
    contrasts = open_contrasts("induction", {"corrupt": how, "n": str(n), "seed": options.get("seed", "0")})
    return path_patch(
        open_plant("induction", options), contrasts, PathPatching(receivers=receivers, **config), Quiet()
    ).metrics


SEEN = {"gpt2": "a1.h2", "llama": "a1.h1", "neox": "a1.h2"}
"""The induction head's key; two query heads share one in Llama."""


@pytest.mark.parametrize("through", ["direct", "mlps"])
@pytest.mark.parametrize(
    ("family", "seed"),
    [
        ("gpt2", 0),
        ("llama", 0),
        *(pytest.param(f, s, marks=pytest.mark.slow) for f in SEEN for s in range(1, 5)),
    ],
)
def test_the_planted_path_goes_through_the_key_alone(family, seed, through):
    options, head = {"family": family, "seed": str(seed)}, SEEN[family]
    count = 32 if family == "llama" else 12  # its corrupted readings vary more from pair to pair
    key = run(options, (f"{head}<k>",), n=count, through=through)
    for way in ("denoise", "noise"):
        assert key[f"{way}/a0.h1"].value > 0.9
        others = [abs(e.value) for k, e in key.items() if k.startswith(f"{way}/") and k != f"{way}/a0.h1"]
        assert max(others) < 0.25  # the present word, and where it stands, are read as keys, too
    for receivers in (("a1.h2<q>",), (f"{head}<v>",), ("logits",)):
        metrics = run(options, receivers, n=count, through=through, senders=("a0.h1",))
        assert all(abs(metrics[f"{way}/a0.h1"].value) < 0.1 for way in ("denoise", "noise"))


def test_the_induction_head_writes_straight_to_the_answer():
    metrics = run({}, ("logits",))
    assert all(metrics[f"{way}/a1.h2"].value > 0.9 for way in ("denoise", "noise"))
    assert metrics["found/denoise"].value == metrics["found/noise"].value == 1


@pytest.mark.parametrize("seeds", [(0, 1), pytest.param(range(2, 14), marks=pytest.mark.slow)])
def test_nothing_is_found_where_nothing_is_written_or_all_is_random(seeds):
    """Were finds made in a third of them, none in 24 would be a chance of .01 %."""
    false = cases = 0
    for seed in seeds:
        for null in ({"removed": "1"}, {"null": "random"}):
            metrics = run({**null, "seed": str(seed)}, ("a1.h2<k>", "a1.h2<v>", "logits"), n=12)
            false += bool(metrics["found/denoise"].value or metrics["found/noise"].value)
            cases += 1
    assert false == 0
    assert len(seeds) < 12 or proportion_interval(false, cases)[1] < 0.2


def test_a_path_through_an_mlp_is_seen_on_that_way_alone():
    """A head that writes for an MLP, which writes the answer: nothing on the direct way, all through MLPs."""
    model = open_plant("induction", {"negative": "1"})
    layer = model.module.transformer.h[2]
    with torch.no_grad():
        output = model.module.get_output_embeddings().weight / 1.2
        hidden = torch.linalg.qr(torch.randn(192, 25, generator=torch.Generator().manual_seed(5)))[0].T
        hidden = hidden - hidden.mean(1, keepdim=True)
        turn = hidden.T @ output  # what is written along an output vector goes along a hidden one instead
        attention = model.module.transformer.h[1].attn.c_proj.weight
        attention[64:96] = attention[64:96] @ output.T @ hidden
        layer.attn.c_proj.weight[128:160] = 0  # the negative head
        layer.mlp = torch.nn.Linear(192, 192, bias=False).eval()
        layer.mlp.weight.copy_(turn.T / (192 / 2) ** 0.5)
    contrasts = open_contrasts("induction", {"n": "16"})
    shares = {
        through: path_patch(model, contrasts, PathPatching(senders=("a1.h2",), through=through), Quiet())
        .metrics["denoise/a1.h2"].value
        for through in ("direct", "mlps")
    }  # fmt: skip
    assert abs(shares["direct"]) < 0.25 and shares["mlps"] > 0.8


def test_a_head_is_its_query_key_and_value():
    every = ("a1.h2<q>", "a1.h2<k>", "a1.h2<v>")
    whole, parts = run({}, ("a1.h2",), n=6), run({}, every, n=6)
    assert whole["noise/a0.h1"].value == parts["noise/a0.h1"].value


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"no receiver 'a7.h2<k>'"):
        run({}, ("a7.h2<k>",))
    with pytest.raises(InputError, match="fewer than heads"):
        run({"family": "llama"}, ("a1.h5",))
    with pytest.raises(InputError, match=r"no sender 'a0.h9'"):
        run({}, ("logits",), senders=("a0.h9",))
    with pytest.raises(InputError, match=r"'a1.h0' comes before no receiver"):
        run({}, ("a1.h2<k>",), senders=("a1.h0",))
    with pytest.raises(InputError, match="comes before no receiver"):
        run({}, ("a0.h0<q>",), senders=("m0",))
    with pytest.raises(ValidationError, match="at least one receiver"):
        PathPatching(receivers=())
    with pytest.raises(ValidationError, match="name each place once"):
        PathPatching(receivers=("m0", "m0"))


@pytest.mark.parametrize("name", ["olmo2", "mamba", "gpt_oss"])
def test_a_family_without_a_graph_is_refused_by_name(name):
    with pytest.raises(CapabilityError, match="no graph of edges for"):
        graph_of(build(name).module)


def test_effects_are_kept_pair_by_pair(tmp_path):
    contrasts = open_contrasts("induction", {"n": "6"})
    config = PathPatching(receivers=("a1.h2<k>",), senders=("a0.h1", "m0"))
    result = path_patch(open_plant("induction", {}), contrasts, config, Quiet(work=tmp_path))
    assert (tmp_path / "artifacts" / "effects.json").exists()
    assert {key for key in result.metrics if key.startswith("noise/")} == {"noise/a0.h1", "noise/m0"}
    assert np.isfinite([e.value for key, e in result.metrics.items() if key.startswith("noise/")]).all()
