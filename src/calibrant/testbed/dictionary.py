"""Rows that are sparse sums of known directions: what a sparse autoencoder should find, and a null.

    x = sum_j c_j d_j + noise

The directions d_j are random and of norm 1. Feature j is on with a probability that falls as a power of its
number (Zipf), independently of the others, so that ``active`` of them are on in a row on average; c_j is 1 or
more. The null is Gaussian, of the same mean and covariance: nothing else is there to be found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calibrant.core import InputError

_LEAST, _SPREAD = 1.0, 0.5  # a coefficient is _LEAST + _SPREAD |N(0, 1)|


@dataclass(frozen=True)
class Dictionary:
    """A planted dictionary."""

    directions: Tensor
    """(m, d), norm 1."""
    chances: Tensor
    """(m,) how often each is on."""
    noise: float
    """Standard deviation of each coordinate's noise."""

    def draw(self, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Rows (n, d) and their coefficients (n, m), float32."""
        generator = torch.Generator().manual_seed(seed)
        size = (rows, len(self.directions))
        on = torch.rand(size, generator=generator) < self.chances
        codes = on * (_LEAST + _SPREAD * torch.randn(size, generator=generator).abs())
        noise = self.noise * torch.randn(rows, self.directions.shape[1], generator=generator)
        return codes @ self.directions + noise, codes

    def alike(self, seed: int) -> Tensor:
        """(m, d) another dictionary of norm 1, which with other sizes gives rows of the same covariance.

        Rows of one covariance cannot tell the two apart: how well these are matched is chance.
        """
        mean = _LEAST + _SPREAD * (2 / torch.pi) ** 0.5
        second = _LEAST**2 + 2 * _LEAST * _SPREAD * (2 / torch.pi) ** 0.5 + _SPREAD**2
        chances = self.chances.double()
        size = (chances * second - (chances * mean) ** 2).sqrt()
        generator = torch.Generator().manual_seed(seed)
        count = len(self.directions)
        mix = torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64)).Q
        mixed = mix @ (size[:, None] * self.directions.double())
        unit: Tensor = mixed / mixed.norm(dim=1, keepdim=True)
        return unit.float()


def plant_dictionary(
    d: int = 64,
    features: int = 128,
    *,
    active: float = 4.0,
    exponent: float = 0.5,
    noise: float = 0.01,
    seed: int = 0,
) -> Dictionary:
    """Random directions with frequencies that fall by a power.

    Raises:
        InputError: a size below 1, or so many active features that one would be on more often than always.
    """
    if min(d, features) < 1 or active <= 0:
        raise InputError(
            f"{features} features in {d} dimensions, {active} active", hint="all must be above 0"
        )
    falling = 1.0 / torch.arange(1, features + 1, dtype=torch.float64) ** exponent
    chances = active * falling / falling.sum()
    if float(chances.max()) > 1:
        raise InputError(f"feature 0 would be on {float(chances.max()):.2f} of the time", hint="lower active")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d, generator=generator)
    return Dictionary(directions / directions.norm(dim=1, keepdim=True), chances.float(), noise)


def gaussian_like(rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """(count, d) Gaussian rows of the mean and covariance of ``rows`` (n, d): the null."""
    exact = rows.double()
    values, vectors = torch.linalg.eigh(torch.cov(exact.T))
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, rows.shape[1], generator=generator, dtype=torch.float64)
    found: Tensor = exact.mean(0) + draws @ (vectors * values.clamp(min=0).sqrt()).T
    return found.float()
