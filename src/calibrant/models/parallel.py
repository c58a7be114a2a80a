"""Data-parallel training: each process takes some parts of a batch, and results are summed.

``accelerate launch --num_processes 2 train.py`` starts them; ``world()`` joins them. Every process holds the
whole model, draws the same batches and takes the same steps, so only sums travel. Alone, all of it is free.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class World(NamedTuple):
    """Which process this is, and how many there are."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0


def world() -> World:
    """Join the processes that a launcher started (its environment names them); alone without one."""
    if not dist.is_available():
        return World(0, 1)
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return World(0, 1)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def add_up(tensors: Sequence[Tensor], world: World) -> None:
    """Replace each tensor by its sum over all processes, in one message."""
    if world.size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def everyone(value: Any, world: World) -> list[Any]:
    """What each process holds, by rank; small Python values only."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values
