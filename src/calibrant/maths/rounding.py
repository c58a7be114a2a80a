"""Differences within float32 rounding: such a spread must not be divided by, or learned from.

Equal scores that were worked out in two ways differ in their last bits. Divided by their own spread, those
bits become advantages of size 1; and AdamW, which divides by the size of the gradient, does it once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Share of the largest number (1e-6): a spread of at most this much was rounded into being."""


def negligible(spread: Tensor, size: Tensor) -> Tensor:
    """Whether a ``spread`` of numbers as large as ``size`` is rounding; bool, shapes broadcast."""
    return spread <= ROUNDING * size


def alike(rows: Tensor) -> Tensor:
    """(P,) bool: all K numbers of a row of (P, K) are the same, but for rounding."""
    return negligible(rows.amax(1) - rows.amin(1), rows.abs().amax(1))


def levelled(rows: Tensor) -> Tensor:
    """(P, K) -> (P, K): rows of numbers that are alike hold their first one K times, to the bit."""
    return torch.where(alike(rows)[:, None], rows[:, :1], rows)
