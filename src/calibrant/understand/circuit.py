"""What a circuit keeps: faithfulness, completeness and minimality of the strongest edges, size by size.

    f(C) = [m(C) - m(nothing)] / [m(model) - m(nothing)]

Every edge outside C carries what its writer wrote after the corrupted prompt (or on average over those), so
m(nothing) is the corrupted reading; m is the logit of the answer less that of the foil. Both m are means over
pairs. All sizes are rows of the same forward passes.

1. ``faithfulness/SIZE`` is f of the strongest edges; ``complement/SIZE`` f of all the others: near 0 where
   the circuit is complete, for then nothing that matters is left.
2. ``cpr`` and ``cmd``, MIB's areas (Mueller et al. 2504.13151): under f, and between f and 1. On their axis
   half the area lies above 50 % of the edges, so both are also given on a logarithmic axis.
3. ``removal/EDGE`` is what one edge less costs the smallest circuit that is faithful enough.

    calibrant show understand.circuit
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from calibrant.core import Estimate, Frozen, OpenLM, Quiet, Result, Run, point, technique, unknown
from calibrant.core.figure_data import Datum, FigureData, by_names, edges_of
from calibrant.data.edge_graph import EdgeGraph, ScoredEdge
from calibrant.data.rows import Contrasts
from calibrant.maths.areas import trapezoid
from calibrant.understand._circuits import doubts, largest, matched, strengths, without_dead_ends
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._effects import UNIT, Effects, Floats
from calibrant.understand._engine.edge_runs import masked, mean_wrote, wrote
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.graph import SHARED, Graph
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._inclusion import resamples

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's shares of all edges."""


class Circuit(Frozen):
    """Which circuits are tried."""

    sizes: tuple[float, ...] = SIZES
    """Shares of all edges that are kept, in increasing order; the strongest are."""
    ablation: Literal["corrupt", "mean"] = "corrupt"
    """What edges outside carry: 'corrupt', what was written after the pair's corrupted prompt; 'mean', the
    mean of that over all pairs, position by position."""
    enough: float = Field(default=0.8, gt=0, le=1)
    """Faithfulness from which a circuit counts as faithful."""
    removals: int = Field(default=40, ge=0)
    """From a faithful circuit of at most so many edges each edge is taken away, one at a time. 0: none."""
    floor: float = Field(default=0.01, ge=0)
    """An edge whose removal changes faithfulness by less than this counts as idle."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs, evenly spread. None: all."""

    @field_validator("sizes")
    @classmethod
    def _increasing(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if not sizes or not all(0 < size <= 1 for size in sizes):
            raise ValueError("give shares above 0 and up to 1")
        if any(after <= before for before, after in pairwise(sizes)):
            raise ValueError("give sizes in increasing order, each once")
        return sizes


class CircuitResult(Result):
    """``faithfulness/SIZE``, ``complement/SIZE``, ``kept/SIZE``, ``cpr``, ``cmd``, ``cpr_log``, ``cmd_log``,
    ``least_size``, ``removal/EDGE``, ``idle_edges``; size 'given' is the circuit that the file marks."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """The smallest circuit, edge by edge; and what each size keeps, beside all edges but those."""
        values = edges_of(self.metrics, "removal", "lost without it")
        title = "The smallest faithful circuit: what is lost without each of its edges"
        shared = next((one for one in self.caveats if one.startswith(SHARED)), "")
        graph = FigureData(kind="graph", values=values, title=title, caption=shared)
        kept = []
        for name, one in self.metrics.items():
            part, _, size = name.partition("/")
            if part in ("faithfulness", "complement"):
                edges = self.metrics[f"kept/{size}"].value or 0
                label = f"{size if size == 'given' else f'{100 * float(size):g} %'}: {edges:g} edges"
                stage = "the circuit" if part == "faithfulness" else "all edges but it"
                kept.append(Datum(label=label, estimate=one, stage=stage))
        title = "What circuits of the strongest edges keep, and what the rest keeps"
        sizes = FigureData(kind="intervals", values=tuple(kept), title=title)
        return (*([graph] if values else []), *([sizes] if kept else []), *by_names(self.metrics))


class Tried(NamedTuple):
    """A circuit that is run."""

    name: str
    """'0.05', or 'given'."""
    size: float | None
    """Share of all edges asked for; None: as the file marks it."""
    kept: Tensor
    """(E,) bool, without dead ends."""


@technique(version=2)  # version 1 counted a pair and its swap twice
def circuit(
    model: OpenLM, contrasts: Contrasts, graph: EdgeGraph, config: Circuit = Circuit(), run: Run = Quiet()
) -> CircuitResult:
    """Run ``model`` with nothing but its strongest edges, for each size.

    Raises:
        InputError: pairs that cannot be compared, or a graph of another model: the edge is named.
        CapabilityError: the model's stream is no sum of heads and MLPs, it is in half precision, or not
            causal.
        NumericalError: a run is NaN or infinite.
    """
    pairs = encode(model, contrasts, config.limit)
    found = graph_of(model.module)
    edges = matched(model, found, graph)
    tried = circuits(found, edges, config.sizes)
    runs = Runs(model, found, pairs, config.ablation, run)
    whole = torch.ones(len(found.names), dtype=torch.bool)
    empty, full, *rest = runs([~whole, whole, *(one.kept for one in tried), *(~one.kept for one in tried)])
    effects = Effects(tried, pairs, np.empty((2, 0, 0)), full, empty)
    heights = np.stack(rest[: len(tried)]) - empty
    metrics = effects.ground()
    for at, one in enumerate(tried):
        metrics[f"faithfulness/{one.name}"] = effects.share(heights[at])
        metrics[f"complement/{one.name}"] = effects.share(rest[len(tried) + at] - empty)
        metrics[f"kept/{one.name}"] = point(int(one.kept.sum()), unit="edges", n=len(found.names))
    sized = [at for at, one in enumerate(tried) if one.size is not None]
    metrics |= _areas(effects, config.sizes, heights[sized], run.seed)
    metrics |= _smallest(effects, tried, heights, config, runs)
    notes = [
        "an edge outside carries a corrupted activation: f is about this corruption, and moves with another",
        "circuits were chosen by scores: on the pairs that gave them f is flattered",
        "edges that no path from input to logits goes through were dropped, as EAP-IG and MIB do: see kept",
    ]
    return CircuitResult(
        metrics=metrics, caveats=(*doubts(model, found, graph), *notes, *found.notes, *effects.notes)
    )


def circuits(graph: Graph, edges: dict[str, ScoredEdge], sizes: tuple[float, ...]) -> list[Tried]:
    """The strongest edges of each size, and what the file marks where that is a circuit."""
    strength, total = strengths(graph, edges), len(graph.names)
    found = [
        Tried(f"{size:.12g}", size, without_dead_ends(graph, largest(strength, int(size * total + 1e-9))))
        for size in sizes
    ]
    marked = torch.tensor([name in edges and edges[name].kept for name in graph.names])
    return found + ([Tried("given", None, marked)] if 0 < int(marked.sum()) < total else [])


class Runs:
    """Runs circuits; one that was run is not run again."""

    def __init__(self, model: OpenLM, graph: Graph, pairs: Encoded, ablation: str, run: Run) -> None:
        self.model, self.graph, self.pairs, self.run = model, graph, pairs, run
        source = mean_wrote if ablation == "mean" else wrote
        self.other = source(model, graph, pairs.corrupt)
        self.read = LogitDifference(pairs.answers, pairs.foils)
        self.known: dict[bytes, Floats] = {}

    def __call__(self, kept: list[Tensor]) -> list[Floats]:
        """(N,) readings of each circuit, whose edges are (E,) bool."""
        keys = [one.numpy().tobytes() for one in kept]
        new = {key: one for key, one in zip(keys, kept, strict=True) if key not in self.known}
        if new:
            values = masked(
                self.model, self.graph, self.pairs.clean, self.other, ~torch.stack(list(new.values())),
                self.read, lambda done, total: self.run.progress(done, total, "circuits"),
            )  # fmt: skip
            self.run.spend(queries=values.numel() + len(self.pairs.rows))
            self.known |= dict(zip(new, values.numpy(), strict=True))
        return [self.known[key] for key in keys]


def _areas(effects: Effects, sizes: tuple[float, ...], heights: Floats, seed: int) -> dict[str, Estimate]:
    """CPR and CMD, on MIB's axis and on a logarithmic one; heights are (K, N)."""
    names = ("cpr", "cmd", "cpr_log", "cmd_log")
    if len(sizes) < 2:
        return dict.fromkeys(names, unknown("an area needs two sizes", n=effects.total.size, unit=UNIT))
    if not effects.testable:
        return dict.fromkeys(names, unknown(effects.idle, n=effects.total.size, unit=UNIT))
    logs = np.log10(np.array(sizes))
    found = {}
    for tail, places in (("", list(sizes)), ("_log", list((logs - logs[0]) / (logs[-1] - logs[0])))):
        weights = trapezoid(places).numpy()
        found[f"cpr{tail}"] = effects.share(weights @ heights)
        found[f"cmd{tail}"] = _distance(effects, heights, weights, seed)
    return {name: found[name] for name in names}


def _distance(effects: Effects, heights: Floats, weights: Floats, seed: int) -> Estimate:
    """The area between f and 1, with a percentile bootstrap over pairs: it has no linear form."""

    def area(total: Floats, height: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares: Floats = height / total
        return weights @ np.abs(1 - shares)

    value = float(area(effects.total.mean(), heights.mean(1)))
    draws = resamples(effects.total.size, effects.pairs.clusters, 2000, seed)
    areas = area(draws @ effects.total, heights @ draws.T)
    low, high = np.quantile(areas[np.isfinite(areas)], (0.025, 0.975))
    return Estimate(
        value=value, low=float(min(low, value)), high=float(max(high, value)), n=effects.total.size,
        clusters=len(set(effects.pairs.clusters)) if effects.pairs.clusters else None, unit=UNIT,
        better="lower", method="percentile bootstrap",
    )  # fmt: skip


def _smallest(
    effects: Effects, tried: list[Tried], heights: Floats, config: Circuit, runs: Runs
) -> dict[str, Estimate]:
    """The smallest circuit that is faithful enough, and what each of its edges is worth to it."""
    total = len(runs.graph.names)
    if not effects.testable:
        return dict.fromkeys(
            ("least_size", "idle_edges"), unknown(effects.idle, n=effects.total.size, unit="edges")
        )
    shares = heights.mean(1) / effects.total.mean()
    fit = [at for at in range(len(tried)) if shares[at] >= config.enough]
    if not fit:
        missing = unknown(f"no circuit keeps {config.enough:g} of the effect", n=total, unit="edges")
        return {"least_size": missing, "idle_edges": missing}
    least = min(fit, key=lambda at: int(tried[at].kept.sum()))
    kept = tried[least].kept
    members = kept.nonzero()[:, 0].tolist()
    found = {"least_size": point(len(members), unit="edges", n=total)}
    if len(members) > config.removals:
        why = f"it has {len(members)} edges, more than removals = {config.removals}"
        return found | {"idle_edges": unknown(why, n=total, unit="edges")}
    without = []
    for at in members:
        less = kept.clone()
        less[at] = False
        without.append(less)
    lost = [tried_without - effects.corrupt for tried_without in runs(without)]
    costs = {at: effects.share(heights[least] - one) for at, one in zip(members, lost, strict=True)}
    idle = sum(cost.value is not None and abs(cost.value) < config.floor for cost in costs.values())
    found["idle_edges"] = point(idle, unit="edges", n=len(members))
    return found | {f"removal/{runs.graph.names[at]}": cost for at, cost in costs.items()}
