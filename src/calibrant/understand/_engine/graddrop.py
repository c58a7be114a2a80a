"""Gradients with the contribution of one block at a time left out of the backward pass: GradDrop.

    dm/da with the gradient of the stream across block l taken past the block, for each l

Where a direct and an indirect effect cancel, one of these gradients does not (Kramar et al. 2024,
2403.00745, eq. 11). One forward pass, and a backward pass a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.core import CapabilityError, NumericalError, OpenLM
from calibrant.models.anatomy import anatomy
from calibrant.models.hooks import captured, edited
from calibrant.models.sites import places
from calibrant.understand._engine.gradients import leaf
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import last_logits

Measure = Callable[[dict[str, Tensor], Tensor], Tensor]
"""Gradients (B, T, ...) by site, of the examples (B,) -> (C, B) what each cell does."""


@dataclass
class _Drop:
    """Which block is left out of the present backward pass."""

    block: int = -1
    stream: dict[int, Tensor] = field(default_factory=dict)
    """Block -> what it was given."""

    def enter(self, block: int, value: Tensor) -> Tensor:
        self.stream[block] = value
        return value

    def leave(self, block: int, value: Tensor) -> Tensor:
        across: Tensor = _Across.apply(self.stream[block], value, self, block)  # type: ignore[no-untyped-call]
        return across


class _Across(torch.autograd.Function):
    """What a block gives; backwards past the block where it is left out."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, gave: Tensor, drop: _Drop, block: int) -> Tensor:
        """What it gave."""
        ctx.drop, ctx.block = drop, block
        return gave.clone()

    @staticmethod
    def backward(ctx: Any, *flows: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        """To what it was given alone, or to what it gave alone."""
        return (flows[0], None, None, None) if ctx.drop.block == ctx.block else (None, flows[0], None, None)


def dropped_gradients(
    model: OpenLM,
    ids: Tensor,
    sites: Sequence[str],
    read: Reader,
    measure: Measure,
    dropped: Sequence[int],
    rows: int = 32,
) -> tuple[Tensor, Tensor]:
    """The reading (N,) of each prompt, and (L, C, N) float64 what ``measure`` makes of its gradients.

    Args:
        model: local weights.
        ids: (N, T) token ids.
        sites: where gradients are taken.
        read: what is read off the last position's logits.
        measure: called for each block that is left out.
        dropped: numbers of the L blocks that are left out, one at a time; -1 leaves out none.
        rows: prompts at a time.

    Raises:
        CapabilityError: blocks that were not found, a model in training mode, or one of inference mode.
        NumericalError: what was measured is NaN or infinite.
    """
    check_still(model.module, gradients=True)
    blocks, known = len(anatomy(model.module).blocks), places(model.module)
    if not known:
        raise CapabilityError(
            f"GradDrop leaves out one block at a time, and none was found in {type(model.module).__name__}",
            hint="method = 'atp' needs no blocks",
        )
    readings, parts = [], []
    with torch.inference_mode(False), torch.enable_grad():
        for examples in torch.split(torch.arange(len(ids)), rows):
            with _gated(model.module, blocks) as drop, captured(model.module, sites) as acts:
                reading = read(last_logits(model.module, ids[examples].clone(), read.columns), examples)
            wanted, one = [acts[site] for site in sites], []
            for block in dropped:
                drop.block = block
                flows = torch.autograd.grad(reading.sum(), wanted, retain_graph=True, allow_unused=True)
                whole = {
                    site: torch.zeros_like(act) if flow is None else flow
                    for site, act, flow in zip(sites, wanted, flows, strict=True)
                }
                one.append(measure(whole, examples))
            parts.append(torch.stack(one))
            readings.append(reading.detach().double().cpu())
    found = torch.cat(parts, -1)
    if not found.isfinite().all():
        raise NumericalError("a gradient is NaN or infinite", hint="load the model in float32")
    return torch.cat(readings), found


@contextmanager
def _gated(module: nn.Module, blocks: int) -> Iterator[_Drop]:
    drop = _Drop()
    changes = {"hook_embed": leaf}
    for block in range(blocks):
        changes[f"blocks.{block}.hook_resid_pre"] = partial(drop.enter, block)
        changes[f"blocks.{block}.hook_resid_post"] = partial(drop.leave, block)
    with edited(module, changes):
        yield drop
