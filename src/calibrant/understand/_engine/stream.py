"""What a pass shows of the stream: what writers wrote, what readers were given, and what they feel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.models.additions import Place
from calibrant.models.model_facts import first_tensor
from calibrant.understand._engine.columns import KINDS, hooked
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.wiring import Wiring, gain_of, norm_factor, weight_of


@dataclass
class Seen:
    """What a pass showed; lists go by block."""

    stream: list[Tensor] = field(default_factory=list)
    """(B, T, D) before each block, and behind the last."""
    z: list[Tensor] = field(default_factory=list)
    """(B, T, heads, d) what the heads give."""
    projected: list[Tensor] = field(default_factory=list)
    """(B, T, D) of them, behind the output projection."""
    attention: list[Tensor] = field(default_factory=list)
    """(B, T, D) what attention adds."""
    mlp: list[Tensor] = field(default_factory=list)
    """(B, T, D) what the MLP adds."""
    maps: list[dict[str, Tensor]] = field(default_factory=list)
    """Projections of the stream, by path."""
    entry: list[Tensor] = field(default_factory=list)
    """What the MLP is given; gradients by it are those of the MLP alone."""


@contextmanager
def watched(module: nn.Module, graph: Graph, start: Tensor | None = None) -> Iterator[Seen]:
    """A block in which one pass fills what is given; ``start`` replaces the stream before the first block."""
    seen = Seen()
    handles = []
    for number, layer in enumerate(graph.layers):
        maps: dict[str, Tensor] = {}
        seen.maps.append(maps)
        handles += [
            before(
                module, layer.path, partial(_begin, seen.stream, start) if number == 0 else _kept(seen.stream)
            ),
            before(module, layer.z.path, _kept(seen.z, heads=graph.heads)),
            module.get_submodule(layer.z.path).register_forward_hook(_noted(seen.projected)),
            added(module, layer.attention, seen.attention.append),
            before(module, layer.entry, _kept(seen.entry)),
            added(module, layer.mlp, seen.mlp.append),
        ]
        for path in dict.fromkeys(heads.path for heads in layer.heads.values()):
            handles.append(module.get_submodule(path).register_forward_hook(_mapped(maps, path)))
    handles.append(before(module, graph.tail, _kept(seen.stream)))
    with hooked(handles):
        yield seen


def written(module: nn.Module, graph: Graph, seen: Seen) -> Tensor:
    """(B, U, T, D) what every writer wrote in a pass."""
    first = seen.stream[0]
    shape = (len(first), len(graph.writers), *first.shape[1:])
    found = torch.empty(shape, dtype=first.dtype, device=first.device)
    found[:, 0] = first
    for number, layer in enumerate(graph.layers):
        at = graph.first(number)
        heads = by_head(module, layer, seen.z[number], seen.projected[number], seen.attention[number])
        found[:, at : at + graph.heads] = heads
        found[:, at + graph.heads] = seen.mlp[number].reshape_as(first)
    return found


def by_head(module: nn.Module, layer: Wiring, z: Tensor, projected: Tensor, added: Tensor) -> Tensor:
    """(B, H, T, D) what each head writes.

    Args:
        module: the model.
        layer: the block.
        z: (B, T, H, d) what the heads give.
        projected: (B, T, D) of them, behind the output projection.
        added: (B, T, D) what attention adds.
    """
    weight = weight_of(module.get_submodule(layer.z.path))[0].view(z.shape[2], z.shape[3], -1)
    parts = torch.einsum("bthe,hed->bhtd", z, weight)
    if layer.normed:
        gain = gain_of(module.get_submodule(layer.attention.path), projected)
        return parts * (norm_factor(projected, added, gain) * gain)[:, None]
    return parts if layer.attention.scale == 1.0 else parts * layer.attention.scale


def back_through_norm(module: nn.Module, path: str, stream: Tensor, flow: Tensor) -> Tensor:
    """Gradients by the stream (B, T, D) of V readers, from theirs by what the norm gives, (V, B, T, D)."""
    if not path:
        return flow
    norm = module.get_submodule(path)
    with torch.enable_grad():
        given = stream.detach().expand(flow.shape).clone().requires_grad_()
        return torch.autograd.grad(norm.forward(given), given, flow)[0]


@dataclass
class Flows:
    """Gradients of a reading: see ``Seen``."""

    maps: list[dict[str, Tensor]]
    entry: list[Tensor]
    last: Tensor
    """By the stream behind the last block."""


def reader_flows(module: nn.Module, graph: Graph, seen: Seen, flows: Flows, layer: int) -> Tensor:
    """(V, B, T, D) gradients by the stream as each reader of a block is given it, in the readers' order."""
    wiring, stream = graph.layers[layer], seen.stream[layer]
    parts = []
    for kind in KINDS:
        path, columns = wiring.heads[kind]
        weight = weight_of(module.get_submodule(path))[0][:, columns]
        flow = flows.maps[layer][path][..., columns]
        parts.append(torch.einsum("btve,dve->vbtd", flow, weight))
    entry = flows.entry[layer].reshape(1, *stream.shape)
    if wiring.shared:
        return back_through_norm(module, wiring.norm, stream, torch.cat([*parts, entry]))
    return torch.cat([back_through_norm(module, wiring.norm, stream, torch.cat(parts)), entry])


def flows_of(reading: Tensor, seen: Seen, *, again: bool = False) -> Flows:
    """Gradients of a reading by what the readers are given; ``again``: others will be asked for."""
    wanted = [value for maps in seen.maps for value in maps.values()] + seen.entry + [seen.stream[-1]]
    found = iter(torch.autograd.grad(reading, wanted, allow_unused=True, retain_graph=again))
    whole = [torch.zeros_like(value) if (one := next(found)) is None else one for value in wanted]
    parts = iter(whole)
    maps = [{path: next(parts) for path in one} for one in seen.maps]
    return Flows(maps, [next(parts) for _ in seen.entry], next(parts))


def before(module: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Any:
    """Register ``change`` of the first tensor that a module is called with; returns the handle."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args and isinstance(args[0], Tensor):
            return (change(args[0]), *args[1:]), kwargs
        name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: change(kwargs[name])}

    return module.get_submodule(path).register_forward_pre_hook(enter, with_kwargs=True)


def added(module: nn.Module, place: Place, look: Callable[[Tensor], None]) -> Any:
    """Register ``look`` at what a block adds there; returns the handle."""

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        value = first_tensor(output)
        assert value is not None
        value = value.clone() if place.overwritten else value
        look(value if place.scale == 1.0 else value * place.scale)

    return module.get_submodule(place.path).register_forward_hook(leave)


def _begin(kept: list[Tensor], start: Tensor | None, value: Tensor) -> Tensor:
    """The stream before the first block, where gradients begin."""
    begun = value.detach().clone() if start is None else start.detach().clone()
    kept.append(begun.requires_grad_() if torch.is_grad_enabled() else begun)
    return kept[-1]


def _kept(kept: list[Tensor], heads: int = 0) -> Callable[[Tensor], Tensor]:
    """Keep what a module is given, which is a tensor of its own for gradients."""

    def keep(value: Tensor) -> Tensor:
        own = value.view_as(value)
        kept.append(own.view(*own.shape[:-1], heads, -1) if heads else own)
        return own

    return keep


def _noted(kept: list[Tensor]) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        kept.append(output)

    return note


def _mapped(kept: dict[str, Tensor], path: str) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        kept[path] = output

    return note
