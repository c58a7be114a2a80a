"""What a chosen direction does to held-out prompts, beside random directions of its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrant.core import Estimate, OpenLM, Run, point
from calibrant.models.directions import ablated, steer
from calibrant.stats import mean, rate
from calibrant.stats.two_samples import mean_difference
from calibrant.understand._last_token import Act, Asked, readings
from calibrant.understand._refusal import Divergence, LogOdds, Sides
from calibrant.understand._refusal_candidates import Candidate, Train, within

Floats = NDArray[np.float64]
UNIT = "prompt"


@dataclass(frozen=True)
class Controls:
    """Random directions of the chosen one's length, at right angles to it."""

    sphere: Tensor
    """(R, D) of any direction."""
    within: Tensor
    """(R, D) such as prompts of one kind differ in: the stream is far from round."""

    @classmethod
    def draw(cls, train: Train, chosen: Candidate, count: int, seed: int) -> Controls:
        """``count`` of each kind."""
        generator = torch.Generator().manual_seed(seed)
        sphere = torch.randn(count, len(chosen.vector), generator=generator)
        weights = torch.randn(count, sum(map(len, train.streams)), generator=generator)
        inside = within(train, chosen, weights)
        inside = torch.where(inside.norm(dim=1, keepdim=True) > 0, inside, sphere)
        return cls(_beside(chosen.vector, sphere), _beside(chosen.vector, inside))

    def beside(self, vector: Tensor) -> Tensor:
        """(1 + 2 R, D): the direction itself, then the controls."""
        return torch.cat([vector[None], self.sphere, self.within])


@dataclass(frozen=True)
class Effect:
    """Changes of each prompt's reading: row 0 by the direction, then by the controls of either kind."""

    values: Floats
    """(1 + 2 R, N)."""
    clusters: Sequence[str] | None
    sign: int
    """-1 where less is what the direction should do."""

    def metrics(self, name: str, *, p: bool = True) -> dict[str, Estimate]:
        """The mean effect, the largest of a control, and the direction's rank among the controls."""
        means = self.values.mean(1) * self.sign
        count = (len(means) - 1) // 2
        found = {
            name: mean(
                self.values[0].tolist(), clusters=self.clusters, better="none", unit=UNIT, null_value=0.0
            ),
            f"{name}/random_largest": point(float(means[1:].max() * self.sign), unit="nats", n=2 * count),
        }
        if p:
            for kind, some in (("sphere", means[1 : count + 1]), ("within", means[count + 1 :])):
                rank = (1 + int((some >= means[0]).sum())) / (1 + count)
                found[f"{name}/p_{kind}"] = point(rank, unit="p-value", n=count)
        return found

    def rounded(self) -> list[list[float]]:
        """For a file."""
        return [[round(float(value), 6) for value in row] for row in self.values]


@dataclass(frozen=True)
class Held:
    """The held-out prompts, and what the model does there as it is."""

    sides: Sides
    odds: LogOdds
    logits: tuple[Tensor, Tensor]
    """Harmful (N, V), harmless (M, V)."""

    @property
    def plain(self) -> tuple[Floats, Floats]:
        """Log-odds of refusal (N,), (M,)."""
        one, two = (self.odds(x, torch.arange(len(x))).numpy() for x in self.logits)
        return one, two

    def refusal(self) -> dict[str, Estimate]:
        """Log-odds and rates of both kinds, and their difference."""
        found: dict[str, Estimate] = {}
        for name, values, side in zip(("harmful", "harmless"), self.plain, self.sides, strict=True):
            found[f"refusal/{name}"] = mean(values.tolist(), clusters=side.named, better="none", unit=UNIT)
            found[f"refusal_rate/{name}"] = _rate(values, side)
        one, two = self.plain
        found["refusal/difference"] = mean_difference(
            one.tolist(), two.tolist(), clusters=self.sides.clusters, unit=UNIT
        )
        return found


def ablation(model: OpenLM, held: Held, directions: Tensor, run: Run) -> tuple[dict[str, Estimate], Effect]:
    """What taking the directions out does to refusal of harmful prompts."""
    harmful, plain = held.sides.harmful, held.plain[0]
    after = readings(model, harmful, held.odds, ablated, directions, run).numpy()
    effect = Effect(after - plain, harmful.named, -1)
    found = effect.metrics("ablation")
    found["ablation/removed"] = _removed(held, effect.values[0])
    found["ablation/refusal_rate"] = _rate(after[0], harmful)
    return found, effect


def addition(
    model: OpenLM, held: Held, site: str, directions: Tensor, doses: Sequence[float], run: Run
) -> tuple[dict[str, Estimate], dict[float, Effect]]:
    """What adding multiples of the directions at one layer does to refusal of harmless prompts."""
    found: dict[str, Estimate] = {}
    effects = {}
    harmless, plain = held.sides.harmless, held.plain[1]
    for dose in doses:
        act: Act = partial(steer, alpha=dose, site=site)
        after = readings(model, harmless, held.odds, act, directions, run).numpy()
        effects[dose] = Effect(after - plain, harmless.named, 1)
        found |= effects[dose].metrics(f"addition/x{dose:g}", p=dose == 1)
        found[f"addition_rate/x{dose:g}"] = _rate(after[0], harmless)
    return found, effects


def first_token_cost(model: OpenLM, held: Held, directions: Tensor, run: Run) -> dict[str, Estimate]:
    """KL of the first token of replies to harmless prompts, with the directions taken out."""
    read, harmless = Divergence(held.logits[1]), held.sides.harmless
    values = readings(model, harmless, read, ablated, directions, run).numpy()
    return Effect(values, harmless.named, 1).metrics("cost/kl_first", p=False)


def _beside(vector: Tensor, others: Tensor) -> Tensor:
    """``others`` (R, D) at right angles to ``vector`` (D,), and of its length."""
    length = vector.norm()
    unit = vector / length
    rest = others - (others @ unit)[:, None] * unit
    found: Tensor = length * rest / rest.norm(dim=1, keepdim=True)
    return found


def _removed(held: Held, effect: Floats) -> Estimate:
    """Share of the difference between harmful and harmless that is taken away: delta method."""
    harmful, harmless = held.plain
    whole = harmful.mean() - harmless.mean()
    share = -effect.mean() / whole
    one = (-(effect - effect.mean()) - share * (harmful - harmful.mean())) / whole
    two = share * (harmless - harmless.mean()) / whole
    return mean_difference((share + one).tolist(), (-two).tolist(), clusters=held.sides.clusters, unit=UNIT)


def _rate(values: Floats, side: Asked) -> Estimate:
    return rate((values > 0).tolist(), clusters=side.named, better="none", unit=UNIT)
