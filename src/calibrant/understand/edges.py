"""Edge attribution (EAP, EAP-IG): what each edge of the model's graph carries, audited by exact patching.

An edge is one term of the sum that a reader is given: what one head, one MLP or the input wrote, as the
queries, keys or values of one head, one MLP or the logits read it. For every edge u -> v

    (a_u(clean) - a_u(corrupt)) . dm/d(input of v),   over m(clean) - m(corrupt)

with the gradient at the corrupted run and at the clean one (EAP: Nanda 2023; Syed et al. 2310.10348), or its
mean along the straight line between the two prompts' embeddings (EAP-IG: Hanna et al. 2403.17806). m is the
logit of the answer less that of the foil at the last position.

1. The strongest edges, and some at random, are patched exactly: one reader is given the other run's term.
2. ``audit/error`` and ``audit/missed`` say how far the gradients are from that, on both kinds.
3. ``stability`` says how far the circuit of the strongest edges depends on which pairs were drawn.
4. Artefact 'graph.json' has every edge, in the form of EAP-IG and MIB, for ``understand.circuit``.

    calibrant show understand.edges
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from calibrant.core import Estimate, Frozen, OpenLM, Quiet, Result, Run, point, technique
from calibrant.core.figure_data import FigureData, by_names, edges_of
from calibrant.data.edge_graph import EdgeGraph, ScoredEdge, write_graph
from calibrant.data.rows import Contrasts
from calibrant.understand._audit import Chosen, audit, choose
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._effects import WAYS, Effects, Floats
from calibrant.understand._engine.edge_runs import masked, wrote
from calibrant.understand._engine.edge_scores import edge_scores, midpoints
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.graph import SHARED, Graph
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._inclusion import inclusion, strongest


class Edges(Frozen):
    """How edges are scored, and how many are patched exactly."""

    method: Literal["eap-ig", "eap"] = "eap-ig"
    """Gradients along the line from the corrupted to the clean prompt, or at its two ends."""
    steps: int = Field(default=5, ge=1, le=1000)
    """For eap-ig: points on that line, in the middle of so many equal parts."""
    top: int = Field(default=10, ge=1)
    """So many of the strongest edges are patched exactly."""
    sample: int = Field(default=20, ge=2)
    """So many of the other edges, drawn at random, are patched exactly, too."""
    keep: float = Field(default=0.05, gt=0, le=1)
    """Share of the edges that are marked as the circuit in 'graph.json'."""
    draws: int = Field(default=200, ge=10, le=100_000)
    """Resamples of the pairs, for ``stability`` and ``inclusion``."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs, evenly spread. None: all."""


class EdgesResult(Result):
    """``path/EDGE`` (EAP-IG), or ``denoise/EDGE`` and ``noise/EDGE`` (EAP), of the strongest edges by
    gradient, ``exact/denoise/EDGE``, ``audit/...``, ``inclusion/EDGE``. Artefact 'graph.json'."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """The strongest edges by gradient, each with what patching it does."""
        told = {"exact/denoise": "patched, denoising", "exact/noise": "patched, noising",
                "path": "by gradient", "denoise": "by gradient, denoising",
                "noise": "by gradient, noising"}  # fmt: skip
        values = tuple(one for name, label in told.items() for one in edges_of(self.metrics, name, label))
        title = "The strongest edges by gradient, and what patching each does"
        shared = next((one for one in self.caveats if one.startswith(SHARED)), "")
        graph = FigureData(kind="graph", values=values, title=title, caption=shared)
        return (*([graph] if values else []), *by_names(self.metrics))


class Edge(NamedTuple):
    """An edge, by its name."""

    name: str


@technique(version=2)  # version 1 counted a pair and its swap twice
def edges(model: OpenLM, contrasts: Contrasts, config: Edges = Edges(), run: Run = Quiet()) -> EdgesResult:
    """Score every edge of ``model`` on pairs of a clean and a corrupted prompt, and audit the scores.

    Raises:
        InputError: pairs that cannot be compared: see the page of understand.patch.
        CapabilityError: the model's stream is no sum of heads and MLPs, it is in half precision, or not
            causal.
        NumericalError: a gradient or a patched run is NaN or infinite.
    """
    pairs = encode(model, contrasts, config.limit)
    graph = graph_of(model.module)
    effects = scored(model, graph, pairs, config, run)
    means = effects.values[0].mean(1)
    count = max(1, round(config.keep * len(graph.names)))
    chosen = choose(np.abs(means), config.top, config.sample, run.seed)
    times, overlap = inclusion(effects.values[0], count, pairs.clusters, config.draws, run.seed)
    metrics = effects.ground() | {"edges": point(len(graph.names), unit="edges")}
    ways = ("path",) if config.method == "eap-ig" else WAYS
    for way, side in zip(ways, effects.values, strict=False):
        metrics |= {f"{way}/{graph.names[at]}": effects.share(side[at]) for at in chosen.top}
    metrics |= audit(effects, exact_effects(model, graph, effects, chosen, run), chosen, "edge")
    metrics |= _stability(graph, chosen, times, overlap, count, len(pairs.rows))
    kept = strongest(np.abs(means), count)
    write_graph(_graph(model, graph, means, kept, times), run.artifact("graph.json"))
    notes = [
        "a gradient is a slope: an edge that saturates or cancels another may read 0 (see audit/missed)",
        "edges were ranked and marked on these pairs: judge the circuit on others",
        f"{len(graph.names)} edges were looked at: an interval is not corrected for that",
    ]
    return EdgesResult(metrics=metrics, caveats=(*notes, *graph.notes, *effects.notes))


def scored(model: OpenLM, graph: Graph, pairs: Encoded, config: Edges, run: Run) -> Effects:
    """Effects of all edges by gradient; for EAP-IG those of both directions are the same."""
    integrated = config.method == "eap-ig"
    points = midpoints(config.steps) if integrated else (0.0, 1.0)
    found = edge_scores(
        model, graph, pairs.clean, pairs.corrupt, LogitDifference(pairs.answers, pairs.foils), points,
        lambda done, total: run.progress(done, total, "gradients"),
    )  # fmt: skip
    run.spend(queries=len(pairs.rows) * (2 + 2 * len(points) - (0 if integrated else 2)))
    values = found.values.double()
    if integrated:
        values = values.mean(0, keepdim=True).expand(2, -1, -1)
    return Effects(
        [Edge(name) for name in graph.names], pairs, values.transpose(1, 2).numpy(), found.clean.numpy(),
        found.corrupt.numpy(),
    )  # fmt: skip


def exact_effects(model: OpenLM, graph: Graph, effects: Effects, chosen: Chosen, run: Run) -> Floats:
    """(2, len(chosen.all), N) what patching each chosen edge does, denoising and noising."""
    pairs = effects.pairs
    masks = torch.zeros(len(chosen.all), len(graph.names), dtype=torch.bool)
    masks[torch.arange(len(masks)), torch.tensor(chosen.all)] = True
    read, found = LogitDifference(pairs.answers, pairs.foils), []
    for note, ids, other in (
        ("into the corrupted run", pairs.corrupt, pairs.clean),
        ("into the clean run", pairs.clean, pairs.corrupt),
    ):
        values = masked(
            model, graph, ids, wrote(model, graph, other), masks, read,
            lambda done, total, note=note: run.progress(done, total, note),  # type: ignore[misc]
        )  # fmt: skip
        run.spend(queries=values.numel() + len(other))
        found.append(values.numpy())
    return np.stack([found[0] - effects.corrupt, effects.clean - found[1]])


def _stability(
    graph: Graph, chosen: Chosen, times: Floats, overlap: float, count: int, pairs: int
) -> dict[str, Estimate]:
    """How much of the circuit stays when the pairs are drawn anew."""
    found = {"stability": point(overlap, unit="overlap", n=count)}
    return found | {
        f"inclusion/{graph.names[at]}": point(float(times[at]), unit="resample", n=pairs) for at in chosen.top
    }


def _graph(model: OpenLM, graph: Graph, means: Floats, kept: NDArray[np.bool_], times: Floats) -> EdgeGraph:
    shared = {len(layer.heads["k"].columns) for layer in graph.layers}
    parallel = {layer.parallel for layer in graph.layers}
    return EdgeGraph(
        layers=len(graph.layers),
        heads=graph.heads,
        key_value_heads=max(shared),
        parallel=parallel.pop() if len(parallel) == 1 else None,
        model=model.identity.digest,
        edges=tuple(
            ScoredEdge(name=name, score=float(score), kept=bool(inside), inclusion=float(share))
            for name, score, inside, share in zip(graph.names, means, kept, times, strict=True)
        ),
    )
