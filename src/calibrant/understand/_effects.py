"""Effects of cells on pairs of prompts, both ways: shares with intervals, finds, and the artefact."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calibrant.core import Estimate, OpenLM, Run, point, unknown
from calibrant.stats import mean
from calibrant.stats.max_statistic import least_p, max_sign_flip
from calibrant.understand._cells import Cell
from calibrant.understand._contrasts import Encoded
from calibrant.understand._engine.patches import Patch
from calibrant.understand._engine.plan import shared_start
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import Swept, sweep, traced

Floats = NDArray[np.float64]
UNIT = "pair"
WAYS = ("denoise", "noise")


class Named(Protocol):
    """Something whose effect is measured: a cell, an edge, a circuit."""

    @property
    def name(self) -> str:
        """In metrics."""
        ...


class Finding(Protocol):
    """What counts as found."""

    @property
    def floor(self) -> float:
        """Least share of the corruption's effect."""
        ...

    @property
    def level(self) -> float:
        """Chance of any false find that is accepted."""
        ...


@dataclass(frozen=True)
class Effects:
    """What each cell does to the reading of each pair."""

    cells: Sequence[Named]
    pairs: Encoded
    values: Floats
    """(2, C, N) in the reading's unit: denoising, noising."""
    clean: Floats
    """(N,) the reading of the clean prompt."""
    corrupt: Floats
    """(N,) the reading of the corrupted prompt."""

    unsigned: ClassVar[bool] = False
    """Whether values are sizes, without a sign."""

    @property
    def total(self) -> Floats:
        """(N,) the corruption's effect."""
        return self.clean - self.corrupt

    @cached_property
    def idle(self) -> str:
        """Why nothing is testable: the corruption's mean effect must have an interval that leaves out 0."""
        return why_idle(self._mean(self.total), "the corruption's effect")

    @property
    def testable(self) -> bool:
        """Whether the corruption changes the answer beyond doubt."""
        return not self.idle

    @property
    def notes(self) -> list[str]:
        """Caveats of these pairs."""
        notes = [*self.pairs.notes, *([self.idle] if self.idle else [])]
        if self.testable and self.total.mean() < 0:
            notes.append("the answer is likelier after the corrupted prompt: are answer and foil swapped?")
        return notes

    def share(self, effect: Floats) -> Estimate:
        """Ratio of means, with the interval of its linearised values (delta method); effect is (N,)."""
        if not self.testable:
            return unknown(self.idle, n=effect.size, unit=UNIT)
        ratio = float(effect.mean() / self.total.mean())
        linear = ratio + (effect - ratio * self.total) / self.total.mean()
        return self._mean(linear, null_value=0.0)

    def estimate(self, side: int, at: int) -> Estimate:
        """The share of one cell."""
        return self.share(self.values[side, at])

    def chances(self, level: float, seed: int) -> tuple[Floats, str]:
        """p-values (2, C), corrected for looking at all cells, and why none can reach ``level``."""
        return corrected(self.values, self.pairs.clusters, level, seed)

    def ground(self) -> dict[str, Estimate]:
        """What the corruption does, and how often the answer is likelier than the foil."""
        return {
            "total_effect": self._mean(self.total),
            "clean_right": self._right(self.clean),
            "corrupt_right": self._right(self.corrupt),
        }

    def metrics(self, config: Finding, seed: int) -> tuple[dict[str, Estimate], Floats]:
        """Metrics of all cells, and the corrected p-values (2, C)."""
        count = len(self.cells)
        chances, mute = self.chances(config.level, seed)
        mute = mute or self.idle
        found = self.ground()
        shares = {
            way: {cell.name: self.estimate(side, at) for at, cell in enumerate(self.cells)}
            for side, way in enumerate(WAYS)
        }
        for side, way in enumerate(WAYS):
            hits = sum(
                one.value is not None and chance <= config.level and abs(one.value) >= config.floor
                for one, chance in zip(shares[way].values(), chances[side], strict=True)
            )
            found[f"found/{way}"] = (
                unknown(mute, n=count, unit="cells") if mute else point(hits, unit="cells", n=count)
            )
        for way in WAYS:
            found |= {f"{way}/{name}": one for name, one in shares[way].items()}
        return found, chances

    def write(self, run: Run, chances: Floats) -> None:
        """Artefact 'effects.json': every effect of every pair, in logits, and the corrected p-values."""
        table = {
            "pairs": [row.id for row in self.pairs.rows],
            "total": _rounded(self.total),
            "cells": [
                {"cell": cell.name}
                | {
                    way: {"p": float(chances[side, at]), "effects": _rounded(self.values[side, at])}
                    for side, way in enumerate(WAYS)
                }
                for at, cell in enumerate(self.cells)
            ],
        }
        run.artifact("effects.json").write_text(json.dumps(table), encoding="utf-8")

    def _right(self, reading: Floats) -> Estimate:
        return self._mean((reading > 0).astype(np.float64), bounds=(0.0, 1.0))

    def _mean(
        self,
        values: Floats,
        bounds: tuple[float, float] | None = None,
        null_value: float | None = None,
    ) -> Estimate:
        return mean(
            values.tolist(),
            clusters=self.pairs.clusters,
            better="none",
            unit=UNIT,
            bounds=bounds,
            null_value=null_value,
        )


def why_idle(whole: Estimate, what: str) -> str:
    """Why nothing is testable: the effect to be explained has no interval, or one that holds 0; "" if not."""
    if whole.low is None or whole.high is None:
        return f"not testable: {what} has no interval ({whole.reason})"
    return f"not testable: the interval of {what} holds 0" if whole.low <= 0 <= whole.high else ""


def corrected(values: Floats, clusters: Sequence[str] | None, level: float, seed: int) -> tuple[Floats, str]:
    """p-values (W, C) of effects (W, C, N) corrected for looking at all, and why none can reach ``level``."""
    draws = min(100_000, max(2000, math.ceil(20 / level)))
    table = values.reshape(-1, values.shape[-1])
    chances = max_sign_flip(table, clusters=clusters, draws=draws, seed=seed).reshape(values.shape[:-1])
    least = least_p(len(set(clusters)) if clusters else values.shape[-1], draws)
    few = "more clusters: rows of one cluster count as one" if clusters else "more rows"
    return chances, f"no p-value can be below {least:.2g}: give {few}" if least > level else ""


def both_ways(model: OpenLM, pairs: Encoded, patches: Sequence[Patch], run: Run) -> tuple[Swept, Swept]:
    """Sweeps of the corrupted run with clean activations, and of the clean run with corrupted ones."""
    sites = list(dict.fromkeys(edit.site for patch in patches for edit in patch))
    read = LogitDifference(pairs.answers, pairs.foils)

    def one(ids: Tensor, other: Tensor, note: str) -> Swept:
        sources = traced(model, other, sites)
        found = sweep(
            model, ids, sources, patches, read,
            lambda done, total: run.progress(done, total, note), shared=shared_start(ids, other),
        )  # fmt: skip
        run.spend(queries=found.passes)
        return found

    denoised = one(pairs.corrupt, pairs.clean, "into the corrupted run")
    return denoised, one(pairs.clean, pairs.corrupt, "into the clean run")


def effects_of(cells: Sequence[Cell], pairs: Encoded, denoised: Swept, noised: Swept) -> Effects:
    """What two sweeps over the same cells found."""
    effects = np.stack([(denoised.values - denoised.base).numpy(), (noised.base - noised.values).numpy()])
    return Effects(cells, pairs, effects, noised.base.numpy(), denoised.base.numpy())


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 6) for value in values]
