"""Run a model with a look inside, in the idioms that users of TransformerLens know.

    logits, cache = run_with_cache(model, ids, names_filter=lambda name: name.endswith("resid_post"))
    cache["resid_post", 3]                      # or cache["blocks.3.hook_resid_post"]
    logits = run_with_hooks(model, ids, fwd_hooks=[("blocks.3.hook_mlp_out", lambda act, hook: 0 * act)])
    with capture(model, ["blocks.3.hook_resid_post"]) as acts:
        model.generate(chats)

Nothing is kept that was not asked for, and nothing stays on the model. A hook that never fires is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.core.errors import CapabilityError, InputError, nearest
from calibrant.core.lm import Batch, OpenLM
from calibrant.models.hooks import captured, edited
from calibrant.models.sites import places

Hook = Callable[[Tensor, "HookPoint"], Any]
"""Called with an activation and where it is; returns another of its shape, or None to leave it."""
Names = str | Sequence[str] | Callable[[str], bool] | None
"""One site, several, a choice among TransformerLens names, or None: every TransformerLens name."""
_SHORT = {"z": "attn.hook_z", "embed": "hook_embed", "normalized": "ln_final.hook_normalized"}


class HookPoint(NamedTuple):
    """What a hook is told of where it stands."""

    name: str
    """The site, as it was given."""

    @property
    def layer(self) -> int | None:
        """Its block; None outside of the blocks."""
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "blocks" else None


class ActivationCache(Mapping[str, Tensor]):
    """Site -> activation (B, T, D), or (B, T, heads, d_head) at ``hook_z``."""

    def __init__(self, activations: Mapping[str, Tensor]) -> None:
        """What one pass gave."""
        self._activations = dict(activations)

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        """By site, or by short name and layer: ``cache["resid_post", 3]``, ``cache["z", -1]``.

        Raises:
            CapabilityError: it was not kept.
        """
        site = key if isinstance(key, str) else self._named(*key)
        if site not in self._activations:
            raise CapabilityError(
                f"'{site}' was not kept{nearest(site, self._activations)}",
                hint="name it in names_filter; cache.keys() lists what is here",
            )
        return self._activations[site]

    def _named(self, short: str, layer: int) -> str:
        layers = [point.layer for point in map(HookPoint, self._activations) if point.layer is not None]
        number = layer if layer >= 0 or not layers else max(layers) + 1 + layer
        return f"blocks.{number}.{_SHORT.get(short, f'hook_{short}')}"

    def __contains__(self, key: object) -> bool:
        return key in self._activations

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        return sum(value.nbytes for value in self._activations.values())


def run_with_cache(
    model: OpenLM, prompts: Tensor | Batch, names_filter: Names = None
) -> tuple[Tensor, ActivationCache]:
    """Logits (B, T, V), and the activations that were asked for. Gradients flow as the caller set them.

    Args:
        model: local weights.
        prompts: ids (B, T) of prompts of one length, or a batch of ``model.encode``.
        names_filter: see ``Names``. None keeps every TransformerLens name, which may be a lot of memory.

    Raises:
        InputError: ids that are no table. CapabilityError: a site that the model does not have.
    """
    with capture(model, chosen(model, names_filter)) as activations:
        logits = model.forward(_batch(prompts))
    return logits, ActivationCache(activations)


def run_with_hooks(model: OpenLM, prompts: Tensor | Batch, fwd_hooks: Sequence[tuple[str, Hook]]) -> Tensor:
    """Logits (B, T, V) of a pass in which each hook may change the activation at its site.

    A hook is called with the activation and its ``HookPoint``, and returns a tensor of that shape, or None to
    leave it (where it may have been changed in place). Hooks at one site run in the order given.

    Raises:
        InputError: another shape is returned. CapabilityError: an unknown site, or one that never ran.
    """
    hooks: dict[str, list[Hook]] = {}
    for site, hook in fwd_hooks:
        hooks.setdefault(site, []).append(hook)
    changes = {site: partial(_apply, HookPoint(site), some) for site, some in hooks.items()}
    with edited(model.module, changes):
        return model.forward(_batch(prompts))


def capture(model: OpenLM, names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
    """A block after which the dict holds the latest activation at each site; see ``hooks.captured``."""
    return captured(model.module, names)


def chosen(model: OpenLM, names: Names) -> list[str]:
    """The sites that ``names`` means.

    Raises:
        CapabilityError: none, or the model's blocks were not found.
    """
    if isinstance(names, str):
        return [names]
    if names is not None and not callable(names):
        return list(names)
    known = [name for name in places(model.module) if names is None or names(name)]
    if not known:
        raise CapabilityError(
            f"names_filter keeps no site of '{model.identity.name}'",
            hint="model.sites() lists the names; module paths must be given by name",
        )
    return known


class _Prompts(NamedTuple):
    """Rows of one length: see ``core.lm.Batch``."""

    ids: Tensor
    mask: Tensor
    reply: Tensor


def whole_rows(ids: Tensor) -> Batch:
    """A batch of rows (B, T) without padding.

    Raises:
        InputError: ids that are no table of whole numbers.
    """
    if ids.ndim != 2 or ids.is_floating_point():
        raise InputError(
            f"ids of shape {tuple(ids.shape)} and type {ids.dtype}",
            hint="give a table (B, T) of whole numbers, or model.encode(chats) for prompts of many lengths",
        )
    whole = torch.ones_like(ids, dtype=torch.bool)
    return _Prompts(ids, whole, ~whole)


def _batch(prompts: Tensor | Batch) -> Batch:
    return whole_rows(prompts) if isinstance(prompts, Tensor) else prompts


def _apply(point: HookPoint, hooks: Sequence[Hook], value: Tensor) -> Tensor:
    for hook in hooks:
        changed = hook(value, point)
        value = value if changed is None else changed
    return value
