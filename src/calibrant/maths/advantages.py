"""From rewards to advantages: GAE, whitening, leave-one-out, group normalisation. Tensors in, tensors out.

A mask says which steps exist, and it comes first: what is masked takes no part, neither as a reward nor as
a value to bootstrap from, wherever it stands (padding on either side, or a gap) and even where it is NaN.

Nothing is divided by a spread that is rounding (``maths/rounding.py``): what differs by no more is the same,
and its advantage is exactly 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from calibrant.maths.rounding import alike, negligible

Scale = Literal["group", "batch", "none"]


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    d_t = r_t + gamma V_(t+1) - V_t and A_t = d_t + gamma lam A_(t+1), over the steps that exist. Returns to
    fit a critic to are A + V, before any whitening.

    Args:
        rewards: (B, T) reward of each step.
        values: (B, T) the critic's value of the state *before* each step.
        mask: (B, T) bool, True where a step exists.
        gamma: discount a step, 0 to 1.
        lam: 1 sums all rewards to come, 0 trusts the critic after one step.
        bootstrap: (B,) value of the state after the last step of each row: 0 where the row ended by itself
            (nothing follows), the critic's value where it was cut off. None: 0 everywhere.

    Returns:
        (B, T), 0 where masked.
    """
    after = values.new_zeros(len(values)) if bootstrap is None else bootstrap
    ahead = torch.zeros_like(after)
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        advantage = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * ahead
        ahead = torch.where(here, advantage, ahead)
        after = torch.where(here, values[:, t], after)
        columns.append(advantage.masked_fill(~here, 0.0))
    return torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(values)


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool,
    unbiased: bool,
    eps: float = 1e-8,
    size: Tensor | None = None,
) -> Tensor:
    """``values`` with standard deviation 1 over the entries that exist; same shape, 0 where masked.

    ``shift_mean``: the mean becomes 0, else it stays where it is (as for rewards, whose sign has a meaning).
    Of two common programs one means the opposite by that name. ``unbiased``: divide the variance by n - 1
    (TRL), else by n (Huang et al. 2024, arXiv 2403.17031). A single entry has variance 0 either way.
    ``size``: the largest number that the values are differences of (scalar), by which their rounding is
    judged; None: they are their own.
    """
    inside = values.masked_fill(~mask, 0.0)
    n = mask.sum().clamp(min=1)
    mean = inside.sum() / n
    centred = (inside - mean).masked_fill(~mask, 0.0)
    largest = (inside if size is None else size).abs().amax() if inside.numel() else inside.sum()
    squares = (centred**2).sum()
    spread = squares / (n - 1).clamp(min=1) if unbiased else squares / n
    white = torch.where(negligible(spread.sqrt(), largest), 0.0, centred * torch.rsqrt(spread + eps))
    return (white if shift_mean else white + mean).masked_fill(~mask, 0.0)


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO: each reward less the mean of the others of its prompt, (P, K) -> (P, K), K at least 2.

    Ahmadian et al. 2024 (arXiv 2402.14740), equation 8. ``rewards`` hold the KL penalty already, summed over
    the reply. The baseline never looks at the reply that it is used on, so it adds no bias.
    """
    k = rewards.shape[1]
    return _centred(rewards) * (k / (k - 1))


def group_normalised(rewards: Tensor, *, scale: Scale, unbiased: bool = True, eps: float = 1e-4) -> Tensor:
    """GRPO: (r - mean of its prompt) / (std + eps), (P, K) -> (P, K). Shao et al. 2024 (arXiv 2402.03300).

    ``scale`` says whose standard deviation: that of the prompt's own replies ('group', the paper), of the
    whole batch ('batch'), or none at all ('none', Dr. GRPO: Liu et al. 2025, arXiv 2503.20783, since the
    group's weighs prompts by how sure the policy is). ``unbiased``: divide the variance by n - 1; programs
    differ in this and in ``eps`` (1e-4 in TRL, 1e-6 in verl, 1e-9 in OpenRLHF).
    """
    centred = _centred(rewards)
    if scale == "none":
        return centred
    correction = 1 if unbiased else 0
    if scale == "group":
        return centred / (rewards.std(1, correction=correction, keepdim=True) + eps)
    return centred / (rewards.std(correction=correction) + eps)


def _centred(rewards: Tensor) -> Tensor:
    """(P, K) rewards less their prompt's mean; exactly 0 where all of a prompt's are alike."""
    return (rewards - rewards.mean(1, keepdim=True)).masked_fill(alike(rewards)[:, None], 0.0)
