"""Which edges a circuit keeps: by strength, without dead ends; and a file's edges as the model's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from calibrant.core import InputError, OpenLM
from calibrant.core.errors import nearest
from calibrant.data.edge_graph import DOUBT, EdgeGraph, ScoredEdge
from calibrant.understand._engine.graph import Graph


def matched(model: OpenLM, graph: Graph, given: EdgeGraph) -> dict[str, ScoredEdge]:
    """The file's edges by name, each one of the model's.

    Raises:
        InputError: the file is of another model: the edge, or the count that differs, is named.
    """
    name, hint = model.identity.name, "score this very model's edges with understand.edges"
    shared = max(len(layer.heads["k"].columns) for layer in graph.layers)
    told = [("blocks", given.layers, len(graph.layers)), ("heads a block", given.heads, graph.heads)]
    if given.key_value_heads is not None or shared != graph.heads:
        told.append(("key and value heads a block", given.key_value_heads or given.heads, shared))
    for what, theirs, ours in told:
        if theirs != ours:
            raise InputError(f"the graph has {theirs} {what}, '{name}' has {ours}", hint=hint)
    for edge in given.edges:
        if edge.name not in graph.number:
            raise InputError(
                f"'{name}' has no edge '{edge.name}'{nearest(edge.name, graph.names)}", hint=hint
            )
    return {edge.name: edge for edge in given.edges}


def doubts(model: OpenLM, graph: Graph, given: EdgeGraph) -> list[str]:
    """Why the file may be of another model, or not whole: counts and names that fit do not say it is not."""
    name, own, found = model.identity.name, model.identity.digest, []
    if not given.model:
        found.append(f"{DOUBT} does not say which model was scored: that it was '{name}' is not known")
    elif given.model != own:
        found.append(
            f"{DOUBT} was scored on another model than '{name}', or on it in another form: "
            f"{given.model[:12]}, not {own[:12]}"
        )
    lost = len(graph.names) - len({edge.name for edge in given.edges})
    if lost:
        found.append(f"{DOUBT} has no score for {lost} of {len(graph.names)} edges: they are never kept")
    return found


def strengths(graph: Graph, edges: Mapping[str, ScoredEdge]) -> Tensor:
    """(E,) float64 size of each edge's score; -1 for one that the file does not score."""
    return torch.tensor(
        [abs(edges[name].score) if name in edges else -1.0 for name in graph.names], dtype=torch.float64
    )


def largest(strength: Tensor, count: int) -> Tensor:
    """(E,) bool: the ``count`` strongest of those that have a score; of equal ones the first."""
    chosen = torch.zeros(len(strength), dtype=torch.bool)
    chosen[strength.argsort(descending=True, stable=True)[:count]] = True
    return chosen & (strength >= 0)


def without_dead_ends(graph: Graph, kept: Tensor) -> Tensor:
    """(E,) bool: without edges that no path from the input to the logits goes through.

    As in EAP-IG and MIB, a head lives while one edge enters it, by q, k or v, and one leaves it.
    """
    edges = [(at, *graph.edges[at]) for at in kept.nonzero()[:, 0].tolist()]
    while True:
        given = {writer for _, _, reader in edges for writer in _writers_behind(graph, reader)}
        read = {writer for _, writer, _ in edges}
        alive = (given | {0}) & read
        left = [
            edge
            for edge in edges
            if edge[1] in alive
            and (edge[2] == len(graph.readers) - 1 or alive & set(_writers_behind(graph, edge[2])))
        ]
        if len(left) == len(edges):
            break
        edges = left
    result = torch.zeros_like(kept)
    result[[at for at, _, _ in edges]] = True
    return result


def _writers_behind(graph: Graph, reader: int) -> list[int]:
    """The writers that a reader belongs to: several heads where they share keys and values; none: logits."""
    one = graph.readers[reader]
    if one.kind == "logits":
        return []
    first = graph.first(one.layer)
    if one.kind == "m":
        return [first + graph.heads]
    if one.kind == "q":
        return [first + one.head]
    return [first + head for head, group in enumerate(graph.layers[one.layer].group) if group == one.head]
