"""Circuits: what was planted is kept, its complement keeps nothing, and a plain forward pass agrees."""

from __future__ import annotations

import math
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.core import ConfigError, InputError, Quiet, resolve
from calibrant.data.edge_graph import DOUBT, EdgeGraph, ScoredEdge, read_graph, write_graph
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._circuits import largest, strengths, without_dead_ends
from calibrant.understand._engine.edge_runs import masked, wrote
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand.circuit import SIZES, Circuit, circuit
from calibrant.understand.edges import Edges, edges

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

PATH = ("input->a0.h1<v>", "a0.h1->a1.h2<k>", "a1.h2->logits")
WHOLE = (*PATH, "input->a0.h1<q>", "input->a0.h1<k>", "input->a1.h2<q>", "input->a1.h2<v>")
"""Every edge of the planted circuit, whatever the corruption shows of it."""


def graph(kept, layers=2, heads=6, key_value_heads=6):
    """A file that marks these edges, the first strongest."""
    return EdgeGraph(
        layers=layers, heads=heads, key_value_heads=key_value_heads,
        edges=tuple(ScoredEdge(name=n, score=float(len(kept) - i), kept=True) for i, n in enumerate(kept)),
    )  # fmt: skip


def run(given, options=None, how="earlier", n=12, config=Circuit(sizes=(0.02, 1.0))):
    contrasts = open_contrasts("induction", {"corrupt": how, "n": str(n)})
    return circuit(open_plant("induction", options or {}), contrasts, given, config, Quiet())


@pytest.mark.parametrize("how", ["earlier", "answer"])
def test_the_planted_circuit_keeps_all_and_its_complement_nothing(how):
    metrics = run(graph(WHOLE), how=how).metrics
    assert metrics["faithfulness/given"].low > 0.9 and metrics["complement/given"].high < 0.1
    assert metrics["kept/given"].value == 7
    assert metrics["faithfulness/1"].value == pytest.approx(metrics["faithfulness/given"].value)


def test_each_edge_of_the_path_is_needed_and_others_are_idle():
    metrics = run(graph((*PATH, "input->m0", "m0->logits"))).metrics
    assert metrics["least_size"].value == 3 and metrics["idle_edges"].value == 0
    assert all(metrics[f"removal/{name}"].value > 0.9 for name in PATH)
    metrics = run(graph((*PATH, "input->m0", "m0->logits")), config=Circuit(sizes=(1.0,))).metrics
    assert metrics["idle_edges"].value == 2 and abs(metrics["removal/m0->logits"].value) < 0.01
    assert "two sizes" in metrics["cpr"].reason


def test_scored_edges_give_the_circuit_and_areas_are_sums(tmp_path):
    model, pairs = open_plant("induction", {}), open_contrasts("induction", {"n": "12"})
    edges(model, pairs, Edges(top=1, sample=2, draws=10), Quiet(work=tmp_path))
    given = read_graph(tmp_path / "artifacts" / "graph.json")
    other = open_contrasts("induction", {"n": "12", "seed": "1"})
    metrics = circuit(model, other, given, Circuit(), Quiet()).metrics
    assert metrics["faithfulness/0.02"].value > 0.9 > 0.1 > metrics["complement/0.02"].value
    assert metrics["kept/0.02"].value == 3 and metrics["kept/1"].value == 198
    shares = np.array([metrics[f"faithfulness/{size:g}"].value for size in SIZES])
    assert shares[:4] == pytest.approx(0) and shares[-1] == pytest.approx(1)
    logs = np.log10(SIZES) / 3
    areas = {
        "cpr": np.trapezoid(shares, SIZES), "cmd": np.trapezoid(np.abs(1 - shares), SIZES),
        "cpr_log": np.trapezoid(shares, logs), "cmd_log": np.trapezoid(np.abs(1 - shares), logs),
    }  # fmt: skip
    for name, area in areas.items():
        one = metrics[name]
        assert one.value == pytest.approx(area) and one.low <= one.value <= one.high


def test_a_graph_of_another_model_a_torn_one_and_a_foreign_one_are_doubted(tmp_path):
    model, pairs = open_plant("induction", {}), open_contrasts("induction", {"n": "4"})
    edges(model, pairs, Edges(steps=1, top=1, sample=2, draws=10), Quiet(work=tmp_path))
    given = read_graph(tmp_path / "artifacts" / "graph.json")

    def told(model, graph):
        caveats = circuit(model, pairs, graph, Circuit(sizes=(1.0,), removals=0), Quiet()).caveats
        return [caveat for caveat in caveats if caveat.startswith(DOUBT)]

    assert given.model == model.identity.digest and told(model, given) == []
    (other,) = told(open_plant("induction", {"removed": "1"}), given)
    assert "another model" in other and given.model[:12] in other
    (torn,) = told(model, given.model_copy(update={"edges": given.edges[5:]}))
    assert "no score for 5 of 198 edges" in torn
    (foreign,) = told(model, given.model_copy(update={"model": ""}))
    assert "does not say which model" in foreign


@pytest.mark.parametrize("seeds", [(0,), pytest.param(range(1, 9), marks=pytest.mark.slow)])
def test_nothing_is_testable_where_the_circuit_writes_nothing(seeds):
    """Over seeds; were finds made in half of them, seven unknown of eight would be a chance of 4 %."""
    silent = 0
    for seed in seeds:
        metrics = run(graph(WHOLE), {"removed": "1", "seed": str(seed)}, n=8).metrics
        if metrics["cpr"].value is None:
            silent += 1
            told = [e for key, e in metrics.items() if key.startswith(("faith", "compl", "c", "least"))]
            assert all("not testable" in e.reason for e in told if e.value is None)
            assert metrics["faithfulness/given"].value is None and metrics["least_size"].value is None
    assert silent >= (7 if len(seeds) == 8 else 1)


def test_a_weak_circuit_has_no_least_size():
    metrics = run(graph(PATH[:2]), config=Circuit(sizes=(0.5, 1.0))).metrics
    assert metrics["kept/1"].value == 0 and metrics["faithfulness/1"].value == 0  # dead ends, both
    assert "no circuit keeps 0.8" in metrics["least_size"].reason


def plain(module, clean, corrupt, kept):
    """A GPT-2 of two layers and four heads, written out: logits of a circuit, in float64."""
    body, size = module.transformer, 8

    def pass_through(ids, theirs):
        """Logits and what every writer wrote; edges that are not kept carry ``theirs``."""
        positions = torch.arange(ids.shape[1])
        wrote_here = {"input": body.wte(ids) + body.wpe(positions)}
        biases = torch.zeros(1)

        def given(reader):
            return biases + sum(
                value if theirs is None or f"{writer}->{reader}" in kept else theirs[writer]
                for writer, value in wrote_here.items()
            )

        for at, block in enumerate(body.h):
            new = {}
            for head in range(4):
                here = slice(head * size, (head + 1) * size)
                q, k, v = (
                    (block.ln_1(given(f"a{at}.h{head}<{kind}>")) @ block.attn.c_attn.weight
                     + block.attn.c_attn.bias)[..., number * 32 :][..., here]
                    for number, kind in enumerate("qkv")
                )  # fmt: skip
                scores = q @ k.transpose(1, 2) / math.sqrt(size)
                future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
                weights = scores.masked_fill(future, -torch.inf).softmax(-1)
                new[f"a{at}.h{head}"] = weights @ v @ block.attn.c_proj.weight[here]
            wrote_here |= new
            biases = biases + block.attn.c_proj.bias
            wrote_here[f"m{at}"] = block.mlp(block.ln_2(given(f"m{at}")))
        return module.lm_head(body.ln_f(given("logits")))[:, -1], wrote_here

    _, theirs = pass_through(corrupt, None)
    return pass_through(clean, theirs)[0]


def test_circuits_equal_a_plain_forward_pass():
    lm = build("gpt2")
    lm.module.double()
    found, rng = graph_of(lm.module), random.Random(0)
    clean = torch.tensor([[5, 17, 60, 33, 8], [9, 9, 80, 41, 2]])
    corrupt = torch.tensor([[5, 44, 60, 33, 8], [7, 9, 80, 12, 2]])
    circuits = [set(rng.sample(found.names, count)) for count in (20, 55, 90)]
    replaced = torch.tensor([[name not in kept for name in found.names] for kept in circuits])
    read = LogitDifference([11, 22], [44, 55])
    values = masked(lm, found, clean, wrote(lm, found, corrupt), replaced, read)
    with torch.no_grad():
        for kept, value in zip(circuits, values, strict=True):
            logits = plain(lm.module, clean, corrupt, kept)
            expected = read(logits[:, read.columns], torch.arange(2))
            assert (value - expected).abs().max() < 1e-9


def ends(found, names):
    """Dead ends taken off edge by edge: the slow way."""
    names, heads = set(names), found.heads

    def behind(reader):
        layer, one = int(re.findall(r"\d+", reader)[0]), reader.partition("<")[0]
        if reader[0] == "m" or "<q>" in reader:
            return {one}
        group = found.layers[layer].group
        return {f"a{layer}.h{h}" for h in range(heads) if group[h] == int(one.partition("h")[2])}

    while True:
        read = {name.partition("->")[0] for name in names}
        fed = {"input"}.union(*(behind(r) for _, _, r in (n.partition("->") for n in names) if r != "logits"))
        alive = read & fed
        left = {
            name for name in names
            if name.partition("->")[0] in alive
            and (name.endswith("logits") or behind(name.partition("->")[2]) & alive)
        }  # fmt: skip
        if left == names:
            return names
        names = left


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon"])
def test_dead_ends_go_and_nothing_else(family):
    found, rng = graph_of(build(family).module), random.Random(1)
    for count in (1, 3, 8, 15, 30, 50):
        names = rng.sample(found.names, count)
        kept = torch.tensor([name in names for name in found.names])
        pruned = without_dead_ends(found, kept)
        assert {name for name, one in zip(found.names, pruned, strict=True) if one} == ends(found, names)


def test_the_strongest_are_by_size_and_unscored_edges_never_come_in():
    found = graph_of(build("gpt2").module)
    scored = {
        name: ScoredEdge(name=name, score=score, kept=False)
        for name, score in zip(found.names, (0.1, -5.0, 0.0, 2.0), strict=False)
    }
    strength = strengths(found, scored)
    assert largest(strength, 2).nonzero()[:, 0].tolist() == [1, 3]
    assert int(largest(strength, 50).sum()) == 4


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (graph(("input->a0.h7<q>",)), "no edge 'input->a0.h7<q>'"),
        (graph(("m1->m0",)), "no edge 'm1->m0'"),
        (graph(PATH, layers=3), "3 blocks"),
        (graph(PATH, heads=4), "4 heads"),
        (graph(PATH, key_value_heads=2), "2 key and value heads"),
    ],
)
def test_a_graph_of_another_model_is_refused_by_name(given, named):
    with pytest.raises(InputError, match=re.escape(named)):
        run(given)


def test_copies_of_shared_keys_are_no_heads_of_ours(tmp_path):
    """EAP-IG names keys of llama by query head: a file that does not say otherwise is not guessed at."""
    pairs = open_contrasts("induction", {"n": "4"})
    lm = open_plant("induction", {})
    lm = type(lm)(build("llama").module, lm.tokenizer, identity=lm.identity)
    path = tmp_path / "graph.json"
    write_graph(graph(("input->a0.h1<k>",), heads=4, key_value_heads=None), path)
    with pytest.raises(InputError, match="4 key and value heads a block"):
        circuit(lm, pairs, read_graph(path), Circuit(), Quiet())


@pytest.mark.parametrize("sizes", [(), (0.5, 0.5), (0.5, 0.1), (0.0, 1.0), (0.5, 1.5)])
def test_sizes_that_make_no_curve_are_refused(sizes):
    with pytest.raises(ConfigError, match="sizes"):
        resolve(Circuit, {"sizes": sizes})


def test_mean_ablation_is_the_mean_over_the_pairs():
    """With pairs whose corrupted prompts are one and the same, the mean is that prompt."""
    contrasts = open_contrasts("induction", {"n": "6"})
    rows = tuple(row.model_copy(update={"corrupt": contrasts.rows[0].corrupt}) for row in contrasts.rows)
    pairs, model = type(contrasts)(rows=rows), open_plant("induction", {})
    found = [
        circuit(model, pairs, graph(WHOLE), Circuit(sizes=(1.0,), ablation=how), Quiet()).metrics
        for how in ("corrupt", "mean")
    ]
    for name in ("faithfulness/given", "complement/given", "total_effect"):
        assert found[0][name].value == pytest.approx(found[1][name].value, abs=1e-4)
