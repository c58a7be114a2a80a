"""The one plain gradient loop: AdamW, warm-up, a schedule, clipping, and a stop at the first NaN."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from calibrant.core import Frozen, NumericalError, Run

B = TypeVar("B")
Loss = Callable[[B], tuple[Tensor, Mapping[str, Tensor | float]]]


class Fit(Frozen):
    """How to descend."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Second-moment decay of AdamW."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate climbs from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls afterwards, to 0 at the end."""
    clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the whole gradient."""
    bf16: bool = False
    """Run the forward pass under bfloat16 autocast; weights and optimiser stay float32."""


def rate(config: Fit, step: int, total: int) -> float:
    """Learning rate at ``step`` of ``total`` steps, counted from 0."""
    climb = max(1, round(config.warmup * total))
    if step < climb:
        return config.lr * (step + 1) / climb
    left = (total - step) / max(1, total - climb)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * left
    return config.lr * 0.5 * (1 + math.cos(math.pi * (1 - left)))


@contextmanager
def training(module: nn.Module) -> Iterator[None]:
    """Ask for gradients inside the block; on exit there are none, also after an exception.

    Dropout stays off: it draws from the global generator, so no seed of ours could repeat it, and a
    policy with dropout would be compared with a reference without.
    """
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None


def fit(module: nn.Module, batches: Sequence[B], loss: Loss[B], config: Fit, run: Run) -> list[float]:
    """Take one step on each batch, in order; returns the loss of every step.

    ``loss(batch)`` returns the scalar to descend and metrics to log beside it.

    Raises:
        NumericalError: the loss or the gradient norm is NaN or infinite; names the step. The weights
            are those of the last good step.
    """
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2))
    kind = next(module.parameters()).device.type
    losses: list[float] = []
    with training(module):
        for step, batch in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = rate(config, step, len(batches))
            with torch.autocast(kind, torch.bfloat16, enabled=config.bf16):
                value, metrics = loss(batch)
            _finite(value, "loss", step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
            _finite(norm, "gradient norm", step)
            optimiser.step()
            losses.append(float(value.detach()))
            run.log(step, loss=losses[-1], **{name: float(number) for name, number in metrics.items()})
            run.progress(step + 1, len(batches), f"loss {losses[-1]:.3f}")
    return losses


def batches_of(n: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of each batch: every epoch is shuffled anew; the last batch of an epoch may be smaller."""
    rng = random.Random(f"batches/{seed}")
    batches = []
    for _ in range(epochs):
        order = rng.sample(range(n), n)
        batches += [order[start : start + size] for start in range(0, n, size)]
    return batches


def _finite(value: Tensor, name: str, step: int) -> None:
    if not bool(torch.isfinite(value)):
        raise NumericalError(
            f"{name} is {float(value.detach())} at step {step}",
            hint="lower lr, check the data for empty or huge rows; nothing was saved from this step",
        )
