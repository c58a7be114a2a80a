"""KTO losses: unpaired binary feedback (Ethayarajh et al. 2024, arXiv 2402.01306).

For a reply y with s = ln pi(y | x) - ln ref(y | x), summed in nats:

    z0 = max(0, mean of the same log-ratio over replies y' to other prompts)      no gradient
    desirable:    lambda_D (1 - sigma(beta (s - z0)))
    undesirable:  lambda_U (1 - sigma(beta (z0 - s)))

Tensors in, tensors out; ``mismatch`` and ``solve_weights`` are plain Python.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

BAND = (1.0, 4 / 3)
"""Where lambda_D n_D / (lambda_U n_U) should lie: equation 8."""


def reference_point(ratios: Tensor) -> Tensor:
    """z0, a scalar without gradient, from the log-ratios (M,) of mismatched replies, in nats.

    Equation 7: the clamp at 0 comes after the mean, and beta is not in it. Without any
    mismatched reply (M = 0) z0 is 0, its lowest value: the loss is then that of ``apo_zero_unpaired``.
    """
    if not len(ratios):
        return ratios.new_zeros(())
    return ratios.detach().mean().clamp(min=0)


def kto(
    ratios: Tensor, desirable: Tensor, z0: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """The KTO loss of each reply, (B,): between 0 and its weight. Equation 7.

    Args:
        ratios: (B,) s of each reply; gradients flow.
        desirable: (B,) bool labels; all of one kind is fine.
        z0: scalar, see ``reference_point``.
        beta: higher saturates sooner, in 1 / nats.
        weights: (lambda_D, lambda_U), see ``solve_weights``.
    """
    gap = beta * (z0 - ratios)
    return torch.where(desirable, weights[0] * gap.sigmoid(), weights[1] * (-gap).sigmoid())


def apo_zero_unpaired(
    ratios: Tensor, desirable: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """KTO with z0 = 0, (B,), which asks for no mismatched replies.

    The unpaired form of equation 7 of D'Oosterlinck et al. 2024 (arXiv 2408.06266).
    """
    return kto(ratios, desirable, ratios.new_zeros(()), beta, weights)


def solve_weights(n_desirable: int, n_undesirable: int) -> tuple[float, float]:
    """(lambda_D, lambda_U) that put lambda_D n_D / (lambda_U n_U) into ``BAND``; (1, 1) for one label alone.

    The side that is short is raised to the nearer edge of the band, the other keeps 1: equation 8.
    """
    if not n_desirable or not n_undesirable:
        return 1.0, 1.0
    share, (low, high) = n_desirable / n_undesirable, BAND
    return max(1.0, low / share), max(1.0, share / high)


def mismatch(
    prompts: Sequence[Hashable],
    replies: Sequence[Hashable],
    rng: random.Random,
    fits: Callable[[int, int], bool] = lambda row, partner: True,
) -> list[int | None]:
    """For each row of a micro-batch, the row whose reply it borrows as y'; None where there is none.

    A borrowed reply is never equal to the row's own, and comes from another prompt wherever one has a
    different reply. As far as the rows allow, each is borrowed once. ``fits(row, partner)`` says whether the
    row's prompt has room for the partner's reply.

    None is the answer for one row alone, and where all replies are the same. Such rows give z0 nothing: on
    (x, y) itself the log-ratio is s, and its own margin would vanish.
    """

    def fault(row: int, partner: int) -> int:
        own = replies[row] == replies[partner] or not fits(row, partner)
        return 2 * own + (prompts[row] == prompts[partner])

    rows = range(len(prompts))
    partners = rng.sample(rows, len(rows))
    for row in rows:
        if fault(row, partners[row]):
            # Swap with the row that mends most; a swap with itself is among them, so none makes it worse.
            before = [fault(other, partners[other]) for other in rows]
            costs = [fault(row, partners[o]) + fault(o, partners[row]) - before[o] for o in rows]
            other = costs.index(min(costs))
            partners[row], partners[other] = partners[other], partners[row]
    for row in rows:
        if now := fault(row, partners[row]):
            least = min(fault(row, partner) for partner in rows)
            if now > least:
                partners[row] = rng.choice([partner for partner in rows if fault(row, partner) == least])
    return [None if fault(row, partner) >= 2 else partner for row, partner in enumerate(partners)]
