"""What each cell does to the answer, estimated from gradients: AtP, AtP* and RelP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from calibrant.core import Estimate, OpenLM, Run, point, unknown
from calibrant.models.anatomy import anatomy
from calibrant.understand._cells import Cell
from calibrant.understand._contrasts import Encoded
from calibrant.understand._effects import UNIT, Effects, Floats, corrected
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.graddrop import dropped_gradients
from calibrant.understand._engine.gradients import gradients
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.relevance import relevance
from calibrant.understand._engine.repattern import repatterned, site_of_z
from calibrant.understand._engine.sweep import traced

Method = Literal["atp", "atp_star", "relp"]


@dataclass(frozen=True)
class Dropped(Effects):
    """Effects by AtP*: sizes without a sign, the mean over blocks that were left out of |mean over pairs|."""

    drops: Floats
    """(2, L, C, N) with each block left out; 0 for a cell of that block."""

    unsigned = True

    def estimate(self, side: int, at: int) -> Estimate:
        """A share without an interval: a mean of sizes has no noise on both sides of 0."""
        if not self.testable:
            return unknown(self.idle, n=len(self.clean), unit=UNIT)
        return point(float(self.values[side, at].mean() / self.total.mean()), unit=UNIT, n=len(self.clean))

    def chances(self, level: float, seed: int) -> tuple[Floats, str]:
        """A cell is found where it is with any block left out; corrected for looking at all of them."""
        chances, mute = corrected(self.drops, self.pairs.clusters, level, seed)
        return chances.min(1), mute


def estimated(
    model: OpenLM, pairs: Encoded, cells: list[Cell], site: str, method: Method, frozen: bool, run: Run
) -> Effects:
    """Effects of all cells, in both directions.

    Args:
        model: local weights.
        pairs: what is compared.
        cells: of one site.
        site: its short name.
        method: how.
        frozen: for relp, whether the attention pattern is kept.
        run: where queries are counted.
    """
    if method == "atp_star":
        return _mended(model, pairs, cells, site, run)
    read, sites = LogitDifference(pairs.answers, pairs.foils), list(dict.fromkeys(c.edit.site for c in cells))
    clean, corrupt = (traced(model, ids, sites) for ids in (pairs.clean, pairs.corrupt))
    values, readings = [], []
    rules: AbstractContextManager[None] = (
        relevance(model.module, frozen=frozen) if method == "relp" else nullcontext()
    )
    with rules:
        for ids in (pairs.corrupt, pairs.clean):
            reading, flows = gradients(model, ids, sites, read)
            products = {one: (clean[one] - corrupt[one]) * flows[one] for one in sites}
            values.append(torch.stack([summed(products[cell.edit.site], cell) for cell in cells]))
            readings.append(reading.numpy())
            run.spend(queries=2 * len(ids))
    return Effects(cells, pairs, torch.stack(values).numpy(), readings[1], readings[0])


def summed(product: Tensor, cell: Cell) -> Tensor:
    """(N,) float64: the product (N, T, ...) summed over what the cell holds."""
    part = product if cell.edit.positions is None else product[:, list(cell.edit.positions)]
    part = part if cell.edit.heads is None else part[:, :, list(cell.edit.heads)]
    part = part if cell.edit.columns is None else part[..., list(cell.edit.columns)]
    return part.double().flatten(1).sum(1).cpu()


def _mended(model: OpenLM, pairs: Encoded, cells: list[Cell], site: str, run: Run) -> Effects:
    """AtP*: GradDrop for every cell, and the fix of attention for queries and keys."""
    read, blocks = LogitDifference(pairs.answers, pairs.foils), len(anatomy(model.module).blocks)
    change, left_out = _Change(model, pairs, cells, site), range(blocks) if droppable(model) else (-1,)
    values, readings = [], []
    for ids, other in ((pairs.corrupt, pairs.clean), (pairs.clean, pairs.corrupt)):
        moved, sign = change.towards(ids, other), 1.0 if other is pairs.clean else -1.0

        def measure(
            flows: dict[str, Tensor],
            examples: Tensor,
            moved: Mapping[str, Tensor] = moved,
            sign: float = sign,
        ) -> Tensor:
            return sign * change.measured({one: moved[one][examples] * flow for one, flow in flows.items()})

        reading, found = dropped_gradients(model, ids, change.sites, read, measure, left_out)
        readings.append(reading.numpy())
        values.append(found.numpy())
        run.spend(queries=(1 + len(found) + change.passes) * len(ids))
    corrupt, clean = readings
    drops = np.stack(values)
    if not droppable(model):
        return Effects(cells, pairs, drops[:, 0], clean, corrupt)
    inside = np.array([int(cell.name.partition("/")[0].removeprefix("layer_")) for cell in cells])
    own = (np.arange(blocks)[:, None] == inside) & (site != "resid_pre")
    drops = np.where(own[None, :, :, None], 0.0, drops)
    signs = np.sign(drops.mean(-1, keepdims=True)) * (1.0 if (clean - corrupt).mean() >= 0 else -1.0)
    sizes = (signs * drops).sum(1) / (blocks - own.sum(0))[:, None]
    return Dropped(cells, pairs, sizes, clean, corrupt, drops=drops)


def droppable(model: OpenLM) -> bool:
    """Whether a block can be left out: of two, the other is often the only way to the answer."""
    return len(anatomy(model.module).blocks) > 2


class _Change:
    """How far each cell's activation goes from one run to the other, and where its slope is taken."""

    def __init__(self, model: OpenLM, pairs: Encoded, cells: list[Cell], site: str) -> None:
        self.model, self.cells, self.site = model, cells, site
        self.graph = graph_of(model.module) if site in ("q", "k") else None
        sites = [site_of_z(at) for at in range(len(self.graph.layers))] if self.graph else []
        self.maps = list(dict.fromkeys(cell.edit.site for cell in cells))
        self.sites = sites or self.maps
        self.passes = 1 if self.graph else 0

    def towards(self, ids: Tensor, other: Tensor) -> dict[str, Tensor]:
        """Site -> (N, T, ...) what the other run would change there."""
        here = traced(self.model, ids, self.sites)
        there = traced(self.model, other, self.maps)
        if self.graph is not None:
            where = self.cells[0].edit.positions
            there = repatterned(self.model, self.graph, self.site, ids, here, there, where)
        return {one: there[one] - here[one] for one in self.sites}

    def measured(self, products: Mapping[str, Tensor]) -> Tensor:
        """(C, N) of products (N, T, ...) by site."""
        if self.graph is None:
            return torch.stack([summed(products[cell.edit.site], cell) for cell in self.cells])
        found = []
        for layer, wiring in enumerate(self.graph.layers):
            heads = products[site_of_z(layer)].double().sum((1, 3)).T.cpu()
            group = list(range(self.graph.heads)) if self.site == "q" else list(wiring.group)
            found += [
                heads[[query for query, key in enumerate(group) if key == head]].sum(0)
                for head in range(len(wiring.heads[self.site].columns))
            ]
        return torch.stack(found)
