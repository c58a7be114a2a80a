"""Attention patterns of the last position, as the model's own eager code makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.core import CapabilityError, OpenLM
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import FOREIGN
from calibrant.models.trace import whole_rows


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """A block in which attention is computed by the family's eager code, which alone gives patterns.

    Raises:
        CapabilityError: the family has no such code.
    """
    model: Any = module
    before = getattr(model.config, "_attn_implementation", None)
    try:
        model.set_attn_implementation("eager")
    except FOREIGN as error:
        raise CapabilityError(
            f"{type(module).__name__} gives no attention patterns: it has no eager attention",
            hint="leave attention out; patching and ablation need no patterns",
        ) from error
    try:
        yield
    finally:
        if before is not None:
            model.set_attn_implementation(before)


def last_patterns(model: OpenLM, ids: Tensor, rows: int = 32) -> list[Tensor]:
    """Attention (N, H, T) of the last position in each layer, H query heads.

    ``ids`` (N, T) are whole prompts.

    Raises:
        CapabilityError: the family gives no patterns, or not in every layer.
    """
    parts: list[list[Tensor]] = []
    blocks = len(anatomy(model.module).blocks)
    with torch.inference_mode(), eager(model.module):
        for chunk in torch.split(ids, rows):
            batch = whole_rows(chunk)
            module: Any = model.module
            maps = module(
                input_ids=batch.ids, attention_mask=batch.mask.long(), output_attentions=True
            ).attentions
            shape = (len(chunk), ids.shape[1], ids.shape[1])
            if len(maps or ()) != blocks or not all(_is_pattern(one, shape) for one in maps):
                raise CapabilityError(
                    f"'{model.identity.name}' does not give an attention pattern for each layer",
                    hint="leave attention out; patching and ablation need no patterns",
                )
            parts.append([one[:, :, -1].float() for one in maps])
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def _is_pattern(value: Any, shape: tuple[int, int, int]) -> bool:
    """Whether a value is a (B, H, T, T) pattern: recurrent families call other things attention."""
    return isinstance(value, Tensor) and value.ndim == 4 and (value.shape[0], *value.shape[2:]) == shape
