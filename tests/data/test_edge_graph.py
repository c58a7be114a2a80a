"""Graphs of EAP-IG and MIB: both forms are read, ours is written, and a foreign thing is named."""

from __future__ import annotations

import json

import pytest

from calibrant.core import InputError
from calibrant.data.edge_graph import EdgeGraph, ScoredEdge, read_graph, write_graph

CFG = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
EDGES = {
    "input->a0.h1<q>": {"score": -0.5, "in_graph": True},
    "a0.h1->m0": {"score": 0.25, "in_graph": False},
    "m0->logits": {"score": 2, "in_graph": True},
}


def file(tmp_path, **changes):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"cfg": CFG, "nodes": {}, "edges": EDGES} | changes))
    return path


@pytest.mark.parametrize("nodes", [{"input": True, "m0": False}, {"input": {"in_graph": True, "score": 0.1}}])
def test_both_forms_are_read(tmp_path, nodes):
    graph = read_graph(file(tmp_path, nodes=nodes))
    assert [edge.name for edge in graph.edges] == list(EDGES)
    assert [edge.score for edge in graph.edges] == [-0.5, 0.25, 2]
    assert [edge.kept for edge in graph.edges] == [True, False, True]
    assert graph.layers == 1 and graph.heads == 2 and graph.key_value_heads is None
    assert graph.parallel is False and graph.model == ""


def test_what_is_written_reads_back_and_has_their_shape(tmp_path):
    graph = EdgeGraph(
        layers=1, heads=2, key_value_heads=1, parallel=None, model="0f" * 32,
        edges=(
            ScoredEdge(name="input->a0.h0<k>", score=1e-9, kept=False, inclusion=0.25),
            ScoredEdge(name="a0.h1->logits", score=-3.5, kept=True),
        ),
    )  # fmt: skip
    path = tmp_path / "graph.json"
    write_graph(graph, path)
    assert read_graph(path) == graph
    table = json.loads(path.read_text())
    assert set(table) == {"cfg", "nodes", "edges"} and table["cfg"]["model_digest"] == "0f" * 32
    assert {name: node["in_graph"] for name, node in table["nodes"].items()} == {
        "input": False, "a0.h0": False, "a0.h1": True, "logits": True,
    }  # fmt: skip
    assert table["edges"]["a0.h1->logits"] == {"score": -3.5, "in_graph": True}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"edges": {"embed->a0.h1<q>": {"score": 1.0}}}, "embed->a0.h1<q>"),
        ({"edges": {"input->a0.h1": {"score": 1.0}}}, "input->a0.h1"),
        ({"edges": {"logits->m0": {"score": 1.0}}}, "logits->m0"),
        ({"edges": {"input->m0": {"score": None}}}, "score None"),
        ({"edges": {"input->m0": {"score": float("nan")}}}, "score nan"),
        ({"edges": {"input->m0": {"score": 10**400}}}, "input->m0"),
        ({"edges": {"input->m0": {"score": True}}}, "score True"),
        ({"edges": {"input->m0": 1.0}}, "input->m0"),
        ({"edges": {"input->m0": {"score": 1.0, "in_graph": 1}}}, "in_graph is 1"),
        ({"edges": {"input->m0": {"score": 1.0, "inclusion": 2}}}, "inclusion is 2"),
        ({"edges": {}}, "no table"),
        ({"edges": []}, "no table"),
        ({"cfg": {"n_layers": 1}}, "n_heads"),
        ({"cfg": CFG | {"model_digest": "mine"}}, "model_digest is 'mine'"),
        ({"cfg": {"n_layers": 0, "n_heads": 2}}, "n_layers"),
    ],
)
def test_what_is_no_such_graph_is_named(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        read_graph(file(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"1" * 5000, b'{"edges": 1, "edges": 2}'])
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_graph(path)
