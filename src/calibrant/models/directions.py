"""A direction of the residual stream: add it at one place (``steer``), or take it out of all (``ablated``).

    with ablated(model, direction):
        model.generate(chats)            # every pass, with or without a cache
    with steer(model, direction, 2.0):
        model.generate(chats)

Taken out means x <- x - r (r . x), r of norm 1, at every place that writes to the stream (Arditi et al. 2024,
2406.11717, eq. 4): what enters the first block, and what each attention and each MLP adds. So it is taken out
as if of the weights that write there, and the model itself is not changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calibrant.core.errors import CapabilityError, InputError, NumericalError
from calibrant.core.lm import OpenLM
from calibrant.models.anatomy import anatomy
from calibrant.models.hooks import edited
from calibrant.models.sites import places

WEIGHTS, ABOUT = "direction.safetensors", "direction.json"


@dataclass(frozen=True)
class Direction:
    """A vector of the stream, with where it was found."""

    vector: Tensor
    """(D,) as it was found, not scaled: ``steer`` adds multiples of it."""
    site: str
    """TransformerLens hook name: where it was read, and where ``steer`` adds it."""
    model: str = ""
    """Digest of the model's identity."""
    position: int = -1
    """Token position, from the end of the prompt."""

    def write(self, weights: Path, about: Path) -> None:
        """Store the vector (safetensors) and what is known of it (JSON)."""
        save_file({"direction": self.vector.detach().float().cpu().contiguous()}, weights)
        known = {
            "site": self.site,
            "position": self.position,
            "model": self.model,
            "norm": round(float(self.vector.norm()), 6),
        }
        about.write_text(json.dumps(known), encoding="utf-8")


def read_direction(folder: str | Path) -> Direction:
    """A direction that ``Direction.write`` stored as 'direction.safetensors' and 'direction.json'.

    Raises:
        InputError: one of the two is missing or damaged.
    """
    weights, about = Path(folder) / WEIGHTS, Path(folder) / ABOUT
    try:
        vector = load_file(weights)["direction"]
        known = json.loads(about.read_text(encoding="utf-8"))
        site, model, position = str(known["site"]), str(known["model"]), int(known["position"])
    except Exception as error:  # safetensors raises its own kinds
        raise InputError(
            f"'{folder}' holds no direction: {type(error).__name__}: {error}",
            hint=f"a direction is two files, {WEIGHTS} and {ABOUT}",
        ) from error
    return Direction(_checked(vector), site, model, position)


def writes(module: nn.Module) -> tuple[str, ...]:
    """Sites at which something is written to the residual stream, in order.

    Where a block's attention and MLP were not found, its output: what a part of it writes is then seen by
    its other parts.

    Raises:
        CapabilityError: the model's blocks were not found.
    """
    known = places(module)
    if not known:
        raise CapabilityError(
            f"no residual stream was found in {type(module).__name__}",
            hint="take a model whose blocks add to a stream; model.sites() lists what can be reached",
        )
    found = ["blocks.0.hook_resid_pre"]
    for layer in range(len(anatomy(module).blocks)):
        parts = [f"blocks.{layer}.hook_{part}" for part in ("attn_out", "mlp_out")]
        found += parts if known.keys() >= set(parts) else [f"blocks.{layer}.hook_resid_post"]
    return tuple(found)


@contextmanager
def ablated(model: OpenLM, direction: Direction | Tensor) -> Iterator[None]:
    """Take a direction out of all that is written to the stream, in every pass inside the block.

    ``direction``: (D,), or (B, D) with one for each row of the batch; of any norm but 0.

    Raises:
        InputError: no vector of the model's width. NumericalError: it is 0, NaN or infinite.
        CapabilityError: no stream was found, or no pass was run in the block.
    """
    vector = _fitting(model, direction)
    unit = vector / vector.norm(dim=-1, keepdim=True)
    with edited(model.module, {site: partial(_without, unit) for site in writes(model.module)}):
        yield


@contextmanager
def steer(
    model: OpenLM, direction: Direction | Tensor, alpha: float = 1.0, *, site: str = ""
) -> Iterator[None]:
    """Add ``alpha`` times a direction at its site, at every position, in every pass inside the block.

    ``site``: where, if not where it was found; a plain tensor, (D,) or (B, D), needs one.

    Raises:
        InputError: no vector of the model's width, or no site. NumericalError: it is 0, NaN or infinite.
        CapabilityError: the model does not have the site, or no pass was run in the block.
    """
    where = site or (direction.site if isinstance(direction, Direction) else "")
    if not where:
        raise InputError("a plain vector has no site", hint="give site='blocks.3.hook_resid_pre'")
    with edited(model.module, {where: partial(_with, alpha * _fitting(model, direction))}):
        yield


def _fitting(model: OpenLM, direction: Direction | Tensor) -> Tensor:
    """The vector, float32 or float64, on the model's device."""
    vector = _checked(direction.vector if isinstance(direction, Direction) else direction)
    width = getattr(model.module.config, "hidden_size", vector.shape[-1])
    if vector.shape[-1] != width:
        raise InputError(
            f"a direction of {vector.shape[-1]} numbers does not fit a stream of {width}",
            hint="directions belong to the model that they were found in",
        )
    return vector.to(next(model.module.parameters()).device)


def _checked(vector: Tensor) -> Tensor:
    if vector.ndim not in (1, 2) or not vector.numel() or not vector.is_floating_point():
        raise InputError(
            f"a tensor of shape {tuple(vector.shape)} and type {vector.dtype} is no direction",
            hint="give (D,) floating-point numbers",
        )
    wide = vector.detach() if vector.dtype == torch.float64 else vector.detach().float()
    lengths = wide.norm(dim=-1)
    if not lengths.isfinite().all() or not (lengths > 0).all():
        raise NumericalError(
            "a direction is 0, NaN or infinite", hint="find out why: two equal groups have no difference"
        )
    return wide


def _without(unit: Tensor, value: Tensor) -> Tensor:
    """``value`` (B, T, D) less its part along ``unit`` (D,) or (B, D)."""
    wide, along = _same_width(unit, value)
    return (wide - (wide * along).sum(-1, keepdim=True) * along).to(value.dtype)


def _with(vector: Tensor, value: Tensor) -> Tensor:
    wide, added = _same_width(vector, value)
    return (wide + added).to(value.dtype)


def _same_width(vector: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or float64, the vector as (1 or B, 1, D)."""
    rows = vector.reshape(-1, 1, vector.shape[-1])
    if rows.shape[-1] != value.shape[-1] or rows.shape[0] not in (1, value.shape[0]):
        raise InputError(
            f"directions of shape {tuple(vector.shape)} do not fit activations of {tuple(value.shape)}",
            hint="give one direction of the stream's width, or one for each row",
        )
    wide = value if value.dtype == torch.float64 else value.float()
    return wide, rows.to(wide)
