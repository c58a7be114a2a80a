"""Activation patching: what of a run, put into another, brings its answer back, or takes it away.

For every cell (layer, and position or head) two questions, both asked by default since they see different
things (Heimersheim & Nanda 2024, 2404.15255):

    denoise  [m(corrupt with the clean activation) - m(corrupt)] / [m(clean) - m(corrupt)]
    noise    [m(clean) - m(clean with the corrupted activation)] / [m(clean) - m(corrupt)]

m is the logit of the answer less that of the foil at the last position. Each is a ratio of means over the
pairs. Where parts stand in for each other, noising sees none of them; where all are needed, denoising does.

1. Effects are per pair, and stored. Intervals are of the ratio, clusters of pairs drawn whole.
2. ``found`` counts cells that are beyond chance after looking at all of them (sign flips of pairs, largest
   statistic over all cells and both directions) and above the floor.
3. ``interactions`` of the strongest cells say whether two do the same work: R(u, v) - R(u) - R(v).
4. Where the corruption does not change the answer, nothing is testable, and the metrics are unknown.

    calibrant show understand.patch
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from calibrant.core import (
    CapabilityError,
    Estimate,
    Frozen,
    OpenLM,
    Quiet,
    Result,
    Run,
    point,
    technique,
    unknown,
)
from calibrant.data.rows import Contrasts
from calibrant.models.anatomy import anatomy
from calibrant.models.sites import places
from calibrant.stats import mean
from calibrant.stats.max_statistic import max_sign_flip
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._engine.patches import Edit, Patch
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import Swept, sweep, traced

Site = Literal["resid_pre", "resid_mid", "attn_out", "mlp_out", "z"]
_HOOKS: Mapping[Site, str] = {"z": "attn.hook_z"}
UNIT = "share of the corruption's effect"


class Patching(Frozen):
    """What is patched, and what counts as found."""

    site: Site = "resid_pre"
    """The residual stream before a layer or between attention and MLP, what either adds to it, or each head's
    own output (z)."""
    positions: Literal["each", "all", "last"] = "each"
    """Every position by itself, all at once, or the last alone. Heads (z): at all or at the last."""
    floor: float = Field(default=0.1, ge=0)
    """Least share of the corruption's effect that counts as found."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find in the whole sweep that is accepted."""
    interactions: int = Field(default=3, ge=0, le=8)
    """So many of the strongest cells are also patched two at a time. 0: none."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs, evenly spread. None: all."""

    @model_validator(mode="after")
    def _few_enough(self) -> Patching:
        if self.site == "z" and self.positions == "each":
            raise ValueError(
                "heads (z) at each position are too many cells: set positions to 'all' or 'last'"
            )
        return self


class PatchResult(Result):
    """``denoise/CELL`` and ``noise/CELL`` for each cell (``layer_3/position_5``, ``layer_1/head_2``, ...),
    ``found/denoise`` and ``found/noise``, ``total_effect``, ``clean_right``. Artefact 'effects.json'."""


class Cell(NamedTuple):
    """One place that is patched."""

    name: str
    patch: Patch


@technique(version=1)
def patch(
    model: OpenLM, contrasts: Contrasts, config: Patching = Patching(), run: Run = Quiet()
) -> PatchResult:
    """Patch every cell of ``model`` in both directions, on pairs of a clean and a corrupted prompt.

    Raises:
        InputError: pairs that cannot be compared: see the page.
        CapabilityError: the model has no such sites, or is not causal.
        NumericalError: a patched run gives NaN.
    """
    rows = contrasts.rows
    if config.limit is not None and len(rows) > config.limit:
        rows = tuple(rows[i * len(rows) // config.limit] for i in range(config.limit))
    pairs = encode(model, contrasts.model_copy(update={"rows": rows}))
    cells = _cells(model, config, pairs.clean.shape[1])
    runs = _Both(model, pairs, run)
    denoised, noised = runs.sweep([cell.patch for cell in cells])
    total = (denoised.clean - denoised.corrupt).numpy()
    effects = np.stack([denoised.effects, noised.effects])
    shares = [[_share(effect, total, pairs) for effect in side] for side in effects]
    testable = shares[0][0].value is not None
    chances = max_sign_flip(effects.reshape(-1, len(total)), clusters=pairs.clusters, seed=run.seed)
    chances = chances.reshape(2, -1)
    metrics = {
        "total_effect": _mean(total, pairs, "logits, answer less foil, clean less corrupted"),
        "clean_right": _mean((denoised.clean > 0).double().numpy(), pairs, "pair", bounds=(0.0, 1.0)),
        "corrupt_right": _mean((denoised.corrupt > 0).double().numpy(), pairs, "pair", bounds=(0.0, 1.0)),
    }
    for side, name in enumerate(("denoise", "noise")):
        hits = [
            cell.name
            for cell, share, chance in zip(cells, shares[side], chances[side], strict=True)
            if share.value is not None and chance <= config.level and abs(share.value) >= config.floor
        ]
        metrics[f"found/{name}"] = (
            point(len(hits), unit="cells", n=len(cells))
            if testable
            else unknown(_IDLE, n=len(total), unit="cells")
        )
        metrics |= {f"{name}/{cell.name}": share for cell, share in zip(cells, shares[side], strict=True)}
    if testable and config.interactions > 1:
        metrics |= _interactions(runs, cells, effects, shares, total, pairs, config.interactions)
    _write(run, pairs, cells, effects, chances, total)
    return PatchResult(metrics=metrics, caveats=_caveats(denoised.how, testable, config, cells))


_IDLE = "not testable: the interval of the corruption's effect holds 0"


class _Swept(NamedTuple):
    """One direction: effects (C, N), and both unpatched readings (N,)."""

    effects: np.ndarray
    clean: Tensor
    corrupt: Tensor
    how: str


class _Both:
    """Sweeps in both directions over the same pairs."""

    def __init__(self, model: OpenLM, pairs: Encoded, run: Run) -> None:
        self.model, self.pairs, self.run = model, pairs, run
        self.read = LogitDifference(pairs.answers, pairs.foils)

    def sweep(self, patches: Sequence[Patch]) -> tuple[_Swept, _Swept]:
        """Denoising and noising effects of each patch."""
        sites = list(dict.fromkeys(edit.site for patch in patches for edit in patch))
        clean, corrupt = self.pairs.clean, self.pairs.corrupt
        into_corrupt = self._one(corrupt, clean, sites, patches, "into the corrupted run")
        into_clean = self._one(clean, corrupt, sites, patches, "into the clean run")
        plain = into_clean.base, into_corrupt.base
        denoised = (into_corrupt.values - into_corrupt.base).numpy()
        noised = (into_clean.base - into_clean.values).numpy()
        return _Swept(denoised, *plain, into_corrupt.how), _Swept(noised, *plain, into_clean.how)

    def _one(
        self, ids: Tensor, other: Tensor, sites: list[str], patches: Sequence[Patch], note: str
    ) -> Swept:
        sources = traced(self.model, other, sites)

        def progress(done: int, total: int) -> None:
            self.run.progress(done, total, note)

        found = sweep(self.model, ids, sources, patches, self.read, progress)
        self.run.spend(queries=found.passes)
        return found


def _cells(model: OpenLM, config: Patching, length: int) -> list[Cell]:
    known, layers = places(model.module), len(anatomy(model.module).blocks)
    hook = _HOOKS.get(config.site, f"hook_{config.site}")
    sites = [(layer, site) for layer in range(layers) if (site := f"blocks.{layer}.{hook}") in known]
    if not sites:
        raise CapabilityError(
            f"'{model.identity.name}' has no {hook}: its blocks do not add attention, then MLP, to a stream",
            hint="model.sites() lists what it has; site = 'resid_pre' works for most",
        )
    where: dict[str, tuple[int, ...] | None] = {"": None}
    if config.positions == "last":
        where = {"": (-1,)}
    if config.positions == "each":
        where = {f"/position_{at}": (at,) for at in range(length)}
    cells = []
    for layer, site in sites:
        heads: list[tuple[int] | None] = [(h,) for h in range(known[site].heads)] or [None]
        for part in heads:
            for name, positions in where.items():
                head = "" if part is None else f"/head_{part[0]}"
                cells.append(Cell(f"layer_{layer}{head}{name}", (Edit(site, positions, part),)))
    return cells


def _share(effect: np.ndarray, total: np.ndarray, pairs: Encoded) -> Estimate:
    """Ratio of means, with the interval of its linearised values (delta method)."""
    whole = _mean(total, pairs, "logits")
    if whole.low is None or whole.high is None or whole.low <= 0 <= whole.high:
        return unknown(_IDLE, n=len(total), unit=UNIT)
    ratio = float(effect.mean() / total.mean())
    return _mean(ratio + (effect - ratio * total) / total.mean(), pairs, UNIT, null_value=0.0)


def _mean(
    values: np.ndarray,
    pairs: Encoded,
    unit: str,
    bounds: tuple[float, float] | None = None,
    null_value: float | None = None,
) -> Estimate:
    return mean(
        values.tolist(),
        clusters=pairs.clusters,
        better="none",
        unit=unit,
        bounds=bounds,
        null_value=null_value,
    )


def _interactions(
    runs: _Both,
    cells: Sequence[Cell],
    effects: np.ndarray,
    shares: Sequence[Sequence[Estimate]],
    total: np.ndarray,
    pairs: Encoded,
    count: int,
) -> dict[str, Estimate]:
    """R(u, v) - R(u) - R(v) of the strongest cells, two at a time, in both directions."""
    strength = np.abs(effects.mean(2)).max(0)
    top = sorted(np.argsort(-strength, kind="stable")[:count].tolist())
    couples = list(combinations(top, 2))
    if not couples:
        return {}
    both = runs.sweep([cells[u].patch + cells[v].patch for u, v in couples])
    found = {}
    for side, name in enumerate(("denoise", "noise")):
        for (u, v), effect in zip(couples, both[side].effects, strict=True):
            more = effect - effects[side, u] - effects[side, v]
            found[f"interaction/{name}/{cells[u].name}+{cells[v].name}"] = _share(more, total, pairs)
    return found


def _write(
    run: Run,
    pairs: Encoded,
    cells: Sequence[Cell],
    effects: np.ndarray,
    chances: np.ndarray,
    total: np.ndarray,
) -> None:
    """Artefact 'effects.json': every effect of every pair, in logits, and the corrected p-values."""
    table = {
        "pairs": [row.id for row in pairs.rows],
        "total": [round(float(x), 6) for x in total],
        "cells": [
            {
                "cell": cell.name,
                **{
                    name: {
                        "p": float(chances[side, at]),
                        "effects": [round(float(x), 6) for x in effects[side, at]],
                    }
                    for side, name in enumerate(("denoise", "noise"))
                },
            }
            for at, cell in enumerate(cells)
        ],
    }
    run.artifact("effects.json").write_text(json.dumps(table))


def _caveats(how: str, testable: bool, config: Patching, cells: Sequence[Cell]) -> tuple[str, ...]:
    notes = [
        "patching shows where what the corruption changed is carried: what it leaves alone is not seen",
        f"{len(cells)} cells in two directions: 'found' is corrected for looking at all, an interval is not",
    ]
    if how != "from the patch on":
        notes.append(f"this family's patched runs were made {how}: skipping blocks gave other numbers")
    if not testable:
        notes.append(_IDLE)
    return tuple(notes)
