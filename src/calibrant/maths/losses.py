"""Preference losses as pure functions of summed log-probs. Tensors in, tensors out; one function a loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from calibrant.maths.logprobs import masked_sum


class PairLoss(NamedTuple):
    """Per-pair results, each (B,)."""

    loss: Tensor
    """What is descended (mean it over the batch)."""
    chosen_reward: Tensor
    """beta x (log pi - log ref) of the chosen reply, detached: the implicit reward in nats x beta."""
    rejected_reward: Tensor
    """The same for the rejected reply."""


def dpo_sigmoid(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> PairLoss:
    """-ln sigma(beta (s_w - s_l)), s = log pi - log ref summed over a reply's tokens, in nats.

    All inputs (B,). Rafailov et al. 2023 (arXiv 2305.18290), equation 7. Parity: TRL 1.16
    ``loss_type="sigmoid"``.
    """
    chosen = policy_chosen - ref_chosen
    rejected = policy_rejected - ref_rejected
    loss = -logsigmoid(beta * (chosen - rejected))
    return PairLoss(loss, beta * chosen.detach(), beta * rejected.detach())


def nll(token_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood per scored token, in nats: scalar.

    ``token_logprobs`` and ``mask`` (B, T, bool); the mean is over all scored tokens of the batch, not over
    rows. What is masked cannot leak, even where it is NaN; with no scored token the loss is 0.
    """
    return -masked_sum(token_logprobs, mask).sum() / mask.sum().clamp(min=1)
