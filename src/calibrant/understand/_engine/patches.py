"""What a patch is: at which sites, positions and heads an activation is replaced by that of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from calibrant.core import CapabilityError, InputError
from calibrant.models.additions import Place
from calibrant.models.anatomy import anatomy
from calibrant.models.sites import located


class Edit(NamedTuple):
    """One site's activation, replaced at some positions."""

    site: str
    """TransformerLens hook name or module path."""
    positions: tuple[int, ...] | None = None
    """Token positions, negative ones from the end; None: all of them."""
    heads: tuple[int, ...] | None = None
    """At ``attn.hook_z``: these heads; None: all of them."""
    columns: tuple[int, ...] | None = None
    """Of the last dimension, at a site without heads; None: all of them."""


Patch = tuple[Edit, ...]
"""Edits that are made together in one run."""


def places_of(module: nn.Module, patches: Sequence[Patch]) -> dict[str, Place]:
    """The place of every site that is patched.

    Raises:
        CapabilityError: a site that the model does not have.
    """
    return located(module, dict.fromkeys(edit.site for patch in patches for edit in patch))


def first_block(module: nn.Module, place: Place) -> int:
    """How many blocks run before a change there shows; all of them, where only the last norm is left."""
    layout = anatomy(module)
    for number, block in enumerate(layout.blocks):
        if place.path == block:
            return number if place.before else number + 1
        if place.path.startswith(f"{block}."):
            return number
    behind = any(place.path == path or place.path.startswith(f"{path}.") for path in layout.tail)
    return len(layout.blocks) if behind else 0


def check(
    places: Mapping[str, Place],
    patches: Sequence[Patch],
    sources: Mapping[str, Tensor],
    shape: tuple[int, int],
) -> None:
    """Refuse what cannot be run, before anything is.

    Args:
        places: of every site.
        patches: what is to be replaced.
        sources: site -> by what.
        shape: (N, T) of the ids that are patched.

    Raises:
        InputError: no patches, an empty one, a position, head or column out of range, one twice in a patch,
            a site without a source, or a source of another shape.
    """
    if not patches or not all(patches):
        raise InputError("there is nothing to patch", hint="give at least one patch with one edit")
    for edit in dict.fromkeys(edit for patch in patches for edit in patch):
        heads, source = places[edit.site].heads, sources.get(edit.site)
        if source is None:
            raise InputError(f"no source for '{edit.site}'", hint="trace the other run at every patched site")
        if source.shape[:2] != shape:
            raise InputError(
                f"'{edit.site}': the source has {source.shape[0]} prompts of {source.shape[1]} tokens, "
                f"the run has {shape[0]} of {shape[1]}",
                hint="both prompts of a pair must have the same number of tokens",
            )
        if wrong := [p for p in edit.positions or () if not -shape[1] <= p < shape[1]]:
            raise InputError(f"a prompt of {shape[1]} tokens has no position {wrong[0]}", hint="count from 0")
        if wrong := [h for h in edit.heads or () if not 0 <= h < heads]:
            known = f"it has heads 0 to {heads - 1}" if heads else "heads are found at attn.hook_z"
            raise InputError(f"'{edit.site}' has no head {wrong[0]}", hint=known)
        if edit.columns is not None and heads:
            raise InputError(f"'{edit.site}' is made of heads, not of columns", hint="name heads instead")
        if wrong := [c for c in edit.columns or () if not 0 <= c < source.shape[-1]]:
            raise InputError(
                f"'{edit.site}' has no column {wrong[0]}", hint=f"it has columns 0 to {source.shape[-1] - 1}"
            )
    if any(len(set(patch)) < len(patch) for patch in patches):
        raise InputError("a patch has the same edit twice", hint="name each site and position once")


def check_still(module: nn.Module, *, gradients: bool = False) -> None:
    """Refuse a model whose numbers change from pass to pass, or one that has no ``gradients``.

    Raises:
        CapabilityError: it is in training mode, or its weights were made in inference mode.
    """
    if any(child.training for child in module.modules()):
        raise CapabilityError(
            "the model is in training mode", hint="call model.module.eval(), without dropout"
        )
    if gradients and any(weight.is_inference() for weight in module.parameters()):
        raise CapabilityError(
            "the model's weights were made in inference mode, and have no gradients",
            hint="load it outside of torch.inference_mode()",
        )
