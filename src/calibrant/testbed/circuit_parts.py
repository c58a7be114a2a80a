"""What the planted circuits share: their options, the directions that they draw, heads, and nulls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.core import Identity, InputError
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.circuit_weights import (
    CANVASES,
    HEADS,
    MAPS,
    SLOTS,
    WIDTH,
    Canvas,
    basis,
    noise,
    permuted_weights,
    random_weights,
    superposed,
)

NULLS = {"random": random_weights, "permuted": permuted_weights}
"""``?null=``: what happens to all weights."""
OPTIONS = ("seed", "family", "null", "removed")
"""Options of every circuit."""
_LITTLE = 0.3  # size of what a noise MLP writes, about, beside vectors of size 1


class Place(NamedTuple):
    """A head."""

    layer: int
    head: int


class Look(NamedTuple):
    """One term of a head's score: where the query reads ``asks`` and the key ``is``, the score is higher."""

    asks: Tensor
    """(W,) or (K, W)."""
    key: Tensor
    """The same."""
    strength: float
    """Of the score, beside ``SHARP``."""


def identity_of(
    name: str, options: Mapping[str, str], own: Collection[str] = (), switches: Collection[str] = ()
) -> Identity:
    """What a circuit is called, before it is built; ``own`` options, ``switches`` that are 0 or 1.

    Raises:
        InputError: no such option, or no such value of one that all circuits have.
    """
    check_options("plant", name, options, (*OPTIONS, *own, *switches))
    for key in ("removed", *switches):
        check_switch(key, options)
    for key, known in (("family", CANVASES), ("null", NULLS)):
        if key in options:
            check_name(key, options[key], known)
    whole_option("seed", options, 0)
    return Identity(name=f"testbed:plant/{name}", parts={"plant": name, "version": "1", **options})


def check_switch(key: str, options: Mapping[str, str]) -> None:
    """Raise InputError where an option is neither 0 nor 1."""
    if options.get(key, "0") not in ("0", "1"):
        raise InputError(f"{key}={options[key]} is neither 0 nor 1", hint=f"write ?{key}=1, or leave it out")


def is_null(options: Mapping[str, str]) -> bool:
    """Whether nothing is planted."""
    return options.get("removed") == "1" or "null" in options


def drawn(options: Mapping[str, str], *sizes: int) -> tuple[torch.Generator, list[Tensor]]:
    """The generator and, for each size, so many directions of the stream; at last those of positions."""
    generator = torch.Generator().manual_seed(whole_option("seed", options, 0))
    if options.get("superposition") == "1":
        features, positions = superposed(sum(sizes), SLOTS, generator)
    else:
        features, positions = torch.split(basis(sum(sizes) + SLOTS, generator), [sum(sizes), SLOTS])
    return generator, [*torch.split(features, list(sizes)), positions]


def canvas_of(
    options: Mapping[str, str],
    layers: int,
    vectors: Sequence[Tensor],
    generator: torch.Generator,
    inner: int = 8,
) -> Canvas:
    """A model of noise heads; ``vectors`` are words, outputs and positions."""
    with torch.random.fork_rng(devices=[]):  # what the class draws first is overwritten
        canvas = CANVASES[options.get("family", "gpt2")](layers, *vectors, inner=inner)
    for layer in range(layers):
        for head in range(HEADS):
            canvas.write(layer, head, dict(zip(MAPS, noise(canvas.size, generator), strict=True)))
    return canvas


def noise_neurons(canvas: Canvas, layer: int, count: int, always: Tensor, generator: torch.Generator) -> None:
    """Fill an MLP with neurons that mean nothing."""
    reads, writes = torch.randn(2, count, WIDTH, generator=generator)
    writes = writes - writes.mean(1, keepdim=True)
    size = _LITTLE * (2 / count) ** 0.5
    canvas.neurons(layer, reads, writes * size / WIDTH**0.5, always, 2)


def plant_head(
    canvas: Canvas,
    place: tuple[int, int],
    looks: Sequence[Look],
    value: Tensor,
    told: Tensor,
    aside: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Set a head: its scores are the sum of ``looks``, it reads ``value`` (K, W) and adds ``told`` (K, W).

    ``aside`` are further queries and keys, as ``Canvas.apart`` gives them.
    """
    asks = torch.cat([look.asks.view(-1, WIDTH) * look.strength for look in looks])
    keys = torch.cat([look.key.view(-1, WIDTH) for look in looks])
    sharp = canvas.sharp(place[0])
    query, key = canvas.rows(asks) * sharp, canvas.rows(keys) * sharp
    if aside is not None:
        query, key = query + aside[0], key + aside[1]
    output = canvas.rows(told) / canvas.scale(place[0])
    canvas.write(*place, {"query": query, "key": key, "value": canvas.rows(value), "output": output})


def readers(vectors: Tensor) -> Tensor:
    """(K, W): the k-th reads 1 off the k-th of ``vectors`` and 0 off the others, also where they overlap."""
    found: Tensor = torch.linalg.pinv(vectors.double()).T.float()
    return found


def finished(canvas: Canvas, options: Mapping[str, str]) -> object:
    """The module, after what ``?null=`` does to it."""
    if "null" in options:
        NULLS[options["null"]](canvas.module, whole_option("seed", options, 0))
    return canvas.module
