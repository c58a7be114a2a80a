"""A shipped model with one matrix edited by rank 1: which matrix and which direction is known.

``edited?of=base&seed=3``: the model ``testbed:model/base``, where the seed draws a layer, attention or MLP,
and two directions. The output matrix of that part gets ``size`` of its own norm along their outer product, so
that what the part writes changes along one direction. The clean twin is ``testbed:model/base`` itself.

``?noise=.003`` adds noise to every matrix, so many parts of its own spread, as further training would;
``?removed=1`` leaves the edit out: the null of ``understand.twin_difference``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.core import Identity, InputError
from calibrant.models.folder import folder_identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.circuit_parts import check_switch
from calibrant.testbed.raise_model import SIZES

_WEIGHTS = Path(__file__).parent / "weights"
_MATRICES = {"attn_out": "self_attn.o_proj", "mlp_out": "mlp.down_proj"}


class Edit(NamedTuple):
    """What was changed."""

    part: str
    """'layer_1/mlp_out', as ``understand.twin_difference`` calls it."""
    direction: Tensor
    """(D,) that the part now writes, of norm 1."""
    reads: Tensor
    """(N,) what it reads to do so, of norm 1."""


def truth(options: Mapping[str, str]) -> Edit | None:
    """The edit; None for the null."""
    if options.get("removed") == "1":
        return None
    shape, seed = SIZES[options.get("of", "tiny")], whole_option("seed", options, 0)
    rng, generator = random.Random(f"edited/{seed}"), torch.Generator().manual_seed(seed)
    part, width = rng.choice(sorted(_MATRICES)), shape["hidden_size"]
    inner = shape["intermediate_size"] if part == "mlp_out" else width
    direction, reads = (torch.randn(size, generator=generator) for size in (width, inner))
    layer = rng.randrange(shape["num_hidden_layers"])
    return Edit(f"layer_{layer}/{part}", direction / direction.norm(), reads / reads.norm())


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/edited?of=tiny&seed=0``; ``?size=.3``, ``?noise=.003``, ``?removed=1``."""
    identity = plant_identity(name, options)
    model = OpenModel.from_folder(_WEIGHTS / options.get("of", "tiny"))
    _change(model.module, options)
    return OpenModel(model.module, model.tokenizer, identity=identity)


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such model or option.
    """
    check_name("plant", name, ("edited",), "plant")
    check_options("plant", name, options, ("of", "seed", "size", "noise", "removed"))
    check_name("of", options.get("of", "tiny"), SIZES, "model")
    check_switch("removed", options)
    for key in ("size", "noise"):
        _part(key, options)
    whole_option("seed", options, 0)
    base = folder_identity(_WEIGHTS / options.get("of", "tiny"))
    parts = {"plant": name, "version": "1", "base": base.digest, **options}
    return Identity(name=f"testbed:plant/{name}", parts=parts)


def _part(key: str, options: Mapping[str, str]) -> float:
    text = options.get(key, "0.3" if key == "size" else "0")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise InputError(f"{key}={text} is no number from 0 to 10", hint=f"write ?{key}=.3")
    return value


def _change(module: Any, options: Mapping[str, str]) -> None:
    noise, size, edit = _part("noise", options), _part("size", options), truth(options)
    generator = torch.Generator().manual_seed(whole_option("seed", options, 0) + 1)
    with torch.no_grad():
        for weight in module.parameters():
            if noise and weight.ndim > 1:
                weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
        if edit is not None:
            layer, part = edit.part.split("/")
            block = module.model.layers[int(layer.removeprefix("layer_"))]
            weight = block.get_submodule(_MATRICES[part]).weight
            weight.add_(size * weight.norm() * torch.outer(edit.direction, edit.reads))
