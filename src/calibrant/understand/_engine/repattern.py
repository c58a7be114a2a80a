"""What heads give where they ask with other queries, or are asked by other keys: AtP*'s fix of attention.

A pattern saturates, so the slope through its softmax says little. With queries or keys of another run in the
place of the run's own the model works the pattern out anew, and all behind it stays: what a head gives is
linear in its pattern, so

    sum over i, j of (p'(i, j) - p(i, j)) dm/dp(i, j)  =  sum over i of (z'(i) - z(i)) . dm/dz(i)

(Kramar et al. 2024, 2403.00745, eq. 7 and 10). One pass gives z' of all heads of all blocks: the stream is
that of the run, since each block goes on with its own z.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from calibrant.core import OpenLM
from calibrant.models.hooks import edited
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.skip import last_logits


def site_of_z(layer: int) -> str:
    """The site of what a block's heads give."""
    return f"blocks.{layer}.attn.hook_z"


def repatterned(
    model: OpenLM,
    graph: Graph,
    kind: str,
    ids: Tensor,
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    positions: tuple[int, ...] | None,
    rows: int = 64,
) -> dict[str, Tensor]:
    """z' (N, T, heads, d_head) of every block, by the site of z.

    Args:
        model: local weights.
        graph: of the model.
        kind: 'q' or 'k'.
        ids: (N, T) the run.
        own: site of z -> what the heads give in the run.
        other: map -> what it gives in the other run.
        positions: where queries or keys are the other run's; None: everywhere.
        rows: prompts at a time.
    """
    parts: dict[str, list[Tensor]] = {site_of_z(layer): [] for layer in range(len(graph.layers))}
    with torch.inference_mode():
        for examples in torch.split(torch.arange(len(ids)), rows):
            changes = {}
            for layer, wiring in enumerate(graph.layers):
                path, columns = wiring.heads[kind]
                site = site_of_z(layer)
                changes[path] = partial(_put, other[path][examples], columns.flatten(), positions)
                changes[site] = partial(_keep, parts[site], own[site][examples])
            with edited(model.module, changes):
                last_logits(model.module, ids[examples], torch.zeros(1, dtype=torch.long))
    return {site: torch.cat(some) for site, some in parts.items()}


def _put(source: Tensor, columns: Tensor, positions: tuple[int, ...] | None, value: Tensor) -> Tensor:
    value, columns = value.clone(), columns.to(value.device)
    for at in range(value.shape[1]) if positions is None else positions:
        value[:, at, columns] = source[:, at, columns].to(value)
    return value


def _keep(kept: list[Tensor], own: Tensor, value: Tensor) -> Tensor:
    kept.append(value.clone())
    return own.to(value)
