"""Read and edit activations of a Hugging Face model, by plain forward hooks.

Two kinds of name resolve to the same places:

- TransformerLens names (https://github.com/TransformerLensOrg/TransformerLens), i = 0, 1, ...:
  ``hook_embed`` (token embedding), ``blocks.{i}.hook_resid_pre``, ``blocks.{i}.hook_attn_out`` and
  ``blocks.{i}.hook_mlp_out`` (exactly what the block adds to the residual stream, so after the extra
  norms of Gemma 2), ``blocks.{i}.hook_resid_post``, ``ln_final.hook_normalized``;
- dotted module paths as in ``named_modules()``: ``model.layers.3.mlp``, whose output is meant.

Everything is (B, T, D) and in the weights' own basis: nothing is folded or centred. So
``ln_final.hook_normalized`` is what the unembedding reads, the final norm's weight included.

Where a module returns a tuple or a transformers output, its first tensor is meant; ``first_tensor`` and
``_with_first`` are the only places that know. A hook that never fires is an error, and every hook goes
when its block ends, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from calibrant.core.errors import CapabilityError, InputError, nearest
from calibrant.models.anatomy import Anatomy, anatomy
from calibrant.models.model_facts import first_tensor, is_muted, unembedding

Change = Callable[[Tensor], Tensor]
_LAYERS, _ATTENTION = ("layers", "h"), ("self_attn", "attn", "attention")
_NORMS = ("norm", "ln_f", "final_layer_norm")


@dataclass(frozen=True)
class Place:
    """A module and the side of it that is meant."""

    path: str
    before: bool = False


def places(module: nn.Module) -> dict[str, Place]:
    """Every TransformerLens name that this model has, with its place; {} for an unknown anatomy."""
    layout = anatomy(module)
    if not layout.blocks:
        return {}
    paths = {child: path for path, child in module.named_modules()}
    result = {"hook_embed": Place(paths[module.get_input_embeddings()])}  # type: ignore[operator]
    parts = _named(module, layout)
    for i, path in enumerate(layout.blocks):
        name = f"blocks.{i}"
        attention, mlp = _added(module.get_submodule(path)) if parts else (None, None)
        result[f"{name}.hook_resid_pre"] = Place(path, before=True)
        if attention is not None:
            result[f"{name}.hook_attn_out"] = Place(paths[attention])
        if mlp is not None:
            result[f"{name}.hook_mlp_out"] = Place(paths[mlp])
        result[f"{name}.hook_resid_post"] = Place(path)
    if last := layout.final(module):
        result["ln_final.hook_normalized"] = Place(last)
    return result


def sites(module: nn.Module) -> tuple[str, ...]:
    """All names that a forward pass goes through: TransformerLens names, then module paths."""
    idle = (nn.ModuleList, nn.ModuleDict, nn.Dropout, nn.Identity)
    paths = (path for path, child in module.named_modules() if path and not isinstance(child, idle))
    return (*places(module), *paths)


def resolve(module: nn.Module, site: str) -> Place:
    """The place that ``site`` names.

    Raises:
        CapabilityError: no such site in this model; the nearest name is given.
    """
    known = places(module)
    if site in known:
        return known[site]
    modules = dict(module.named_modules())
    if site and site in modules:
        return Place(site)
    raise CapabilityError(
        f"'{site}' is no site of {type(module).__name__}{nearest(site, [*known, *modules])}",
        hint="list the names with model.sites()",
    )


@contextmanager
def edited(module: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Apply ``changes`` at every forward pass inside the block: site -> function of the (B, T, D) tensor.

    The function must return a tensor of the same shape. During generation it sees the prompt
    (left-padded) first and then one position a step. Blocks nest; the outer one's change comes first.

    Raises:
        CapabilityError: an unknown site, or, on leaving, a change that was never applied.
        InputError: a change returned something else than a tensor of the same shape.
    """
    fired = dict.fromkeys(changes, 0)
    spots = {site: resolve(module, site) for site in changes}
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
            handles.append(_attach(module.get_submodule(place.path), place.before, counted(site)))
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


def reads_all_logits(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether one of the sites is the unembedding, so that logits are needed at every position."""
    head = unembedding(module)
    return any(module.get_submodule(resolve(module, site).path) is head for site in names)


def _child(parent: nn.Module, names: Sequence[str]) -> Any:
    """The first child of ``parent`` with one of ``names``, or None."""
    return next((getattr(parent, name) for name in names if hasattr(parent, name)), None)


def _named(module: nn.Module, layout: Anatomy) -> bool:
    """Whether the family names its parts as those do whose blocks add up from attention and MLP."""
    body: Any = getattr(module, "base_model", module)
    layers, norm = _child(body, _LAYERS), _child(body, _NORMS)
    return norm is not None and layers is not None and module.get_submodule(layout.blocks[0]) is layers[0]


def _added(layer: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The modules whose outputs a block adds to the residual stream: attention's and the MLP's.

    Gemma 2 and OLMo 2 normalise both before adding; elsewhere ``post_attention_layernorm`` is the MLP's
    input norm, and only its counterpart after the MLP tells the two apart.
    """
    if hasattr(layer, "post_feedforward_layernorm"):
        return _child(layer, ("post_attention_layernorm",)), _child(layer, ("post_feedforward_layernorm",))
    return _child(layer, _ATTENTION), _child(layer, ("mlp",))


def _attach(module: nn.Module, before: bool, change: Change) -> Any:
    """Register ``change`` on the module's first input or on its output."""
    if before:

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            return args, {**kwargs, name: change(kwargs[name])}

        return module.register_forward_pre_hook(enter, with_kwargs=True)

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        before = _first(output)
        after = change(before)
        return output if after is before else _with_first(output, after)

    return module.register_forward_hook(leave)


def _first(output: Any) -> Tensor:
    """The tensor that a module's output is about."""
    value = first_tensor(output)
    if value is None:
        raise CapabilityError(
            f"a module returned {type(output).__name__} without a tensor first", hint="choose another site"
        )
    return value


def _with_first(output: Any, value: Tensor) -> Any:
    """``output`` with its first tensor replaced."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, (tuple, list)):
        return type(output)((value, *output[1:]))
    return type(output)(**{**output, next(iter(output)): value})  # transformers' ModelOutput, a mapping
