"""Prequential codelength of labels (online MDL): Voita & Titov 2020, 2003.12298, section 2.3.

The labels are sent block by block, each coded by a fit on all before it, the first at one bit a label:

    L = t_1 - sum_i sum_(n in block i) log2 p_i(y_n | x_n)        compression = N / L

A receiver who has the texts can do the same fits. Where labels follow easily from few rows, L is short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import softplus

SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks, as shares of the rows: the paper's."""
Scores = Callable[[Tensor], Tensor]


def prequential(
    fit: Callable[[Tensor, Tensor], Scores], x: Tensor, labels: Tensor, ends: Sequence[int]
) -> Tensor:
    """Bits (L, N) that each row's label costs in each layer, rows in the order given.

    Until both labels have come, a label costs one bit.

    Args:
        fit: features (L, n, D) and labels (n,) of the rows so far -> what gives log-odds (L, m) of others.
        x: (L, N, D).
        labels: (N,) bool.
        ends: rows sent after each block, rising, the last one N.
    """
    bits = torch.ones(x.shape[:2], dtype=torch.float64)
    for start, end in pairwise(ends):
        so_far = labels[:start]
        if bool(so_far.all()) or not bool(so_far.any()):
            continue
        odds = fit(x[:, :start], so_far)(x[:, start:end]).double().cpu()
        sign = torch.where(labels[start:end], 1.0, -1.0)
        bits[:, start:end] = softplus(-sign * odds) / math.log(2)
    return bits


def block_ends(sizes: Sequence[int], shares: Sequence[float] = SHARES) -> list[int]:
    """Rows sent after each block, where rows come in whole groups of ``sizes``: at group ends only."""
    stops, total = [], 0
    for size in sizes:
        total += size
        stops.append(total)
    wanted = [next(stop for stop in stops if stop >= share * total - 1e-9) for share in shares]
    return list(dict.fromkeys(wanted))
