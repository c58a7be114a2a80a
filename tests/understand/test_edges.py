"""Edge attribution on planted circuits: the planted path comes first, the audit tells where slopes lie."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from calibrant.core import CapabilityError, InputError, Quiet
from calibrant.data.edge_graph import read_graph
from calibrant.data.rows import Contrasts
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._inclusion import inclusion, resamples
from calibrant.understand.edges import Edges, edges

EARLIER = ("input->a0.h1<v>", "a0.h1->a1.h2<k>", "a1.h2->logits")
"""What carries the changed earlier word: the previous-token head's value, the induction head's key."""
ANSWER = ("input->a1.h2<v>", "a1.h2->logits")
"""What carries the changed answer: the induction head's value."""
FEW = Edges(top=4, sample=4, draws=20)


def run(options=None, how="earlier", config=FEW, n=16, made=None):
    contrasts = open_contrasts("induction", {"corrupt": how, "n": str(n)})
    return edges(open_plant("induction", options or {}), contrasts, config, made or Quiet())


def scores(folder):
    return {edge.name: abs(edge.score) for edge in read_graph(folder / "artifacts" / "graph.json").edges}


def auroc(found, planted):
    return roc_auc_score([name in planted for name in found], list(found.values()))


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
@pytest.mark.parametrize(("how", "planted"), [("earlier", EARLIER), ("answer", ANSWER)])
def test_the_planted_path_comes_first(method, how, planted, tmp_path):
    result = run(how=how, config=FEW.model_copy(update={"method": method}), made=Quiet(work=tmp_path))
    found = scores(tmp_path)
    assert set(sorted(found, key=found.get, reverse=True)[: len(planted)]) == set(planted)
    assert auroc(found, planted) == 1 and len(found) == 198
    for way in ("denoise", "noise"):
        assert all(result.metrics[f"exact/{way}/{name}"].value > 0.9 for name in planted)
        assert result.metrics[f"audit/missed/{way}"].value < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2", "3", "4"])
def test_other_plants_and_twins_are_found_too(seed, tmp_path):
    run({"seed": seed, "twin": "1"}, made=Quiet(work=tmp_path))
    twins = (*EARLIER, "a0.h1->a1.h3<k>", "a1.h3->logits")
    assert auroc(scores(tmp_path), twins) > 0.99


def test_the_audit_shows_where_the_slope_is_wrong():
    """At the clean run attention saturates: EAP's noising form misses the key's edge, which does it all."""
    metrics = run(config=FEW.model_copy(update={"method": "eap"})).metrics
    key = "a0.h1->a1.h2<k>"
    assert abs(metrics[f"noise/{key}"].value) < 0.1 < 0.9 < metrics[f"exact/noise/{key}"].value
    assert metrics["audit/error/noise"].value > 0.3


def test_an_edge_left_out_of_the_strongest_shows_in_missed():
    config = Edges(top=1, sample=197, draws=10)
    missed = run(config=config, n=4).metrics["audit/missed/denoise"]
    assert missed.method == "counted" and missed.value > 1.9


@pytest.mark.parametrize("seeds", [(0,), pytest.param(range(1, 9), marks=pytest.mark.slow)])
def test_nothing_is_testable_where_the_circuit_writes_nothing(seeds):
    """Over seeds; were finds made in half of them, seven unknown of eight would be a chance of 4 %."""
    unknown = 0
    for seed in seeds:
        metrics = run({"removed": "1", "seed": str(seed)}, n=8).metrics
        if metrics["audit/error/denoise"].value is None:
            unknown += 1
            assert "not testable" in metrics["audit/error/denoise"].reason
            assert all(e.value is None for key, e in metrics.items() if key.startswith(("path/", "exact/")))
    assert unknown >= (7 if len(seeds) == 8 else 1)


def test_every_metric_has_a_reason_or_a_value_and_strong_edges_stay():
    metrics = run().metrics
    assert all(e.value is not None or e.reason for e in metrics.values())
    assert metrics["inclusion/a1.h2->logits"].value == 1 and 0 < metrics["stability"].value <= 1
    assert metrics["edges"].value == 198


def test_the_graph_marks_the_strongest_and_reads_back(tmp_path):
    run(config=FEW.model_copy(update={"keep": 0.03}), made=Quiet(work=tmp_path))
    path = tmp_path / "artifacts" / "graph.json"
    graph, table = read_graph(path), json.loads(path.read_text())
    assert sum(edge.kept for edge in graph.edges) == 6
    least = min(abs(edge.score) for edge in graph.edges if edge.kept)
    assert least >= max(abs(edge.score) for edge in graph.edges if not edge.kept)
    assert table["cfg"] == {
        "n_layers": 2, "n_heads": 6, "parallel_attn_mlp": False, "n_key_value_heads": 6,
        "model_digest": open_plant("induction", {}).identity.digest,
    }  # fmt: skip
    assert table["nodes"]["input"] == table["nodes"]["logits"] == {"in_graph": True}


def test_inclusion_is_a_count_over_resamples():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(7, 9)) + np.arange(7)[:, None] / 5
    times, overlap = inclusion(table, 3, None, 50, 1)
    slow, jaccard = np.zeros(7), []
    whole = set(np.argsort(-np.abs(table.mean(1)))[:3].tolist())
    for weights in resamples(9, None, 50, 1):
        chosen = set(np.argsort(-np.abs((table * weights).sum(1)))[:3].tolist())
        slow[list(chosen)] += 1 / 50
        jaccard.append(len(chosen & whole) / len(chosen | whole))
    np.testing.assert_allclose(times, slow)
    assert times.sum() == pytest.approx(3) and overlap == pytest.approx(np.mean(jaccard))


def test_clusters_are_drawn_whole():
    clusters = ["a", "a", "b", "b", "b"]
    for weights in resamples(5, clusters, 30, 0):
        assert weights[0] == weights[1] and weights[2] == weights[3] == weights[4]
        assert weights.sum() == pytest.approx(1)


def test_one_pair_twins_and_a_model_in_training_mode_are_refused():
    model, rows = open_plant("induction", {}), open_contrasts("induction", {"n": "3"}).rows
    with pytest.raises(InputError, match="needs two pairs"):
        edges(model, Contrasts(rows=rows[:1]), FEW, Quiet())
    with pytest.raises(InputError, match="two pairs are called"):
        edges(model, Contrasts(rows=(rows[0], rows[0])), FEW, Quiet())
    model.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        edges(model, Contrasts(rows=rows), FEW, Quiet())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_made_whatever_the_caller_switched_off(mode):
    contrasts = open_contrasts("induction", {"n": "4"})
    with mode():
        with torch.inference_mode(False):
            model = open_plant("induction", {})
        inside = edges(model, contrasts, FEW, Quiet())
    outside = edges(open_plant("induction", {}), contrasts, FEW, Quiet())
    name = "path/a1.h2->logits"
    assert inside.metrics[name].value == pytest.approx(outside.metrics[name].value)
