"""Read and edit activations of a Hugging Face model at named sites (``sites.py``), by plain forward hooks.

Where a module returns a tuple or a transformers output, its first tensor is meant; ``first_tensor`` and
``with_first`` are the only places that know. A hook that never fires is an error, and every hook goes
when its block ends, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from calibrant.core.errors import CapabilityError, InputError
from calibrant.models.additions import Place
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import first_tensor, is_muted
from calibrant.models.sites import located

Change = Callable[[Tensor], Tensor]


@contextmanager
def edited(
    module: nn.Module, changes: Mapping[str, Change], places: Mapping[str, Place] | None = None
) -> Iterator[None]:
    """Apply ``changes`` at every forward pass inside the block: site -> function of the tensor there.

    That is (B, T, D), or (B, T, heads, d_head) at ``hook_z``. The function must return a tensor of the same
    shape. During generation it sees the prompt (left-padded) first and then one position a step. Blocks nest;
    the outer one's change comes first. ``places``: of the sites, where they are known already.

    Raises:
        CapabilityError: an unknown site, or, on leaving, a change that was never applied.
        InputError: no dict of functions, or one returned something else than a tensor of the same shape.
    """
    if not isinstance(changes, Mapping) or not all(map(callable, changes.values())):
        raise InputError(
            "an edit is a dict of functions by site", hint='give {"hook_embed": lambda act: 0 * act}'
        )
    fired = dict.fromkeys(changes, 0)
    spots = located(module, changes) if places is None else {site: places[site] for site in changes}
    handles = []

    def counted(site: str) -> Change:
        def apply(value: Tensor) -> Tensor:
            if is_muted():  # a probe's own pass is none of the caller's business
                return value
            fired[site] += 1
            changed: Any = changes[site](value)
            if not isinstance(changed, Tensor) or changed.shape != value.shape:
                got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise InputError(
                    f"the edit at '{site}' must return a tensor of shape {tuple(value.shape)}, got {got}",
                    hint="return the whole tensor, changed or not",
                )
            return changed

        return apply

    try:
        for site, place in spots.items():
            handles += _attach(module, place, counted(site))
        yield
    finally:
        for handle in handles:
            handle.remove()
    silent = sorted(site for site, count in fired.items() if not count)
    if silent:
        raise CapabilityError(
            f"no forward pass went through {', '.join(silent)}",
            hint="run the model inside the block, or choose a site that this model computes",
        )


@contextmanager
def captured(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that holds, when the block ends, the latest activation at each site; see ``edited``.

    Tensors are the live ones, not copies: gradients flow through them where the caller enabled them.
    """
    activations: dict[str, Tensor] = {}

    def keep(site: str) -> Change:
        def note(value: Tensor) -> Tensor:
            activations[site] = value
            return value

        return note

    with edited(module, {site: keep(site) for site in names}):
        yield activations


def unembed(module: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (..., V) of residual-stream vectors ``hidden`` (..., D): the logit lens.

    The model's own final norm, unembedding and what it does to its logits: see ``anatomy.py``.

    Raises:
        CapabilityError: no way from the last block to the logits was found that gives the model's own.
    """
    layout = anatomy(module)
    if layout.reason:
        raise CapabilityError(
            f"no logit lens for {type(module).__name__}: {layout.reason}",
            hint="apply the final norm and the unembedding by hand, by their module paths",
        )
    return layout.unembed(module, hidden)


def _attach(module: nn.Module, place: Place, change: Change) -> list[Any]:
    """Register ``change`` at the place; returns the handles."""
    target, handles = module.get_submodule(place.path), []
    stream: list[Tensor] = []

    def changed(raw: Tensor) -> Tensor:
        """``raw`` as the block goes on with it: the very tensor where nothing was changed."""
        shown = raw.view(*stream[0].shape[:2], raw.shape[-1]) if place.flat else raw
        shown = shown.view(*shown.shape[:-1], place.heads, -1) if place.heads else shown
        shown = shown if place.scale == 1.0 else shown * place.scale
        shown = stream[0] + shown if place.onto else shown
        after = change(shown)
        if after is shown and (shown is raw or not raw.requires_grad):  # gradients go through shown
            return raw.clone() if place.overwritten else raw
        after = after - stream[0] if place.onto else after
        after = after if place.scale == 1.0 else after / place.scale
        return after.reshape(raw.shape)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: changed(kwargs[name])}

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        before = _first(output)
        after = changed(before)
        return output if after is before else with_first(output, after)

    if block := place.flat or place.onto:
        handles += _noted(module, module.get_submodule(block), stream)
    if place.before:
        return [*handles, target.register_forward_pre_hook(enter, with_kwargs=True)]
    return [*handles, target.register_forward_hook(leave)]


def _noted(module: nn.Module, block: nn.Module, stream: list[Tensor]) -> list[Any]:
    """Keep what enters a block in ``stream``, after all that others change there, whenever they came."""

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream[:] = [next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))]

    handle = block.register_forward_pre_hook(note, with_kwargs=True)

    def last(*_: Any) -> None:
        hooks: Any = block._forward_pre_hooks
        hooks.move_to_end(handle.id)

    return [handle, module.register_forward_pre_hook(last)]


def _first(output: Any) -> Tensor:
    """The tensor that a module's output is about."""
    value = first_tensor(output)
    if value is None:
        raise CapabilityError(
            f"a module returned {type(output).__name__} without a tensor first", hint="choose another site"
        )
    return value


def with_first(output: Any, value: Tensor) -> Any:
    """``output`` with its first tensor replaced."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, (tuple, list)):
        return type(output)((value, *output[1:]))
    return type(output)(**{**output, next(iter(output)): value})  # transformers' ModelOutput, a mapping
