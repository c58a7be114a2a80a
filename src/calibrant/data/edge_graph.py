"""Scored edges of a model's graph, in the JSON of EAP-IG and MIB, read and written.

    {"cfg": {"n_layers": 2, "n_heads": 6, "parallel_attn_mlp": false, ...},
     "nodes": {"input": {"in_graph": true}, "a0.h1": {"in_graph": true}, ...},
     "edges": {"a0.h1->a1.h2<k>": {"score": 0.91, "in_graph": true}, ...}}

Older files have ``true`` in the place of a node's table; both are read. Ours add ``n_key_value_heads`` to
``cfg``, for keys and values count their own heads here, ``model_digest``, the identity of the model that was
scored, and ``inclusion`` to an edge. EAP-IG and MIB keep keys of ``cfg`` that they do not know.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.core.written import parse_json

_EDGE = re.compile(r"(input|a\d+\.h\d+|m\d+)->(logits|m\d+|a\d+\.h\d+<[qkv]>)")
_LARGEST = 1e300
_DIGEST = re.compile("[0-9a-f]{64}")
DOUBT = "the graph given"
"""How a limit begins that doubts whether a file of edges is one of this model, or whole."""
_HINT = "understand.edges writes such a file, and so do EAP-IG and MIB: record:JOB/graph.json"


class ScoredEdge(Frozen):
    """One edge."""

    name: str
    """'a0.h1->a5.h2<q>', 'a0.h1->m3', 'm3->logits'."""
    score: float
    """What it does by estimate, in the unit of its maker; the larger its size, the sooner it is kept."""
    kept: bool
    """It is in the circuit that the file marks."""
    inclusion: float | None = None
    """Share of resamples of the pairs in which it would be; None where nobody looked."""


class EdgeGraph(Frozen):
    """Scored edges of one model."""

    layers: int = Field(ge=1)
    """Blocks of the model."""
    heads: int = Field(ge=1)
    """Query heads of a block."""
    key_value_heads: int | None = None
    """Key and value heads of a block; None where the file does not say."""
    parallel: bool | None = None
    """Attention and MLP of a block run side by side; None where the file does not say."""
    model: str = ""
    """Digest of the identity of the model whose edges these are; "" where the file does not say."""
    edges: tuple[ScoredEdge, ...]
    """All of them, in the file's order."""


def read_graph(path: Path) -> EdgeGraph:
    """Read a graph of EAP-IG, MIB or ``understand.edges``.

    Raises:
        InputError: it is no such graph; the edge and what is wrong with it are named.
    """
    try:
        table = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, not JSON, or beyond what JSON may hold
        raise InputError(f"{path} is no JSON: {str(error)[:120]}", hint=_HINT) from None
    cfg, edges = (table.get(key) if isinstance(table, dict) else None for key in ("cfg", "edges"))
    if not isinstance(cfg, dict) or not isinstance(edges, dict) or not edges:
        raise InputError(f"{path} is no graph: it has no table 'cfg', or no 'edges'", hint=_HINT)
    return EdgeGraph(
        layers=_whole(path, cfg, "n_layers"),
        heads=_whole(path, cfg, "n_heads"),
        key_value_heads=None
        if cfg.get("n_key_value_heads") is None
        else _whole(path, cfg, "n_key_value_heads"),
        parallel=cfg["parallel_attn_mlp"] if isinstance(cfg.get("parallel_attn_mlp"), bool) else None,
        model=_digest(path, cfg),
        edges=tuple(_edge(path, name, told) for name, told in edges.items()),
    )


def write_graph(graph: EdgeGraph, path: Path) -> None:
    """Write it in EAP-IG's form; a node is in the circuit where one of its edges is."""
    kept = {part.partition("<")[0] for edge in graph.edges if edge.kept for part in edge.name.split("->")}
    nodes = dict.fromkeys(part.partition("<")[0] for edge in graph.edges for part in edge.name.split("->"))
    table: dict[str, Any] = {
        "cfg": {
            "n_layers": graph.layers, "n_heads": graph.heads, "parallel_attn_mlp": graph.parallel,
            "n_key_value_heads": graph.key_value_heads,
        }
        | ({"model_digest": graph.model} if graph.model else {}),
        "nodes": {name: {"in_graph": name in kept} for name in nodes},
        "edges": {
            edge.name: {"score": edge.score, "in_graph": edge.kept}
            | ({} if edge.inclusion is None else {"inclusion": edge.inclusion})
            for edge in graph.edges
        },
    }  # fmt: skip
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _whole(path: Path, cfg: dict[str, Any], key: str) -> int:
    value = cfg.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{path}: cfg.{key} is {value!r:.40}, not a count", hint=_HINT)
    return value


def _digest(path: Path, cfg: dict[str, Any]) -> str:
    value = cfg.get("model_digest")
    if value is None:
        return ""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise InputError(f"{path}: cfg.model_digest is {value!r:.40}, not a digest", hint=_HINT)
    return value


def _edge(path: Path, name: str, told: Any) -> ScoredEdge:
    if not _EDGE.fullmatch(name):
        raise InputError(
            f"{path}: '{name[:80]}' is no edge between nodes of such a graph",
            hint="nodes are input, a0.h1, m3 and logits; heads are read by a0.h1<q>, <k> or <v>",
        )
    score = told.get("score") if isinstance(told, dict) else None
    if not isinstance(score, int | float) or isinstance(score, bool) or not abs(score) <= _LARGEST:
        raise InputError(f"{path}: edge '{name}' has the score {score!r:.40}, which is no number", hint=_HINT)
    kept, inclusion = told.get("in_graph", False), told.get("inclusion")
    if not isinstance(kept, bool):
        raise InputError(f"{path}: edge '{name}': in_graph is {kept!r:.40}, not true or false", hint=_HINT)
    if inclusion is not None and (not isinstance(inclusion, int | float) or not 0 <= inclusion <= 1):
        raise InputError(f"{path}: edge '{name}': inclusion is {inclusion!r:.40}, no share", hint=_HINT)
    return ScoredEdge(name=name, score=score, kept=kept, inclusion=inclusion)
