"""The unembedding and log-softmax at scored tokens only. Tensors in, tensors out.

log p(y) = z_y - ln sum_v exp(z_v) with z = (W h + b) / temperature. Autograd would keep the logits, their
softmax and two gradients of the same size; ``_Head`` keeps one table of N x V and turns it into the gradient
in place. Above ``LIMIT`` elements the table is made in slices and made again on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LIMIT = 2**26
"""Logits held at once: 256 MB in float32."""


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) of ``targets`` and, if asked for, entropies (N,), else zeros: nats, float32 or more.

    Args:
        hidden: (N, D) states that predict the targets.
        weight: (V, D) unembedding.
        bias: (V,) or None.
        targets: (N,) int64.
        temperature: logits are divided by it.
        entropy: also give the entropy of each distribution.

    Gradients reach hidden, weight and bias, through log-probs and entropies; once, not twice over.
    """
    size = max(1, LIMIT // max(1, weight.shape[0]))
    keep = len(targets) <= size
    parts = [
        _Head.apply(h, weight, bias, t, temperature, entropy, keep)  # type: ignore[no-untyped-call]
        for h, t in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    if len(parts) == 1:
        both: tuple[Tensor, Tensor] = parts[0]
        return both
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def logits_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The same from logits (N, V) by plain autograd: log-probs and entropies, each (N,)."""
    exact = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    lse = exact.logsumexp(-1)
    chosen = exact.gather(-1, targets[:, None]).squeeze(-1) - lse
    return chosen, lse - (exact.softmax(-1) * exact).sum(-1)


class _Head(torch.autograd.Function):
    """One slice of ``head_logprobs``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = _logits(hidden, weight, bias, temperature)
        lse = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - lse
        spread = (
            lse - (logits - lse[:, None]).exp_().mul_(logits).sum(-1) if entropy else torch.zeros_like(lse)
        )
        ctx.save_for_backward(hidden, weight, bias, targets, lse, spread)
        ctx.temperature, ctx.entropy = temperature, entropy
        ctx.logits = logits if keep and any(ctx.needs_input_grad) else None
        return logprobs, spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, spread = ctx.saved_tensors
        logits = ctx.logits
        ctx.logits = None  # it becomes the gradient below; a second call makes it anew
        if logits is None:
            logits = _logits(hidden, weight, bias, ctx.temperature)
        flow = logits.sub_(lse[:, None])  # ln p
        if ctx.entropy:
            # d entropy / d z_v = - p_v (ln p_v + entropy)
            extra = (flow + spread[:, None]) * grads[1][:, None]
            probs = flow.exp_()
            flow = probs * -(extra + grads[0][:, None])
        else:
            flow = flow.exp_().mul_(-grads[0][:, None])
        flow.scatter_add_(1, targets[:, None], grads[0][:, None])
        flow = flow.div_(ctx.temperature).to(hidden.dtype)
        to_hidden = flow @ weight.to(hidden.dtype) if ctx.needs_input_grad[0] else None
        to_weight = (flow.T @ hidden).to(weight.dtype) if ctx.needs_input_grad[1] else None
        to_bias = flow.sum(0).to(bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        return to_hidden, to_weight, to_bias, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """(N, V) at least float32, divided by the temperature; a new tensor."""
    made = hidden @ weight.to(hidden.dtype).T
    exact = made if made.dtype == torch.float64 else made.float()
    if bias is not None:
        exact = exact + bias.to(exact.dtype)
    return exact if temperature == 1.0 else exact / temperature
