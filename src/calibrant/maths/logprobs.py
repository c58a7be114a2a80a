"""Log-probs of given tokens, and sums over masks. Tensors in, tensors out.

Half-precision logits are read in float32, a few rows at a time, so that no second copy of the whole
``(B, T, V)`` tensor is made: log p(id) = logit[id] - logsumexp(logits).
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**22  # elements that are raised to float32 at once: 16 MB


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Natural-log probability of each token given the tokens before it.

    Args:
        logits: (B, T, V); position t predicts token t + 1.
        ids: (B, T) int64.

    Returns:
        (B, T - 1), at least float32: entry t is log p(ids[:, t + 1] | ids[:, :t + 1]). Gradients flow.
    """
    ahead, targets = logits[:, :-1], ids[:, 1:, None]
    rows = max(1, _CHUNK // max(1, ahead.shape[1] * ahead.shape[2]))
    starts = range(0, max(1, len(ahead)), rows)
    return torch.cat([_gather(ahead[i : i + rows], targets[i : i + rows]) for i in starts])


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs (b, t) of ids (b, t, 1) under logits (b, t, V)."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return exact.gather(-1, ids).squeeze(-1) - exact.logsumexp(-1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` (..., T) where ``mask`` (..., T, bool) is True, over the last axis.

    What is masked cannot leak: even a NaN or an infinity there counts as zero.
    """
    return values.masked_fill(~mask, 0.0).sum(-1)
