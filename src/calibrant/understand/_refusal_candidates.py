"""Candidate directions of each layer and position, and the choice among them (2406.11717, section 2.3)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from calibrant.core import OpenLM, Run
from calibrant.models.anatomy import anatomy
from calibrant.models.directions import ablated, steer
from calibrant.understand._last_token import read_plain, readings
from calibrant.understand._refusal import Divergence, LogOdds, Sides

_DEPTH = 0.8  # of the layers: later directions are the output itself
_NOTHING = 1e-5  # of the stream's length: a difference of rounding


@dataclass(frozen=True)
class Train:
    """What the model does on the prompts that directions are found on."""

    logits: tuple[Tensor, Tensor]
    """Harmful (N, V), harmless (M, V)."""
    streams: tuple[Tensor, Tensor]
    """(N, layers, positions, D), (M, layers, positions, D)."""
    clusters: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def differences(self) -> Tensor:
        """(layers, positions, D): mean of harmful less mean of harmless."""
        return _difference(*self.streams)

    def stability(self, layer: int, position: int, seed: int, draws: int = 20) -> float:
        """Cosine of the differences of two halves of the clusters, mean over random halves."""
        rng, found = random.Random(f"halves/{seed}"), []
        for _ in range(draws):
            halves = [_halves(names, rng) for names in self.clusters]
            one, two = (
                _difference(*(s[h[i]] for s, h in zip(self.streams, halves, strict=True)))[layer, position]
                for i in (0, 1)
            )
            found.append(float(torch.cosine_similarity(one, two, dim=0)))
        return sum(found) / draws


@dataclass(frozen=True)
class Candidate:
    """One direction, and what it does on the selection part."""

    layer: int
    position: int
    """-1 is the last."""
    vector: Tensor
    """(D,)."""
    bypass: float
    """Mean log-odds of refusal of harmful prompts with the direction taken out."""
    induce: float
    """Mean log-odds of refusal of harmless prompts with it added."""
    kl: float
    """KL of the next token after harmless prompts with it taken out, in nats."""

    @property
    def scores(self) -> dict[str, float]:
        """All but the vector, for a file."""
        names = ("layer", "position", "bypass", "induce", "kl")
        return {name: round(getattr(self, name), 6) for name in names}

    @property
    def site(self) -> str:
        """Where it was read."""
        return stream(self.layer)


def stream(layer: int) -> str:
    """The residual stream that enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


def early_layers(model: OpenLM) -> list[int]:
    """Layers below .8 of the depth."""
    count = len(anatomy(model.module).blocks)
    return [layer for layer in range(count) if layer < _DEPTH * count]


def study(model: OpenLM, sides: Sides, positions: int, run: Run) -> Train:
    """Read the early layers of all prompts."""
    sites = [stream(layer) for layer in early_layers(model)]
    one, two = (read_plain(model, prompts, run, sites, positions) for prompts in sides)
    return Train((one[0], two[0]), (one[1], two[1]), (sides.harmful.clusters, sides.harmless.clusters))


def candidates(model: OpenLM, train: Train, sides: Sides, odds: LogOdds, run: Run) -> list[Candidate]:
    """Every direction that is not 0, tried on the selection part ``sides``."""
    found, layers = train.differences, early_layers(model)
    lengths = torch.cat(train.streams).norm(dim=-1).mean(0)
    places = [
        (layer, at)
        for layer in layers
        for at in range(found.shape[1])
        if found[layer, at].norm() > _NOTHING * lengths[layer, at]
    ]
    if not places:
        return []
    vectors = torch.stack([found[place] for place in places])
    bypass = readings(model, sides.harmful, odds, ablated, vectors, run).mean(1)
    plain = Divergence(read_plain(model, sides.harmless, run)[0])
    kl = readings(model, sides.harmless, plain, ablated, vectors, run).mean(1)
    induce = torch.cat(
        [
            readings(model, sides.harmless, odds, partial(steer, site=stream(layer)), some, run).mean(1)
            for layer in layers
            if len(some := vectors[[i for i, place in enumerate(places) if place[0] == layer]])
        ]
    )
    return [
        Candidate(layer, at - found.shape[1], vector, float(b), float(i), float(k))
        for (layer, at), vector, b, i, k in zip(places, vectors, bypass, induce, kl, strict=True)
    ]


def choose(found: list[Candidate], induce: float, kl: float) -> Candidate | str:
    """The least bypass score of those that induce refusal and leave harmless prompts alone; or why none."""
    fit = [one for one in found if one.induce > induce and one.kl < kl]
    if fit:
        return min(fit, key=lambda one: one.bypass)
    if not found:
        return "no direction was chosen: harmful and harmless prompts have the same mean at every candidate"
    most, still = max(one.induce for one in found), sum(one.kl < kl for one in found)
    return (
        f"no direction was chosen: of {len(found)} candidates {sum(one.induce > induce for one in found)} "
        f"induce refusal when added (at best {most:.2f} nats, above {induce:g} is asked for), and {still} "
        f"leave harmless prompts alone (KL below {kl:g} nats); none does both"
    )


def within(train: Train, chosen: Candidate, weights: Tensor) -> Tensor:
    """Random sums (R, D) of how prompts differ from others of their kind: ``weights`` (R, N + M)."""
    parts = [s[:, chosen.layer, chosen.position] for s in train.streams]
    return weights @ torch.cat([part - part.mean(0) for part in parts])


def _difference(harmful: Tensor, harmless: Tensor) -> Tensor:
    return (harmful.double().mean(0) - harmless.double().mean(0)).float()


def _halves(names: tuple[str, ...], rng: random.Random) -> tuple[list[int], list[int]]:
    """Places of two halves, clusters whole."""
    keys = sorted({name or f"\0{at}" for at, name in enumerate(names)})
    rng.shuffle(keys)
    first = set(keys[: len(keys) // 2])
    sides: tuple[list[int], list[int]] = ([], [])
    for at, name in enumerate(names):
        sides[(name or f"\0{at}") not in first].append(at)
    return sides
