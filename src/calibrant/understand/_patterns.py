"""Attention patterns of the last position, by the family's own eager attention, checked against its heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.core import CapabilityError, OpenLM
from calibrant.models.batching import memory_name
from calibrant.models.hooks import captured
from calibrant.models.model_facts import FOREIGN, accepted, close
from calibrant.understand._engine.skip import Past

_ROWS = 8
_CHOICE, _HOOKED = "_attn_implementation_internal", "_output_capturing_hooks_installed"
"""What transformers calls a config's choice of attention, and the mark of a model with hooks of its own."""


class Patterns(NamedTuple):
    """What each head looks at."""

    weights: Tensor
    """(L, N, H, T) float64: from the last position to each, of the layers that have heads."""
    checked: bool
    """Whether weights times values gave what the heads hand on; False where the values could not be had."""


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """A block in which the model computes attention in the open, where its family can; then as before.

    transformers leaves hooks on a model that was once asked for its attentions: they go, too.
    """
    children = list(module.modules())
    configs = {id(one): one for child in children if (one := getattr(child, "config", None)) is not None}
    before = [(one, vars(one).get(_CHOICE)) for one in configs.values()]
    hooks = [(child, set(child._forward_hooks), _HOOKED in vars(child)) for child in children]
    model: Any = module
    try:
        with suppress(*FOREIGN):
            hidden = any(name not in (None, "eager") for _, name in before)
            if hidden and model._can_set_attn_implementation():
                model.set_attn_implementation("eager")
        yield
    finally:
        for one, name in before:
            if _CHOICE in vars(one):
                vars(one)[_CHOICE] = name
        for child, own, marked in hooks:
            for added in set(child._forward_hooks) - own:
                del child._forward_hooks[added]
            if not marked:
                vars(child).pop(_HOOKED, None)


def patterns(model: OpenLM, ids: Tensor, sites: Sequence[str]) -> Patterns:
    """Weights from the last position of prompts (N, T), at each of ``sites`` (``hook_z`` of some layers).

    Raises:
        CapabilityError: the family gives no patterns, or others than its heads read with.
    """
    module, parts, checked = model.module, list[Tensor](), True
    with eager(module), torch.inference_mode():
        for rows in torch.split(ids, _ROWS):
            try:
                maps, z, values = _seen(module, rows, sites)
            except FOREIGN as error:
                raise _none(model, f"it raises {type(error).__name__} when asked for them") from None
            _check(model, maps, z, rows.shape[1])
            parts.append(torch.stack([one[:, :, -1] for one in maps]).double().cpu())
            fits = [_fits(one, value, state) for one, value, state in zip(maps, values, z, strict=False)]
            if False in fits:
                raise _none(model, "weights times values are not what its heads hand on")
            checked &= len(fits) == len(maps) and None not in fits
    return Patterns(torch.cat(parts, dim=1), checked)


def _seen(
    module: nn.Module, ids: Tensor, sites: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], list[Any]]:
    """Maps (R, H, T, T), what the heads hand on (R, T, H, d), and values (R, G, T, d) where they are kept."""
    past = Past()
    with suppress(*FOREIGN, CapabilityError):
        memory = {memory_name(module): past.cache}
        maps, z = _asked(module, ids, sites, use_cache=True, **memory)
        values = [getattr(layer, "values", None) for layer in past.cache.layers]
        return maps, z, values if len(values) == len(maps) else []
    return *_asked(module, ids, sites, use_cache=False), []


def _asked(
    module: nn.Module, ids: Tensor, sites: Sequence[str], **memory: Any
) -> tuple[list[Tensor], list[Tensor]]:
    model: Any = module
    options = accepted(module, attention_mask=torch.ones_like(ids), logits_to_keep=1, **memory)
    with captured(module, sites) as z:
        out = model(input_ids=ids, output_attentions=True, **options)
    return [one for one in getattr(out, "attentions", None) or () if one is not None], [z[s] for s in sites]


def _check(model: OpenLM, maps: Sequence[Tensor], z: Sequence[Tensor], length: int) -> None:
    if len(maps) != len(z):
        raise _none(model, f"it gives {len(maps)} of them for {len(z)} layers whose heads are known")
    for one, state in zip(maps, z, strict=True):
        if one.shape != (len(state), state.shape[2], length, length):
            raise _none(model, f"it gives some of shape {tuple(one.shape)}")
        if not one.isfinite().all() or one.min() < 0 or one.sum(-1).max() > 1.01:
            raise _none(model, "what it gives are no shares")


def _fits(weights: Tensor, values: Any, z: Tensor) -> bool | None:
    """Whether weights (R, H, T, T) times values (R, G, T, d) are z (R, T, H, d); None where none can be."""
    heads = weights.shape[1]
    if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[2] != weights.shape[2]:
        return None
    if heads % values.shape[1] or values.shape[3] != z.shape[3]:
        return None
    spread = values.repeat_interleave(heads // values.shape[1], 1)
    return close((weights[:, :, -1:].to(spread) @ spread)[:, :, 0], z[:, -1])


def _none(model: OpenLM, why: str) -> CapabilityError:
    return CapabilityError(
        f"no attention patterns of '{model.identity.name}' ({type(model.module).__name__}): {why}",
        hint="understand.patch with site = 'z' says what its heads do, without patterns",
    )
