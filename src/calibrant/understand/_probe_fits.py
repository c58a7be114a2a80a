"""The kinds of probes: linear, k-sparse, and a perceptron with one hidden layer; and one of texts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.maths.probe import logistic_planes
from calibrant.understand._probe_folds import Fitted

_HIDDEN, _STEPS, _RATE = 32, 200, 0.01
_SHARP = 10.0  # squared length of a text's row: scikit-learn's C = 10 for rows of length 1


class Plane(NamedTuple):
    """A linear probe of each layer, on standardised features."""

    mean: Tensor
    """(L, D)."""
    std: Tensor
    """(L, D), above 0."""
    weight: Tensor
    """(L, D) log-odds a standard deviation."""
    bias: Tensor
    """(L,)."""

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds (L, M) of rows (L, M, D)."""
        weight = self.weight / self.std
        shift = self.bias - (self.mean * weight).sum(1)
        return (x @ weight[..., None])[..., 0] + shift[:, None]


def linear(x: Tensor, labels: Tensor, l2: float) -> Plane:
    """L2-regularised logistic regression on features standardised by the training rows."""
    mean, std = _spread(x)
    planes = logistic_planes(x, labels, l2, spread=(mean, std))
    return Plane(mean, std, planes.weight, planes.bias)


def sparse(x: Tensor, labels: Tensor, l2: float, k: int) -> Plane:
    """The same on the k features whose class means are furthest apart (Gurnee et al. 2023, 2305.01610)."""
    x = _wide(x, labels)
    mean, std = _spread(x)
    z = (x - mean[:, None]) / std[:, None]
    y = labels.double().expand(x.shape[:2])
    yes, no = (
        (y[:, None] @ z)[:, 0] / y.sum(1)[:, None],
        ((1 - y)[:, None] @ z)[:, 0] / (1 - y).sum(1)[:, None],
    )
    chosen = (yes - no).abs().topk(min(k, x.shape[2]), dim=1).indices
    planes = logistic_planes(z.gather(2, chosen[:, None].expand(-1, x.shape[1], -1)), labels, l2)
    weight = torch.zeros_like(mean).scatter(1, chosen, planes.weight)
    return Plane(mean, std, weight, planes.bias)


class Perceptron(NamedTuple):
    """One hidden layer of rectified units, for each layer of the model."""

    mean: Tensor
    std: Tensor
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    """(L, D, H), (L, 1, H), (L, H, 1), (L, 1, 1)."""

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds (L, M) of rows (L, M, D)."""
        inner, shift, outer, bias = self.weights
        hidden = (((x - self.mean[:, None]) / self.std[:, None]) @ inner + shift).relu()
        odds: Tensor = (hidden @ outer + bias)[..., 0]
        return odds


def perceptron(x: Tensor, labels: Tensor, l2: float, seed: int) -> Perceptron:
    """Adam on all rows at once; the same first weights for each layer."""
    x = _wide(x, labels)
    mean, std = _spread(x)
    z, y = (x - mean[:, None]) / std[:, None], labels.double().expand(x.shape[:2])[..., None]
    layers, rows, width = z.shape
    way = torch.Generator().manual_seed(seed)

    def first(*shape: int) -> Tensor:
        start = torch.randn(shape, generator=way, dtype=torch.float64) / shape[0] ** 0.5
        weight: Tensor = start.to(z.device).expand(layers, *shape).clone()
        return weight

    weights = [first(width, _HIDDEN), 0 * first(1, _HIDDEN), first(_HIDDEN, 1), 0 * first(1, 1)]
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in weights]
    for step in range(1, _STEPS + 1):
        hidden = (z @ weights[0] + weights[1]).relu()
        pull = ((hidden @ weights[2] + weights[3]).sigmoid() - y) / rows
        back = (pull @ weights[2].mT) * (hidden > 0)
        slopes = [
            z.mT @ back + l2 / rows * weights[0], back.sum(1, keepdim=True),
            hidden.mT @ pull + l2 / rows * weights[2], pull.sum(1, keepdim=True),
        ]  # fmt: skip
        for one, slope, (m, v) in zip(weights, slopes, moments, strict=True):
            m.mul_(0.9).add_(slope, alpha=0.1)
            v.mul_(0.999).addcmul_(slope, slope, value=0.001)
            one.sub_(_RATE * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    return Perceptron(mean, std, (weights[0], weights[1], weights[2], weights[3]))


class _TextFit(NamedTuple):
    rarity: Tensor
    plane: Fitted

    def scores(self, x: Tensor) -> Tensor:
        return self.plane.scores(_weighed(x, self.rarity))


def of_text(x: Tensor, labels: Tensor) -> Fitted:
    """A probe of n-gram counts (1, N, B): tf-idf rows of one length, rarity counted in the training rows."""
    rarity = ((1 + x.shape[1]) / (1 + (x > 0).sum(1).double())).log() + 1
    return _TextFit(rarity, logistic_planes(_weighed(x, rarity), labels, 1.0))


def _weighed(x: Tensor, rarity: Tensor) -> Tensor:
    rows = x.log1p() * rarity[:, None]
    size = (rows * rows).sum(2, keepdim=True).sqrt().clamp_min(1e-12)
    scaled: Tensor = rows * (_SHARP**0.5 / size)
    return scaled


def _wide(x: Tensor, labels: Tensor) -> Tensor:
    """One layer's rows once for each labelling."""
    return x.expand(max(len(x), len(labels) if labels.ndim == 2 else 1), -1, -1)


def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (L, D); a constant feature counts for nothing."""
    mean = x.mean(1)
    squares = [(rows - middle).square_().mean(0) for rows, middle in zip(x, mean, strict=True)]
    std = torch.stack(squares).sqrt_()  # a layer at a time: in the cache
    return mean, torch.where(std > 1e-12 * (1 + mean.abs()), std, 1.0)
