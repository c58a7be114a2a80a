"""Attribution patching (AtP): every cell's effect from two gradients, and an audit by exact patching.

    denoise  (a(clean) - a(corrupt)) . dm/da at the corrupted run, over m(clean) - m(corrupt)
    noise    (a(clean) - a(corrupt)) . dm/da at the clean run, over the same

Two forward passes and two backward ones for all cells (Nanda 2023; Kramar et al. 2024, 2403.00745), where
patching takes a pass for each. It is a straight line drawn at one end of a curve: where attention saturates
or two paths cancel, it misses what is there. So the strongest cells, and some at random, are patched exactly:

1. ``exact/...`` of the strongest, ``audit/error`` the mean distance of the two there.
2. ``audit/rank_correlation`` over all cells that were patched exactly (Spearman).
3. ``audit/missed`` what cells outside the strongest do by exact patching, summed, with its interval.

    calibrant show understand.attribute
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import Estimate, OpenLM, Quiet, Result, Run, technique
from calibrant.core.figure_data import Datum, FigureData, by_names
from calibrant.data.rows import Contrasts
from calibrant.understand import _cards as cards
from calibrant.understand._audit import audit, choose
from calibrant.understand._cells import Cell, Cells, cells_of, left_out
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import Effects, both_ways, effects_of
from calibrant.understand._engine.gradients import gradients
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import traced


class Attribution(Cells):
    """Which cells, and how many are patched exactly."""

    top: int = Field(default=10, ge=1)
    """So many of the strongest cells are patched exactly."""
    sample: int = Field(default=20, ge=2)
    """So many of the other cells, drawn at random, are patched exactly, too."""


class AttributionResult(Result):
    """``denoise/CELL`` and ``noise/CELL`` by gradient, ``exact/denoise/CELL`` of the strongest,
    ``audit/...``, ``found/...``, ``total_effect``, ``clean_right``. Artefact 'effects.json'."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """The sweep by gradient; and the strongest cells, by gradient and patched exactly."""
        slopes = {name: one for name, one in self.metrics.items() if not name.startswith("exact/")}
        values = []
        for name, one in self.metrics.items():
            told = name.removeprefix("exact/")
            if told != name and told in slopes:
                values.append(Datum(label=told, estimate=slopes[told], stage="by gradient"))
                values.append(Datum(label=told, estimate=one, stage="patched exactly"))
        title = "The strongest cells, by gradient and patched exactly"
        exact = FigureData(kind="intervals", values=tuple(values), title=title)
        return (*by_names(slopes), *([exact] if values else []))


@technique(version=1)
def attribute(
    model: OpenLM, contrasts: Contrasts, config: Attribution = Attribution(), run: Run = Quiet()
) -> AttributionResult:
    """Attribute the answer of ``model`` to every cell, in both directions, and audit the strongest.

    Raises:
        InputError: pairs that cannot be compared: see the page.
        CapabilityError: the model has no such sites, or is not causal.
        NumericalError: a gradient or a patched run is NaN or infinite.
    """
    pairs = encode(model, contrasts, config.limit)
    cells = cells_of(model, config, pairs.clean.shape[1])
    read, sites = LogitDifference(pairs.answers, pairs.foils), list(dict.fromkeys(c.edit.site for c in cells))
    clean, corrupt = (traced(model, ids, sites) for ids in (pairs.clean, pairs.corrupt))
    values, readings = [], []
    for ids in (pairs.corrupt, pairs.clean):
        reading, flows = gradients(model, ids, sites, read)
        products = {site: (clean[site] - corrupt[site]) * flows[site] for site in sites}
        values.append(torch.stack([_summed(products[cell.edit.site], cell) for cell in cells]))
        readings.append(reading.numpy())
        run.spend(queries=2 * len(ids))
    effects = Effects(cells, pairs, torch.stack(values).numpy(), readings[1], readings[0])
    metrics, chances = effects.metrics(config, run.seed)
    metrics |= _audit(model, cells, effects, config, run)
    effects.write(run, chances)
    notes = (
        "a gradient is the slope at one end: cells that saturate or cancel may read 0 (see audit/missed)",
        f"{len(cells)} cells in two directions: 'found' is corrected for looking at all, an interval is not",
        *cards.notes(model, config.site, "gradient"),
    )
    return AttributionResult(metrics=metrics, caveats=(*notes, *effects.notes, *left_out(model, cells)))


def _summed(product: Tensor, cell: Cell) -> Tensor:
    """(N,) float64: the product (N, T, ...) summed over what the cell holds."""
    part = product if cell.edit.positions is None else product[:, list(cell.edit.positions)]
    part = part if cell.edit.heads is None else part[:, :, list(cell.edit.heads)]
    return part.double().flatten(1).sum(1).cpu()


def _audit(
    model: OpenLM, cells: list[Cell], effects: Effects, config: Attribution, run: Run
) -> dict[str, Estimate]:
    """Exact patching of the strongest cells and of some drawn at random."""
    strength = np.abs(effects.values.mean(2)).max(0)
    chosen = choose(strength, config.top, config.sample, run.seed)
    some = [cells[at] for at in chosen.all]
    sweeps = both_ways(model, effects.pairs, [(cell.edit,) for cell in some], run)
    return audit(effects, effects_of(some, effects.pairs, *sweeps).values, chosen, "cell")
