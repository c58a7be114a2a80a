"""Summed log-probs of a pair of replies, the input of every pair loss. Tensors in, tensors out.

``PairSums`` holds summed log-probs; the functions below make other sums of it (no reference, an
f-divergence in place of the reverse KL) or of log-probs by token (LD-DPO, WPO), so that every loss in
``losses.py`` serves all of them without knowing.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)


class PairSums(NamedTuple):
    """B pairs; every field (B,). Log-probs in nats, summed over a reply's tokens, end token included."""

    policy_chosen: Tensor
    """ln pi of the chosen reply; gradients flow."""
    policy_rejected: Tensor
    """ln pi of the rejected reply; gradients flow."""
    ref_chosen: Tensor
    """ln ref of the chosen reply; 0 where there is no reference."""
    ref_rejected: Tensor
    """ln ref of the rejected reply; 0 where there is no reference."""
    chosen_tokens: Tensor
    """Scored tokens of the chosen reply."""
    rejected_tokens: Tensor
    """Scored tokens of the rejected reply."""

    @property
    def chosen_ratio(self) -> Tensor:
        """s_w = ln pi - ln ref of the chosen reply, (B,)."""
        return self.policy_chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """s_l = ln pi - ln ref of the rejected reply, (B,)."""
        return self.policy_rejected - self.ref_rejected

    @property
    def difference(self) -> Tensor:
        """s_w - s_l, (B,): above 0 where the policy leans to the chosen reply more than the reference."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_difference(self) -> Tensor:
        """s_w / |y_w| - s_l / |y_l|, (B,): the difference by token."""
        return self.chosen_ratio / self.chosen_tokens.clamp(min=1) - (
            self.rejected_ratio / self.rejected_tokens.clamp(min=1)
        )

    @property
    def swapped(self) -> PairSums:
        """The same pairs with the other reply as the chosen one."""
        return PairSums(
            self.policy_rejected, self.policy_chosen, self.ref_rejected, self.ref_chosen,
            self.rejected_tokens, self.chosen_tokens,
        )  # fmt: skip


def implicit_rewards(sums: PairSums, beta: float) -> tuple[Tensor, Tensor]:
    """beta s of the chosen and of the rejected reply, each (B,), in nats x beta, detached.

    Rafailov et al. 2023 (arXiv 2305.18290), equation 5, without ln Z, which a pair shares.
    """
    return beta * sums.chosen_ratio.detach(), beta * sums.rejected_ratio.detach()


def reference_free(sums: PairSums) -> PairSums:
    """The same pairs under a reference that likes both replies equally (ln ref = 0)."""
    zero = torch.zeros_like(sums.policy_chosen)
    return sums._replace(ref_chosen=zero, ref_rejected=zero)


def diverged(sums: PairSums, divergence: Divergence, alpha: float = 0.5) -> PairSums:
    """Sums whose log-ratios ln t are f'(t) in place of ln t, up to a constant that cancels.

    Wang et al. 2023 (f-DPO, arXiv 2309.16240), table 1. ``alpha`` is read by 'alpha' alone.
    """
    ratios = (sums.chosen_ratio, sums.rejected_ratio)
    if divergence == "reverse_kl":
        return sums
    if divergence == "js":
        chosen, rejected = (js_score(ratio) for ratio in ratios)
    else:
        order = 0.0 if divergence == "forward_kl" else alpha
        chosen, rejected = (alpha_score(ratio, order) for ratio in ratios)
    return reference_free(sums)._replace(policy_chosen=chosen, policy_rejected=rejected)


def js_score(ratio: Tensor) -> Tensor:
    """ln(2 t / (1 + t)) for ln t = ``ratio`` (any shape): Jensen-Shannon's f'. Never above ln 2."""
    return math.log(2) + logsigmoid(ratio)


def alpha_score(ratio: Tensor, alpha: float) -> Tensor:
    """(t^(alpha - 1) - 1) / (alpha - 1) for ln t = ``ratio`` (any shape).

    alpha = 0 is the forward KL, 1 - 1 / t; alpha -> 1 the reverse KL, ln t. The exponent stops at 80 (11
    in float16), beyond which floats end; there the gradient is 0.
    """
    if abs(alpha - 1) < 1e-6:
        return ratio
    most = 11.0 if ratio.dtype == torch.float16 else 80.0
    return torch.expm1(((alpha - 1) * ratio).clamp(max=most)) / (alpha - 1)


def desensitised(logprobs: Tensor, own: Tensor, other: Tensor, alpha: float) -> Tensor:
    """Summed log-probs (B,) in which tokens beyond the shorter reply of the pair count ``alpha`` each.

    LD-DPO: Liu et al. 2024 (arXiv 2409.06411); TRL's ``ld_alpha``. Use it on the policy and the reference.

    Args:
        logprobs: (B, T) of one side, right-padded with 0.
        own: (B,) tokens of this side.
        other: (B,) tokens of the other side.
        alpha: 1 is the plain sum, 0 cuts both replies to the shorter length.
    """
    place = torch.arange(logprobs.shape[1], device=logprobs.device)
    shared = place < torch.minimum(own, other)[:, None]
    return torch.where(shared, logprobs, alpha * logprobs).sum(-1)


def on_policy_weight(logprobs: Tensor, log_collision: Tensor, tokens: Tensor) -> Tensor:
    """exp of the mean of ln p - ln sum_v p_v^2 over a reply's tokens: (R,), detached.

    WPO: Zhou et al. 2024 (arXiv 2406.11827), equation 2, with their sampled alignment. The loss of a pair is
    multiplied by the weights of both replies.

    Args:
        logprobs: (R, T) of the tokens, right-padded.
        log_collision: (R, T) ln sum_v p_v^2 of the distribution that each token was drawn from.
        tokens: (R,) tokens of each reply.
    """
    inside = torch.arange(logprobs.shape[1], device=logprobs.device) < tokens[:, None]
    aligned = (logprobs - log_collision).detach().masked_fill(~inside, 0.0)
    return (aligned.sum(-1) / tokens.clamp(min=1)).exp()
