"""Train a sparse coder on rows: Adam over batches, resumed after a kill with the same bits.

Rows are scaled so that E||x||^2 is their width, and so are targets; the finished coder is for rows as they
are. Decoder rows keep norm 1: what would change it is taken off their gradient, and they are scaled after
each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import Frozen, InputError, NumericalError, Run
from calibrant.maths.sparse_coding import Shape, SparseCoder, tangent_
from calibrant.models.checkpoint import Checkpoint, optimiser_state, prefixed, restore_optimiser, under


class Descent(Frozen):
    """The optimiser of a sparse coder."""

    batch: int = Field(default=1024, ge=1)
    """Tokens in one step."""
    tokens: int = Field(default=1_000_000, ge=1)
    """Tokens to train on in all; a store with fewer is read again, in another order."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: 2e-4 / sqrt(width / 16,384) (Gao et al. 2024), at most 3e-3."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate and the penalty rise from 0."""
    decay: float = Field(default=0.2, ge=0, lt=1)
    """Share of the steps, at the end, in which the learning rate falls to 0."""
    coefficient: float = Field(default=0.5, ge=0)
    """Of the L1 penalty (relu) or the L0 penalty (jumprelu), on rows scaled to E||x||^2 = width."""
    dead_after: int = Field(default=100_000, ge=1)
    """Tokens without firing after which a feature counts as dead, and is revived."""
    auxiliary: float = Field(default=1 / 32, ge=0)
    """Weight of the auxiliary loss of dead features. 0: none is revived."""

    def steps(self) -> int:
        """How many there are."""
        return max(1, math.ceil(self.tokens / self.batch))

    def rate(self, width: int) -> float:
        """The peak learning rate."""
        return min(3e-3, 2e-4 / math.sqrt(width / 16_384)) if self.lr is None else self.lr


class Rows(NamedTuple):
    """What a coder is trained on."""

    batch: Callable[[int], tuple[Tensor, Tensor]]
    """Step -> what is read (B, d_in), and what is to be written (B, d_out)."""
    mean: Tensor
    """(d_out,) of what is to be written."""
    read: float
    """E||x||^2 of what is read."""
    written: float
    """E||y||^2 of what is to be written."""


def train(
    shape: Shape,
    rows: Rows,
    config: Descent,
    run: Run,
    key: str,
    note: str = "",
    device: torch.device | str = "cpu",
) -> SparseCoder:
    """A trained coder of rows as they are, on the CPU.

    Args:
        shape: what it is.
        rows: what it is trained on.
        config: how.
        run: seed, log, progress, and the folder of the checkpoint.
        key: digest of everything that tells this training from another.
        note: what stands before a step's progress, and in the checkpoint's name.
        device: where it is trained.

    Raises:
        InputError: rows that are all 0. NumericalError: a loss is NaN or infinite; names the step.
    """
    if not (rows.read > 0 and rows.written > 0):
        raise InputError("the activations are all 0: there is nothing to explain", hint="choose another site")
    with torch.inference_mode(False), torch.enable_grad():
        return _trained(shape, rows, config, run, key, note, torch.device(device))


def _trained(
    shape: Shape, rows: Rows, config: Descent, run: Run, key: str, note: str, device: torch.device
) -> SparseCoder:
    scales = math.sqrt(shape.d_in / rows.read), math.sqrt(shape.d_out / rows.written)
    coder = SparseCoder(shape, mean=rows.mean * scales[1], seed=run.seed).to(device)
    optimiser = torch.optim.Adam([p for p in coder.parameters() if p.requires_grad], lr=1.0, fused=True)
    idle = torch.zeros(shape.width, dtype=torch.int64, device=device)
    point = Checkpoint(run.work / f"sae{'_' if note else ''}{note.replace(' ', '_')}.safetensors", key)
    start = _resumed(point, coder, optimiser, idle)
    total, peak = config.steps(), config.rate(shape.width)
    for step in range(total):
        run.spend(tokens=config.batch)
        if step < start:
            continue
        share, (x, y) = step / total, rows.batch(step)
        rise = min(1.0, (share + 1 / total) / config.warmup) if config.warmup else 1.0
        fall = min(1.0, (1 - share) / config.decay) if config.decay else 1.0
        for group in optimiser.param_groups:
            group["lr"] = peak * rise * fall
        losses = coder.losses(
            x.to(device) * scales[0], y.to(device) * scales[1], coefficient=config.coefficient * rise,
            dead=idle > config.dead_after, auxiliary=config.auxiliary,
        )  # fmt: skip
        loss = losses.loss.item()
        if not math.isfinite(loss):
            raise NumericalError(f"the loss is {loss} at step {step}", hint="lower lr, or check the rows")
        optimiser.zero_grad(set_to_none=True)
        losses.loss.backward()  # type: ignore[no-untyped-call]
        if coder.decoder.grad is not None:
            tangent_(coder.decoder.grad, coder.decoder)
        optimiser.step()
        coder.project()
        idle.add_(len(x))[losses.fired] = 0
        dead = float((idle > config.dead_after).double().mean())
        run.log(step, loss=loss, mse=losses.mse.item(), l0=losses.active.item(), dead_share=dead)
        if point.due():
            _save(point, coder, optimiser, idle, step + 1)
        run.progress(step + 1, total, f"{note} loss {loss:.3f}, {losses.active.item():.1f} active".strip())
    if point.path.exists():
        _save(point, coder, optimiser, idle, total)
    coder.rescale(*scales)
    return coder.cpu().eval().requires_grad_(False)


def in_order(count: int, batch: int, order: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """Step -> row numbers (batch,) of ``count`` rows, epoch by epoch; ``order`` gives an epoch's order.

    A step may reach into the next epoch, so that every one has ``batch`` rows.
    """
    kept: dict[int, Tensor] = {}

    def epoch(number: int) -> Tensor:
        if number not in kept:
            kept.clear()
            kept[number] = order(number)
        return kept[number]

    def step(number: int) -> Tensor:
        return torch.cat(list(_pieces(number * batch, batch, count, epoch)))

    return step


def _pieces(begin: int, size: int, count: int, epoch: Callable[[int], Tensor]) -> Iterator[Tensor]:
    while size:
        number, at = divmod(begin, count)
        piece = epoch(number)[at : at + size]
        yield piece
        begin, size = begin + len(piece), size - len(piece)


def _save(
    point: Checkpoint, coder: SparseCoder, optimiser: torch.optim.Optimizer, idle: Tensor, step: int
) -> None:
    tensors, facts = optimiser_state(optimiser)
    state = prefixed("coder", coder.state_dict()) | prefixed("adam", tensors) | {"idle": idle}
    point.save(state, {"step": step, "adam": facts})


def _resumed(point: Checkpoint, coder: SparseCoder, optimiser: torch.optim.Optimizer, idle: Tensor) -> int:
    """Put back what was saved; the step to go on with."""
    if (found := point.load()) is None:
        return 0
    tensors, facts = found
    coder.load_state_dict(under("coder", tensors))
    restore_optimiser(optimiser, under("adam", tensors), facts["adam"])
    idle.copy_(tensors["idle"])
    return int(facts["step"])
