"""Run a model with a look inside, in the idioms that users of TransformerLens know.

    logits, cache = run_with_cache(model, ids, names_filter=lambda name: name.endswith("resid_post"))
    cache["resid_post", 3]                      # or cache["blocks.3.hook_resid_post"]
    logits = run_with_hooks(model, ids, fwd_hooks=[("blocks.3.hook_mlp_out", lambda act, hook: 0 * act)])
    with capture(model, ["blocks.3.hook_resid_post"]) as acts:
        model.generate(chats)

An ``OpenModel`` has the three as methods, too. ``docs/activations.md`` shows each.
Nothing is kept that was not asked for, and nothing stays on the model. A hook that never fires is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

from torch import Tensor

from calibrant.core.errors import CapabilityError, InputError, nearest
from calibrant.core.lm import Batch, OpenLM
from calibrant.models.hooks import captured, edited
from calibrant.models.prompts import Prompts, as_batch, check_ids
from calibrant.models.sites import places

Hook = Callable[..., Any]
"""Called with an activation and its ``HookPoint``; returns another of its shape, or None to leave it."""
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
        return int(parts[1]) if parts[0] == "blocks" and parts[1].isdigit() else None


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
        site = self._site(key)
        if site not in self._activations:
            raise CapabilityError(
                f"'{site}' was not kept{nearest(site, self._activations)}",
                hint="name it in names_filter; cache.keys() lists what is here",
            )
        return self._activations[site]

    def _site(self, key: object) -> str:
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and type(key[1]) is int:
            short, layer = key
            layers = [point.layer for point in map(HookPoint, self._activations) if point.layer is not None]
            number = layer if layer >= 0 or not layers else max(layers) + 1 + layer
            return f"blocks.{number}.{_SHORT.get(short, f'hook_{short}')}"
        return key if isinstance(key, str) else repr(key)

    def __contains__(self, key: object) -> bool:
        return self._site(key) in self._activations

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        return sum(value.nbytes for value in self._activations.values())


def run_with_cache(
    model: OpenLM, prompts: Prompts, names_filter: Names = None
) -> tuple[Tensor, ActivationCache]:
    """Logits (B, T, V), and the activations that were asked for. Gradients flow as the caller set them.

    Args:
        model: local weights.
        prompts: a text, a chat, several of these, ids, or a batch of ``model.encode``.
        names_filter: see ``Names``. None keeps every TransformerLens name, which may be a lot of memory.

    Raises:
        InputError: no prompts. CapabilityError: a site that the model does not have.
    """
    with capture(model, chosen(model, names_filter)) as activations:
        logits = model.forward(_batch(model, prompts))
    return logits, ActivationCache(activations)


def run_with_hooks(model: OpenLM, prompts: Prompts, fwd_hooks: Sequence[tuple[Names, Hook]]) -> Tensor:
    """Logits (B, T, V) of a pass in which each hook may change the activation at its site.

    A hook is called with the activation and its ``HookPoint``, and returns a tensor of that shape, or None to
    leave it (where it may have been changed in place). Hooks at one site run in the order given.

    Raises:
        InputError: another shape is returned. CapabilityError: an unknown site, or one that never ran.
    """
    hooks: dict[str, list[Hook]] = {}
    for pair in fwd_hooks:
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[1]):
            raise InputError(f"{pair!r:.60} is no hook", hint="give a list of (site, function) pairs")
        for site in chosen(model, pair[0]):
            hooks.setdefault(site, []).append(pair[1])
    changes = {site: partial(_apply, HookPoint(site), some) for site, some in hooks.items()}
    with edited(model.module, changes):
        return model.forward(_batch(model, prompts))


def capture(model: OpenLM, names: Names) -> AbstractContextManager[dict[str, Tensor]]:
    """A block after which the dict holds the latest activation at each site; see ``hooks.captured``."""
    return captured(model.module, chosen(model, names))


def chosen(model: OpenLM, names: Names) -> list[str]:
    """The sites that ``names`` means.

    Raises:
        CapabilityError: none, or the model's blocks were not found.
    """
    if isinstance(names, str):
        return [names]
    if names is not None and not callable(names):
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise InputError(f"{wrong[0]!r:.60} is no name of a site", hint="give texts, or a function")
        return list(names)
    known = [name for name in places(model.module) if names is None or names(name)]
    if not known:
        raise CapabilityError(
            f"names_filter keeps no site of '{model.identity.name}'",
            hint="model.sites() lists the names; module paths must be given by name",
        )
    return known


def _batch(model: OpenLM, prompts: Prompts) -> Batch:
    """Ids that the model can read, as a batch; see ``prompts.as_batch``."""
    batch = as_batch(model, prompts)
    check_ids(model, batch)
    return batch


def _apply(point: HookPoint, hooks: Sequence[Hook], value: Tensor) -> Tensor:
    for hook in hooks:
        named = "hook" in signature(hook).parameters  # as TransformerLens calls them
        changed = hook(value, hook=point) if named else hook(value, point)
        value = value if changed is None else changed
    return value
