"""How attention and MLP of each block are wired to the stream: what reads it, and through which norm.

Nothing is looked up by name. One pass over a few ids shows which maps read what a norm makes of the stream,
and by which module the MLP does; ``columns.py`` tells queries, keys and values apart. ``graph.py`` believes a
wiring only where the stream adds up, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.core import CapabilityError
from calibrant.models.additions import Parts, Place, additions
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import first_tensor
from calibrant.understand._engine.columns import (
    TOKENS,
    Asked,
    Heads,
    first_argument,
    heads_of,
    hooked,
    refusal,
    trial,
)

_NEAR = 1e-4  # of the largest value: sums in another order


@dataclass(frozen=True)
class Wiring:
    """One block."""

    path: str
    """The block."""
    norm: str
    """Between the stream and the projections; "" where they read the stream itself."""
    maps: tuple[str, ...]
    """Maps that read the stream, or what the norm makes of it."""
    heads: dict[str, Heads]
    """'q', 'k' and 'v'; keys and values count their own heads."""
    group: tuple[int, ...]
    """Query head -> its key and value head."""
    z: Place
    """Input of the output projection."""
    attention: Place
    """What attention adds."""
    normed: bool
    """An RMS norm lies between the output projection and the stream."""
    entry: str
    """The module whose input is the MLP's way in."""
    shared: bool
    """That input is what ``norm`` gives, not the stream."""
    parallel: bool
    """The MLP reads the same stream as attention."""
    mlp: Place
    """What the MLP adds."""


class _Call(NamedTuple):
    """A module's run."""

    path: str
    given: Tensor
    gave: Tensor


def weight_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Matrix (in, out) and bias of a Linear, or of GPT-2's Conv1D."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    return (weight.T if isinstance(module, nn.Linear) else weight), bias


def wirings(module: nn.Module) -> list[Wiring]:
    """Every block's wiring.

    Raises:
        CapabilityError: a block whose parts do not show; it is named, with the reason.
    """
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in module.parameters()):
        raise CapabilityError(
            "edges need a model in float32: in half precision small effects are rounding",
            hint="load the model in float32",
        )
    parts, blocks = additions(module), anatomy(module).blocks
    if not parts:
        raise refusal(module, "its blocks were not found")
    calls = _calls(module)
    found = [_read(module, path, part, calls) for path, part in zip(blocks, parts, strict=True)]
    heads = heads_of(module, [Asked(one.path, one.maps, one.z) for one in found])
    return [replace(one, heads=mine, group=group) for one, (mine, group) in zip(found, heads, strict=True)]


def _calls(module: nn.Module) -> list[_Call]:
    """What every module inside the blocks was given and gave in one pass."""
    found: list[_Call] = []
    blocks = anatomy(module).blocks

    def keep(path: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given, gave = first_argument(args, kwargs), first_tensor(output)
            if given is not None and gave is not None:
                found.append(_Call(path, given, gave))

        return note

    handles = [
        child.register_forward_hook(keep(path), with_kwargs=True)
        for path, child in module.named_modules()
        if any(path == block or path.startswith(f"{block}.") for block in blocks)
    ]
    with hooked(handles):
        trial(module, TOKENS)
    return found


def _read(module: nn.Module, path: str, parts: Parts, calls: Sequence[_Call]) -> Wiring:
    """A block, before its heads are told apart."""
    if parts.z is None or parts.attention is None or parts.mlp is None:
        raise refusal(module, f"{path} does not add heads, then an MLP, to the stream")
    inside = {call.path: call for call in calls if call.path == path or call.path.startswith(f"{path}.")}
    stream = inside[path].given
    norm = _norm(module, inside, path, stream, parts)
    read = inside[norm].gave if norm else stream
    maps = [c for c in inside.values() if _same(c.given, read) and _is_map(module.get_submodule(c.path))]
    for call in maps:
        _check_map(module, call)
    parallel = parts.middle is None
    middle = stream if parallel else stream + _added(inside, parts.attention).reshape_as(stream)
    entry, shared = _entry(module, inside, path, middle, read if parallel and norm else None, norm)
    normed = _normed(module, inside, parts, path)
    return Wiring(
        path, norm, tuple(call.path for call in maps), {}, (), parts.z, parts.attention, normed, entry,
        shared, parallel, parts.mlp,
    )  # fmt: skip


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they are one tensor, by its memory: two norms may give equal numbers."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _near(one: Tensor, other: Tensor) -> bool:
    if one.numel() != other.numel():
        return False
    scale = float(other.abs().max()) + 1e-30
    return float((one.reshape_as(other) - other).abs().max()) <= _NEAR * scale


def _is_map(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not list(module.children())


def _added(inside: dict[str, _Call], place: Place) -> Tensor:
    return inside[place.path].gave * place.scale


def _norm(module: nn.Module, inside: dict[str, _Call], path: str, stream: Tensor, parts: Parts) -> str:
    """The norm that attention's maps read; "" where they read the stream."""
    assert parts.z is not None
    attention = [
        c for c in inside.values() if "att" in c.path.removeprefix(path).lower() and c.path != parts.z.path
    ]
    maps = [c for c in attention if _is_map(module.get_submodule(c.path))]
    for call in inside.values():
        reads = call.path != path and _same(call.given, stream)
        feeds = any(_same(c.given, call.gave) for c in maps)
        if reads and feeds and not _is_map(module.get_submodule(call.path)):
            return call.path
    if any(_same(c.given, stream) for c in maps):
        return ""
    raise refusal(module, f"no map of attention in {path} reads the stream, or a norm of it")


def _check_map(module: nn.Module, call: _Call) -> None:
    """That a map is its matrix: a quantised or wrapped one is not."""
    weight, bias = weight_of(module.get_submodule(call.path))
    if weight.shape != (call.given.shape[-1], call.gave.shape[-1]) or not weight.is_floating_point():
        raise refusal(module, f"{call.path} is not its weight matrix")
    plain = call.given @ weight.to(call.given.dtype)
    if not _near(plain if bias is None else plain + bias, call.gave):
        raise refusal(module, f"{call.path} is not its weight matrix")


def _entry(
    module: nn.Module,
    inside: dict[str, _Call],
    path: str,
    middle: Tensor,
    normed: Tensor | None,
    norm: str,
) -> tuple[str, bool]:
    """The one outermost module by which the MLP reads the stream; whether it reads what ``norm`` gives."""
    parallel = inside[path].given is middle
    outside = [
        call
        for call in inside.values()
        if call.path not in (path, norm) and "att" not in call.path.removeprefix(path).lower()
    ]
    own = _outermost([c for c in inside.values() if c.path not in (path, norm)], middle, parallel, module)
    own = [name for name in own if not _is_attention(inside, path, name, outside)]
    if len(own) == 1:
        return own[0], False
    if not own and normed is not None:
        second = _outermost(outside, normed, True, module)
        if len(second) == 1:
            return second[0], True
    raise refusal(module, f"the MLP of {path} reads the stream in {len(own)} places")


def _is_attention(inside: dict[str, _Call], path: str, name: str, outside: Sequence[_Call]) -> bool:
    """Whether a module belongs to attention: its path says so, and what it gives no other module reads."""
    if any(call.path == name for call in outside):
        return False
    gave = inside[name].gave
    return not any(_same(call.given, gave) for call in outside)


def _outermost(calls: Sequence[_Call], stream: Tensor, exact: bool, module: nn.Module) -> list[str]:
    """Modules that are given the stream and lie in no other such module."""
    idle = (nn.Dropout, nn.Identity)
    names = [
        c.path
        for c in calls
        if (_same(c.given, stream) if exact else _near(c.given, stream))
        and not isinstance(module.get_submodule(c.path), idle)
    ]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _normed(module: nn.Module, inside: dict[str, _Call], parts: Parts, path: str) -> bool:
    """Whether an RMS norm lies between the output projection and the stream; False where nothing does."""
    assert parts.attention is not None and parts.z is not None
    projected, added = inside[parts.z.path], inside[parts.attention.path]
    _check_map(module, projected)
    if _near(added.gave, projected.gave):
        return False
    bias = weight_of(module.get_submodule(parts.z.path))[1]
    if _same(added.given, projected.gave) and (bias is None or not bool(bias.any())):
        gain = gain_of(module.get_submodule(parts.attention.path), projected.gave)
        if _near(norm_factor(projected.gave, added.gave, gain) * projected.gave * gain, added.gave):
            return True
    raise refusal(module, f"what {path} does to its heads before it adds them is no RMS norm without bias")


def gain_of(norm: nn.Module, like: Tensor) -> Tensor:
    """(D,) the gain of an RMS norm, up to a factor: what it makes of ones."""
    gain: Tensor = norm.forward(torch.ones_like(like[:1, :1]))[0, 0]
    return gain


def norm_factor(given: Tensor, gave: Tensor, gain: Tensor) -> Tensor:
    """(..., 1): s with gave = s * given * gain, by least squares."""
    along = given * gain
    return (gave * along).sum(-1, keepdim=True) / (along * along).sum(-1, keepdim=True).clamp_min(1e-30)
