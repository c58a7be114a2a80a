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

import random

import numpy as np
import torch
from pydantic import Field
from scipy.stats import spearmanr
from torch import Tensor

from calibrant.core import Estimate, OpenLM, Quiet, Result, Run, point, technique, unknown
from calibrant.data.rows import Contrasts
from calibrant.stats import mean
from calibrant.understand import _cards as cards
from calibrant.understand._cells import Cell, Cells, cells_of, left_out
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import WAYS, Effects, Floats, both_ways, effects_of
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
    metrics |= _audit(model, effects, config, run)
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


def _audit(model: OpenLM, effects: Effects, config: Attribution, run: Run) -> dict[str, Estimate]:
    """Exact patching of the strongest cells and of some drawn at random."""
    count = len(effects.cells)
    strength = np.abs(effects.values.mean(2)).max(0)
    top = np.argsort(-strength, kind="stable")[: config.top].tolist()
    rest = [at for at in range(count) if at not in top]
    drawn = sorted(random.Random(run.seed).sample(rest, min(config.sample, len(rest))))
    chosen = sorted({*top, *drawn})
    cells = [effects.cells[at] for at in chosen]
    exact = effects_of(
        cells, effects.pairs, *both_ways(model, effects.pairs, [(c.edit,) for c in cells], run)
    )
    found: dict[str, Estimate] = {}
    for side, way in enumerate(WAYS):
        truth = {at: exact.values[side, row] for row, at in enumerate(chosen)}
        found |= {f"exact/{way}/{effects.cells[at].name}": effects.share(truth[at]) for at in sorted(top)}
        found |= {f"audit/{k}/{way}": one for k, one in _figures(effects, side, truth, top, drawn).items()}
    return found


def _figures(
    effects: Effects, side: int, truth: dict[int, Floats], top: list[int], drawn: list[int]
) -> dict[str, Estimate]:
    """How far the gradient's effects are from the exact ones."""
    if not effects.testable:
        return dict.fromkeys(("error", "rank_correlation", "missed"), unknown(effects.idle, unit="cell"))
    whole = float(effects.total.mean())
    pairs = {at: (effects.values[side, at].mean() / whole, one.mean() / whole) for at, one in truth.items()}
    error = float(np.mean([abs(guess - exact) for guess, exact in (pairs[at] for at in top)]))
    ranks = np.array(list(pairs.values()))
    rank = unknown("the cells are alike", n=len(ranks), unit="cell")
    if len(ranks) > 2 and float(np.ptp(ranks, axis=0).min()) > 0:
        rank = point(float(spearmanr(ranks).statistic), unit="cell", n=len(ranks))
    outside = [float(abs(pairs[at][1])) for at in drawn]
    return {
        "error": point(error, unit="cell", n=len(top)),
        "rank_correlation": rank,
        "missed": _missed(outside, len(effects.cells) - len(top)),
    }


def _missed(outside: list[float], count: int) -> Estimate:
    """What ``count`` cells outside the strongest do in all, by the exact effects of those drawn."""
    if len(outside) == count:  # all of them: nothing is estimated
        whole = sum(outside)
        return Estimate(value=whole, low=whole, high=whole, n=count, unit="cell", method="counted")
    one = mean(outside, better="lower", unit="cell")
    low, high = (None if end is None else max(0.0, end * count) for end in (one.low, one.high))
    value = None if one.value is None else one.value * count
    return one.model_copy(update={"value": value, "low": low, "high": high})
