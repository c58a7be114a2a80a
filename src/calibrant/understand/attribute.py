"""Attribution patching: every cell's effect from gradients (AtP, AtP*, RelP), audited by exact patching.

    denoise  (a(clean) - a(corrupt)) . dm/da at the corrupted run, over m(clean) - m(corrupt)
    noise    (a(clean) - a(corrupt)) . dm/da at the clean run, over the same

AtP: two forward passes and two backward ones for all cells (Nanda 2023), where patching takes one for each.
It is a straight line drawn at one end of a curve: where attention saturates or two paths cancel, it misses
what is there. Two mended forms:

- AtP* (Kramar et al. 2024, 2403.00745) leaves out one block at a time in the backward pass and takes the
  mean size (GradDrop, eq. 11), so that paths that cancel show. For queries and keys the pattern is worked out
  anew, and the line begins behind it (eq. 7, 10). Sizes, without a sign.
- RelP (Rezaei Jafari et al. 2025, 2508.21258) has relevance in the place of the gradient: norms keep their
  scale, activation functions their ratio, products are halved.

None is exact. So the strongest cells, and some at random, are patched exactly:

1. ``exact/...`` of the strongest, ``audit/error`` the mean distance of the two there.
2. ``audit/rank_correlation`` over all cells that were patched exactly (Spearman).
3. ``audit/missed`` what cells outside the strongest do by exact patching, summed, with its interval.

    calibrant show understand.attribute
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from calibrant.core import Estimate, OpenLM, Quiet, Result, Run, technique
from calibrant.core.figure_data import Datum, FigureData, by_names
from calibrant.data.rows import Contrasts
from calibrant.understand import _cards as cards
from calibrant.understand._audit import audit, choose
from calibrant.understand._cells import Cell, Cells, cells_of, left_out
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import Effects, both_ways, effects_of
from calibrant.understand._slopes import Method, droppable, estimated

_NOTES: Mapping[Method, tuple[str, ...]] = {
    "atp": (
        "a gradient is the slope at one end: cells that saturate or cancel may read 0 (see audit/missed)",
    ),
    "atp_star": (
        "AtP* gives sizes without a sign or an interval: what only adds noise is above 0, too",
        "paths that cancel inside one block are not told apart; a later head that saturates is not mended",
    ),
    "relp": ("relevance is not the slope: 'exact' says how far it is from what patching does",),
}
_WHOLE = "GradDrop needs three blocks: none was left out, and only queries and keys are unlike AtP"


class Attribution(Cells):
    """Which cells, how their effects are estimated, and how many are patched exactly."""

    method: Method = "atp"
    """Gradients as they are (atp); one block at a time left out, and attention worked out anew for queries
    and keys (atp_star); or relevance in their place (relp)."""
    pattern: Literal["slope", "frozen"] = "slope"
    """For relp: whether relevance goes through attention patterns, or they are kept (the AH-rule)."""
    top: int = Field(default=10, ge=1)
    """So many of the strongest cells are patched exactly."""
    sample: int = Field(default=20, ge=2)
    """So many of the other cells, drawn at random, are patched exactly, too."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pattern == "frozen" and self.method != "relp":
            raise ValueError(f"pattern = 'frozen' is a rule of relp, and the method is '{self.method}'")
        if self.pattern == "frozen" and self.site in ("q", "k"):
            raise ValueError(
                f"with frozen patterns no {self.site} carries anything: set pattern = 'slope', or site = 'v'"
            )
        return self


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


@technique(version=2)  # version 1 counted a pair and its swap twice
def attribute(
    model: OpenLM, contrasts: Contrasts, config: Attribution = Attribution(), run: Run = Quiet()
) -> AttributionResult:
    """Attribute the answer of ``model`` to every cell, in both directions, and audit the strongest.

    Raises:
        InputError: pairs that cannot be compared: see the page.
        CapabilityError: the model has no such sites, is not causal, or computes what RelP has no rule for.
        NumericalError: a gradient or a patched run is NaN or infinite.
    """
    pairs = encode(model, contrasts, config.limit)
    cells = cells_of(model, config, pairs.clean.shape[1])
    effects = estimated(model, pairs, cells, config.site, config.method, config.pattern == "frozen", run)
    metrics, chances = effects.metrics(config, run.seed)
    metrics |= _audit(model, cells, effects, config, run)
    effects.write(run, chances)
    whole = config.method == "atp_star" and not droppable(model)
    notes = (
        *((_WHOLE,) if whole else _NOTES[config.method]),
        f"{len(cells)} cells in two directions: 'found' is corrected for looking at all, an interval is not",
        *_underrated(metrics, config.floor),
        *_cards(model, config),
    )
    return AttributionResult(metrics=metrics, caveats=(*notes, *effects.notes, *left_out(model, cells)))


def _underrated(metrics: Mapping[str, Estimate], floor: float) -> list[str]:
    """A caveat where cells that were patched do what their estimate does not say."""
    names = [
        name.removeprefix("exact/")
        for name, exact in metrics.items()
        if name.startswith("exact/") and exact.value is not None and abs(exact.value) >= floor
    ]
    low = [name for name in names if (told := metrics[name].value) is not None and abs(told) < floor]
    if not low:
        return []
    shown = ", ".join(low[:3]) + (", ..." if len(low) > 3 else "")
    return [
        f"{len(low)} effects above the floor by patching are below it by estimate ({shown}): "
        "it misses these, and may miss cells that were not patched"
    ]


def _cards(model: OpenLM, config: Attribution) -> list[str]:
    if config.pattern == "frozen":
        return ["no card: RelP is calibrated with pattern = 'slope'"]
    return cards.notes(model, config.site, "gradient" if config.method == "atp" else config.method)


def _audit(
    model: OpenLM, cells: list[Cell], effects: Effects, config: Attribution, run: Run
) -> dict[str, Estimate]:
    """Exact patching of the strongest cells and of some drawn at random."""
    strength = np.abs(effects.values.mean(2)).max(0)
    chosen = choose(strength, config.top, config.sample, run.seed)
    some = [cells[at] for at in chosen.all]
    sweeps = both_ways(model, effects.pairs, [(cell.edit,) for cell in some], run)
    return audit(effects, effects_of(some, effects.pairs, *sweeps).values, chosen, "cell")
