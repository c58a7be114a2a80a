"""Losses of policy gradients: the clipped surrogate, the clipped value loss, and how tokens are averaged.

The losses give one number a token. An *aggregation* makes a scalar of them, as a **share**: a sum over the
tokens at hand, divided by what the whole optimiser step holds (``Window``), never by what the micro-batch
happens to hold. Shares of all micro-batches add up to the loss of the step, so a step cut in two is the same
step. Of the four aggregations in use, one cannot be written so; it is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from calibrant.maths.kl import bounded
from calibrant.maths.logprobs import masked_sum

Aggregation = Literal["token_mean", "sequence_mean", "constant", "micro_token_mean"]


class PerToken(NamedTuple):
    """A loss a token, and where its clip had a say; both of the shape that went in."""

    loss: Tensor
    """To be aggregated and descended."""
    clipped: Tensor
    """Bool: the clipped branch was the one taken."""


class Window(NamedTuple):
    """What one optimiser step holds in all its micro-batches."""

    tokens: int
    """Scored tokens."""
    sequences: int
    """Replies."""
    longest: int = 1
    """Tokens that a reply may have at most, a constant of the run: 'constant' divides by it."""
    parts: int = 1
    """Micro-batches: 'micro_token_mean' divides by it."""


def clipped_surrogate(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float
) -> PerToken:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) with rho = pi / pi_old, for each token.

    Schulman et al. 2017 (PPO, arXiv 1707.06347), equation 7; ``high`` above ``low`` as in Yu et al. 2025
    (DAPO, arXiv 2503.14476). All tensors have one shape; gradients reach ``logprobs`` alone. Give sums over
    a reply, (R,), for a ratio of whole replies.
    """
    ratio = bounded(logprobs - old.detach()).exp()
    advantages = advantages.detach()
    plain, clipped = -ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages
    return PerToken(torch.maximum(plain, clipped), clipped > plain)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float | None) -> PerToken:
    """Half the squared error, and with ``clip`` the worse of it and that of old + clip(V - old, +-clip).

    Any one shape; gradients reach ``values`` alone. Huang et al. 2024 (arXiv 2403.17031). None: no clip.
    """
    returns, old = returns.detach(), old.detach()
    plain = (values - returns) ** 2
    if clip is None:
        return PerToken(0.5 * plain, torch.zeros_like(plain, dtype=torch.bool))
    held = (torch.minimum(torch.maximum(values, old - clip), old + clip) - returns) ** 2
    return PerToken(0.5 * torch.maximum(plain, held), held > plain)


def token_mean(values: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Every token of the step weighs the same: PPO's mean, DAPO's 'dapo'. Any split gives the same sum.

    ``values`` and ``mask`` (bool) are (R, T), as below; the result is a scalar share.
    """
    return masked_sum(values, mask).sum() / window.tokens


def sequence_mean(values: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Every reply weighs the same, its tokens share that: GRPO's 'grpo'. Any split gives the same sum.

    A token of a long reply weighs less, so long wrong replies are hardly punished.
    """
    return (masked_sum(values, mask) / mask.sum(-1).clamp(min=1)).sum() / window.sequences


def constant(values: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Sums of replies over replies times a constant length: 'dr_grpo'. Any split gives the same sum."""
    return masked_sum(values, mask).sum() / (window.sequences * window.longest)


def micro_token_mean(values: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Token mean of the micro-batch, then the mean of micro-batches: TRL's 'bnpo'.

    The one that *depends on how a step is cut*: a token in a short micro-batch weighs more.
    """
    return masked_sum(values, mask).sum() / mask.sum().clamp(min=1) / window.parts


AGGREGATIONS: Mapping[str, Callable[[Tensor, Tensor, Window], Tensor]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant": constant,
    "micro_token_mean": micro_token_mean,
}
"""By name, for configs; all but 'micro_token_mean' are the same however a step is cut."""
