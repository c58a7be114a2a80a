"""Representation rerouting: the terms and weights of circuit breakers, as pure functions of hidden states.

Source: Zou et al. 2024, "Improving alignment and robustness with circuit breakers" (arXiv 2406.04313),
section 3 and algorithm 1. h is a hidden state (D,) of the trained model, h0 that of the model before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu


def weights(step: int, steps: int, alpha: float) -> tuple[float, float]:
    """(c_s, c_r) at ``step``, from 1 to ``steps``: alpha (1 - t / 2T) and alpha t / 2T.

    Rerouting weighs more at first, and both weigh alpha / 2 at the end.
    """
    share = step / (2 * steps)
    return alpha * (1 - share), alpha * share


def alignment(trained: Tensor, before: Tensor) -> Tensor:
    """ReLU(cos(h, h0)) over the last dimension, in at least float32: 0 once they are orthogonal."""
    return relu(cosine_similarity(_wide(trained), _wide(before), dim=-1))


def distance(trained: Tensor, before: Tensor) -> Tensor:
    """||h - h0||_2 over the last dimension, in at least float32; its gradient at 0 is 0."""
    apart: Tensor = torch.linalg.vector_norm(_wide(trained) - _wide(before), dim=-1)
    return apart


def _wide(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()
