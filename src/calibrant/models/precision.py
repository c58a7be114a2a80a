"""Half precision: what it loses while training, and where it is slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from calibrant.core import Run

HALF = (torch.bfloat16, torch.float16)
"""Floating-point numbers of 16 bits."""


def is_half(module: nn.Module) -> bool:
    """Whether any weight has 16 bits."""
    return any(p.dtype in HALF for p in module.parameters())


def bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX-512 or AMX on x86), as far as torch knows."""
    ops: Any = torch.ops.mkldnn
    try:
        return bool(ops._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return False


def slow(bf16: bool, device: torch.device) -> str:
    """Why autocast to bfloat16 is slow on ``device``, or "" where it isn't, or isn't asked for."""
    if not bf16 or device.type != "cpu" or bf16_units():
        return ""
    return "fit.bf16 on a CPU without bfloat16 units: some 80 times slower than float32, so leave it out here"


def announce(bf16: bool, device: torch.device, run: Run, steps: int) -> None:
    """Say before the first step of a training that it is going to be slow, where it is."""
    reason = slow(bf16, device)
    if reason:
        run.progress(0, steps, reason)


def caveats(bf16: bool, before: nn.Module, after: nn.Module | None = None) -> Sequence[str]:
    """What half precision did to a training from ``before`` to ``after`` (None: no weights to compare)."""
    device = next(before.parameters()).device
    notes = [slow(bf16, device)] if slow(bf16, device) else []
    if is_half(before):
        kind = next(str(p.dtype).removeprefix("torch.") for p in before.parameters() if p.dtype in HALF)
        share = f"; {_moved(before, after):.2%} of the weights moved" if after is not None else ""
        notes.append(
            f"the weights are {kind}: an update that is small against its weight is lost in rounding{share}; "
            "open the model in float32 to keep small steps"
        )
    return notes


def _moved(before: nn.Module, after: nn.Module) -> float:
    """Share of the weights that are not what they were."""
    old, moved, total = dict(before.named_parameters()), 0, 0
    for name, new in after.named_parameters():
        if name in old and old[name].shape == new.shape:
            moved += int((old[name] != new.to(old[name].device)).sum())
            total += new.numel()
    return moved / max(1, total)
