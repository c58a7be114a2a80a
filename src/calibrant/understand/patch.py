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

import re
from itertools import combinations

import numpy as np
from pydantic import Field, field_validator

from calibrant.core import Estimate, OpenLM, Quiet, Result, Run, technique
from calibrant.core.figure_data import Datum, FigureData, by_names
from calibrant.data.rows import Contrasts
from calibrant.understand import _cards as cards
from calibrant.understand._cells import Cells, cells_of, left_out
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import WAYS, Effects, both_ways, effects_of

_COUPLE = re.compile(r"interaction/(?P<way>\w+)/(?P<one>[^+]+)\+(?P<other>[^+]+)")


class Patching(Cells):
    """What is patched, and what counts as found."""

    interactions: int = Field(default=3, ge=0, le=8)
    """So many of the strongest cells are also patched two at a time, so 2 or more. 0: none."""

    @field_validator("interactions")
    @classmethod
    def _two_or_none(cls, count: int) -> int:
        if count == 1:
            raise ValueError("one cell has none to interact with: give 0, or 2 and more")
        return count


class PatchResult(Result):
    """``denoise/CELL`` and ``noise/CELL`` for each cell (``layer_3/position_5``, ``layer_1/head_2``, ...),
    ``found/denoise`` and ``found/noise``, ``total_effect``, ``clean_right``. Artefact 'effects.json'."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """The sweep in both directions; and the strongest cells, each with each."""
        values = []
        for name, one in self.metrics.items():
            if match := _COUPLE.fullmatch(name):
                ends = [end.replace("_", " ").replace("/", ", ") for end in match.group("one", "other")]
                for row, column in (ends, ends[::-1]):
                    values.append(Datum(label=match["way"], estimate=one, row=row, column=column))
        title = "The strongest cells, two at a time: together, less each alone"
        couples = FigureData(kind="matrix", values=tuple(values), title=title, axis="cell")
        return (*by_names(self.metrics), *([couples] if values else []))


@technique(version=3)  # version 2 counted a pair and its swap twice
def patch(
    model: OpenLM, contrasts: Contrasts, config: Patching = Patching(), run: Run = Quiet()
) -> PatchResult:
    """Patch every cell of ``model`` in both directions, on pairs of a clean and a corrupted prompt.

    Raises:
        InputError: pairs that cannot be compared: see the page.
        CapabilityError: the model has no such sites, or is not causal.
        NumericalError: a patched run gives NaN.
    """
    pairs = encode(model, contrasts, config.limit)
    cells = cells_of(model, config, pairs.clean.shape[1])
    denoised, noised = both_ways(model, pairs, [(cell.edit,) for cell in cells], run)
    effects = effects_of(cells, pairs, denoised, noised)
    metrics, chances = effects.metrics(config, run.seed)
    if effects.testable and config.interactions:
        metrics |= _interactions(model, effects, config.interactions, run)
    effects.write(run, chances)
    notes = [
        "patching shows where what the corruption changed is carried: what it leaves alone is not seen",
        f"{len(cells)} cells in two directions: 'found' is corrected for looking at all, an interval is not",
    ]
    if denoised.how in ("in full", "one row at a time"):
        notes.append(f"this family's patched runs were made {denoised.how}: skipping more gave other numbers")
    notes += cards.notes(model, config.site, *WAYS)
    return PatchResult(metrics=metrics, caveats=(*notes, *effects.notes, *left_out(model, cells)))


def _interactions(model: OpenLM, effects: Effects, count: int, run: Run) -> dict[str, Estimate]:
    """R(u, v) - R(u) - R(v) of the strongest cells, two at a time, in both directions."""
    strength, cells = np.abs(effects.values.mean(2)).max(0), effects.cells
    top = sorted(np.argsort(-strength, kind="stable")[:count].tolist())
    couples = list(combinations(top, 2))
    if not couples:
        return {}
    sweeps = both_ways(model, effects.pairs, [(cells[u].edit, cells[v].edit) for u, v in couples], run)
    together = effects_of([cells[u] for u, _ in couples], effects.pairs, *sweeps).values
    return {
        f"interaction/{way}/{cells[u].name}+{cells[v].name}": effects.share(
            together[side, at] - effects.values[side, u] - effects.values[side, v]
        )
        for side, way in enumerate(WAYS)
        for at, (u, v) in enumerate(couples)
    }
