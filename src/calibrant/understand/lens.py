"""Logit lens: the next-token prediction of every layer (nostalgebraist 2020; 2303.08112).

1. Each layer's residual stream goes through the model's own final norm and unembedding, nothing fitted.
2. Per item, over the positions that predict its answer: agreement with the final layer's first choice,
   KL(final || lens) in nats, and the probability of the answer's tokens. Intervals are over items.

    calibrant show understand.lens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax

from calibrant.core import CapabilityError, Frozen, InputError, OpenLM, Quiet, Result, Run, technique
from calibrant.core.figure_data import FigureData, by_names, curve
from calibrant.data.rows import Item, Items
from calibrant.stats import mean

_SAME = 0.01  # nats: the last layer must be read as the model itself reads it


class Lens(Frozen):
    """How the lens is read."""

    batch: int = Field(default=32, ge=1)
    """Items in one forward pass."""
    positions: Literal["all", "first"] = "all"
    """Every position that predicts the answer, or only the one that predicts its first token."""
    limit: int | None = Field(default=200, ge=1)
    """Use at most this many items, evenly spread. None: all."""


class LensResult(Result):
    """Metrics 'top1_agreement/layer_i', 'kl_to_final/layer_i' and 'answer_probability/layer_i'."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """Shares on one axis, nats on another."""
        shares = {"top1_agreement": "the last layer's first choice", "answer_probability": "the answer"}
        figures = [
            FigureData(kind="lens", values=values, title=title, axis="layer")
            for title, names in (
                ("How often each layer says what the last one says, and the answer", shares),
                ("KL from the last layer, in nats", {"kl_to_final": "KL"}),
            )
            if (values := curve(self.metrics, names))
        ]
        return (*figures, *by_names(self.metrics))


@technique(version=2)
def lens(model: OpenLM, items: Items, config: Lens = Lens(), run: Run = Quiet()) -> LensResult:
    """Read every layer of ``model`` at the positions that predict each item's answer.

    Raises:
        InputError: there are no items, or one does not fit the context.
        CapabilityError: the model's blocks, or the way from them to its logits, were not found.
        NumericalError: a reading is NaN or infinite.
    """
    if not items.rows:
        raise InputError("the lens needs at least one item", hint="give items with a known answer")
    n = min(config.limit or len(items), len(items))
    rows = [items.rows[i * len(items) // n] for i in range(n)]
    sites = [site for site in model.sites() if site.endswith("hook_resid_post")]
    if not sites:
        raise CapabilityError(
            f"no logit lens for '{model.identity.name}': its blocks were not found",
            hint="take a model of another family; model.sites() names what can be read in this one",
        )
    readings: dict[str, list[float]] = {}
    for start in range(0, n, config.batch):
        chunk = rows[start : start + config.batch]
        run.spend(queries=len(chunk))
        for name, values in read(model, chunk, sites, config.positions).items():
            readings.setdefault(name, []).extend(values)
        run.progress(start + len(chunk), n)
    if any(apart > _SAME for apart in readings[f"kl_to_final/layer_{len(sites) - 1}"]):  # beside NaN, too
        raise CapabilityError(
            f"no logit lens for '{model.identity.name}': the last layer's reading is not what it says",
            hint="apply the final norm and the unembedding by hand, by their module paths",
        )
    better = {"top1_agreement": "higher", "kl_to_final": "lower", "answer_probability": "higher"}
    return LensResult(
        metrics={
            name: mean(
                values,
                better=better[name.partition("/")[0]],  # type: ignore[arg-type]
                unit="item",
                bounds=None if name.startswith("kl") else (0.0, 1.0),
            )
            for name, values in readings.items()
        },
        caveats=(
            "the lens reads every layer in the last layer's terms: what it cannot read may still be there",
            "a lens is correlational; no claim rests on it alone: patch or ablate to see what is used",
        ),
    )


def read(
    model: OpenLM, rows: Sequence[Item], sites: Sequence[str], positions: Literal["all", "first"] = "all"
) -> dict[str, list[float]]:
    """Metric name -> one value an item, for each of ``sites`` in order (layer 0 first)."""
    batch = model.encode([row.chat for row in rows], [row.answer for row in rows])
    with torch.inference_mode():
        streams = model.trace(batch, list(sites))
        final = log_softmax(model.forward(batch)[:, :-1].float(), dim=-1)
        scored, answers = batch.reply[:, 1:], batch.ids[:, 1:, None]
        if positions == "first":
            scored = scored & (scored.cumsum(1) == 1)
        out: dict[str, list[float]] = {}
        for layer, site in enumerate(sites):
            here = log_softmax(model.unembed(streams[site])[:, :-1].float(), dim=-1)
            values = {
                "top1_agreement": (here.argmax(-1) == final.argmax(-1)).float(),
                "kl_to_final": (final.exp() * (final - here)).sum(-1),
                "answer_probability": here.gather(-1, answers)[..., 0].exp(),
            }
            for name, value in values.items():
                out[f"{name}/layer_{layer}"] = _per_item(value, scored)
    return out


def _per_item(values: Tensor, scored: Tensor) -> list[float]:
    """Mean over the scored positions of each row: (B, T) -> B numbers."""
    masked = torch.where(scored, values, torch.zeros_like(values))
    return [float(x) for x in masked.sum(1) / scored.sum(1)]
