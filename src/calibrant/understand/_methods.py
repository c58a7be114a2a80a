"""What is calibrated beside the instruments of triangulation: AtP*, RelP, and two parts of path patching.

    atp_star     AtP* (``understand.attribute``), the mean of both ends; sizes, where a block can be left out
    relp         RelP, the mean of both ends; relevance goes through the attention pattern
    path_logits  path patching: what noising a cell does on the direct way to the logits
    path_heads   the same on the direct ways to queries, keys and values of all later heads

They are scored on single cells alone, and have no vote in the rule of triangulation. The two parts of path
patching leave out what goes through an MLP. A cell that works by way of later heads shows in the one, a cell
that writes the answer in the other: neither is meant to find both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from calibrant.core import CapabilityError, OpenLM, Run
from calibrant.stats.max_statistic import max_sign_flip
from calibrant.understand._cells import Cell
from calibrant.understand._contrasts import Encoded
from calibrant.understand._effects import Effects, Floats
from calibrant.understand._engine.columns import KINDS
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.paths import direct_runs, plain_readings, reaches
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.relevance import relevance
from calibrant.understand._evidence import Evidence
from calibrant.understand._slopes import Dropped, Method, estimated

METHODS = ("atp_star", "relp", "path_logits", "path_heads")
_PATHS = METHODS[2:]
_ROUNDING = 1e-5  # of the largest reading: two runs that compute the same by other sums are as far apart
_SLOPES: tuple[Method, ...] = ("atp_star", "relp")


class Sweep(NamedTuple):
    """What one instrument says of each of C cells on N pairs."""

    effects: Floats
    """(C, N), in the reading's unit."""
    chances: Floats
    """(C,) p-values, corrected for looking at all cells."""


def sweeps_of(evidence: Evidence) -> dict[str, Sweep]:
    """Instrument -> its sweep, of evidence whose every set is one cell."""
    return {name: _signed(effects, evidence.pairs) for name, effects in evidence.effects.items()}


def methods_of(model: OpenLM) -> tuple[str, ...]:
    """Those of ``METHODS`` that do not refuse the model."""
    found = ["atp_star"]
    try:
        with relevance(model.module, frozen=False):
            found.append("relp")
    except CapabilityError:
        pass
    try:
        graph_of(model.module)
    except CapabilityError:
        return tuple(found)
    return (*found, *_PATHS)


def method_sweeps(
    model: OpenLM, pairs: Encoded, cells: Sequence[Cell], site: str, level: float, run: Run
) -> dict[str, Sweep]:
    """Method -> its sweep; one that refuses the model is left out.

    Args:
        model: local weights.
        pairs: what is compared.
        cells: at all positions of one site, 'z', 'attn_out' or 'mlp_out'.
        site: its short name.
        level: at which cells count as found: sets how many sign flips are drawn for sizes.
        run: where queries are counted.
    """
    asked, found = methods_of(model), dict[str, Sweep]()
    for method in _SLOPES:
        if method in asked:
            found[method] = sweep_of(estimated(model, pairs, list(cells), site, method, False, run), level)
    if set(_PATHS) <= set(asked):
        for name, effect in _paths(model, pairs, cells, run).items():
            found[name] = _signed(effect, pairs)
    return found


def sweep_of(effects: Effects, level: float) -> Sweep:
    """The mean of both ends. Sizes are found by the parts that they are made of: a size alone is never 0."""
    both = effects.values.mean(0)
    if isinstance(effects, Dropped):
        return Sweep(both, effects.chances(level, 0)[0].min(0))
    return _signed(both, effects.pairs)


def _signed(effects: Floats, pairs: Encoded) -> Sweep:
    return Sweep(effects, max_sign_flip(effects, clusters=pairs.clusters))


def _paths(model: OpenLM, pairs: Encoded, cells: Sequence[Cell], run: Run) -> Mapping[str, Floats]:
    """Part of path patching -> (C, N): the clean reading, less that with the cell as in the corrupted run."""
    graph, read = graph_of(model.module), LogitDifference(pairs.answers, pairs.foils)
    plain = plain_readings(model, pairs.clean, read).numpy()
    heads = [at for at, reader in enumerate(graph.readers) if reader.kind in KINDS]
    sets = [writers_of(graph, cell) for cell in cells]
    found = {}
    for name, receivers in zip(_PATHS, ([len(graph.readers) - 1], heads), strict=True):
        felt = [at for at, one in enumerate(sets) if any(reaches(graph, part, receivers) for part in one)]
        effect = np.zeros((len(sets), plain.size))  # of the last layer's heads, no later head reads any
        if felt:
            some = [sets[at] for at in felt]
            put = direct_runs(model, graph, pairs.clean, pairs.corrupt, some, receivers, read)
            effect[felt] = plain - put.numpy()
        effect[np.abs(effect) < _ROUNDING * np.abs(plain).max()] = 0.0
        found[name] = effect
        run.spend(queries=(2 + len(felt)) * len(pairs.rows))
    return found


def writers_of(graph: Graph, cell: Cell) -> list[int]:
    """Numbers of the graph's writers that a cell is: a head, all heads of a layer, or its MLP."""
    layer = int(cell.name.partition("/")[0].removeprefix("layer_"))
    first = graph.first(layer)
    if cell.edit.site.endswith("hook_mlp_out"):
        return [first + graph.heads]
    return [first + head for head in (cell.edit.heads or range(graph.heads))]
