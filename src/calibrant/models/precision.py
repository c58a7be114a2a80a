"""Half precision: what it loses while training, and where it is slow."""

from __future__ import annotations

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)
"""Floating-point numbers of 16 bits."""


def is_half(module: nn.Module) -> bool:
    """Whether any weight has 16 bits."""
    return any(p.dtype in HALF for p in module.parameters())
