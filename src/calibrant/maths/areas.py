"""Weights of the trapezoid rule: the area under a curve is then one weighted sum of its heights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def trapezoid(x: Sequence[float]) -> Tensor:
    """(K,) float64 weights w with sum(w * y) = the area under straight lines between points (x, y).

    Args:
        x: K increasing places, at least two.

    Raises:
        ValueError: fewer than two, or one that does not increase.
    """
    if len(x) < 2 or not all(before < after for before, after in pairwise(x)):
        raise ValueError("an area needs two places or more, each larger than the one before")
    places = torch.tensor(list(x), dtype=torch.float64)
    halves = places.diff() / 2
    weights = torch.zeros_like(places)
    weights[:-1] += halves
    weights[1:] += halves
    return weights
