"""The cells of a sweep: a site of each layer, by position or by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from calibrant.core import CapabilityError, Frozen, OpenLM
from calibrant.models.anatomy import anatomy
from calibrant.models.batching import batching
from calibrant.models.sites import places
from calibrant.understand._engine.columns import KINDS
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.patches import Edit, check_still

Site = Literal["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v"]
HEADS = ("z", "q", "k", "v")
"""Sites that are made of heads."""
_HOOKS: Mapping[Site, str] = {"z": "attn.hook_z"}


class Cells(Frozen):
    """Which cells there are, and what counts as found in them."""

    site: Site = "resid_pre"
    """The residual stream before a layer or between attention and MLP, what either adds to it, or each head's
    own output (z), queries, keys or values (q, k, v: before positions turn them)."""
    positions: Literal["each", "all", "last"] = "each"
    """Every position by itself, all at once, or the last alone. Heads (z, q, k, v): at all or at the last."""
    floor: float = Field(default=0.1, ge=0)
    """Least share of the corruption's effect that counts as found."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find in the whole sweep that is accepted."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs, evenly spread. None: all."""

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if self.site in HEADS and self.positions == "each":
            raise ValueError(
                f"heads ({self.site}) at each position are too many cells: set positions to 'all' or 'last'"
            )
        return self


class Cell(NamedTuple):
    """One place."""

    name: str
    """'layer_3/position_5', 'layer_1/head_2', 'layer_0'."""
    edit: Edit


def cells_of(model: OpenLM, config: Cells, length: int) -> list[Cell]:
    """Every cell of prompts of ``length`` tokens, layer by layer.

    Keys and values that several query heads share are cells once: they count their own heads.

    Raises:
        CapabilityError: the model does not have the site, or is not causal.
    """
    check_still(model.module)  # a dropout looks like a look ahead
    batching(model.module)  # raises where the model is not causal
    where: dict[str, tuple[int, ...] | None] = {"": None if config.positions == "all" else (-1,)}
    if config.positions == "each":
        where = {f"/position_{at}": (at,) for at in range(length)}
    if config.site in KINDS:
        return [
            Cell(f"layer_{layer}/head_{head}{name}", Edit(own.path, at, None, tuple(columns)))
            for layer, wiring in enumerate(graph_of(model.module).layers)
            for own in [wiring.heads[config.site]]
            for head, columns in enumerate(own.columns.tolist())
            for name, at in where.items()
        ]
    known, layers = places(model.module), len(anatomy(model.module).blocks)
    hook = _HOOKS.get(config.site, f"hook_{config.site}")
    sites = [(layer, site) for layer in range(layers) if (site := f"blocks.{layer}.{hook}") in known]
    if not sites:
        raise CapabilityError(
            f"'{model.identity.name}' has no {hook}: its blocks do not add attention, then MLP, to a stream",
            hint="model.sites() lists what it has; site = 'resid_pre' works for most",
        )
    cells = []
    for layer, site in sites:
        heads: list[tuple[int] | None] = [(h,) for h in range(known[site].heads)] or [None]
        for part in heads:
            head = "" if part is None else f"/head_{part[0]}"
            cells += [Cell(f"layer_{layer}{head}{name}", Edit(site, at, part)) for name, at in where.items()]
    return cells


def left_out(model: OpenLM, cells: list[Cell]) -> list[str]:
    """A caveat where only some layers have the site."""
    layers, seen = len(anatomy(model.module).blocks), len({cell.name.partition("/")[0] for cell in cells})
    return (
        [f"{layers - seen} of {layers} layers do not have this site, and are left out"]
        if seen < layers
        else []
    )
