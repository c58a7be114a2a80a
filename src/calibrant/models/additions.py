"""Find what each block adds to the residual stream, and where, by arithmetic on one traced pass.

``hook_attn_out`` and ``hook_mlp_out`` mean what is *added*: not the raw output of attention and MLP, which a
norm (Gemma 2, OLMo 2) or a multiplier (Granite) still changes, or which has the stream in it (BLOOM). So
nothing is looked up by its name. In a pass over a few ids, the parts of a block are the two modules for which

    resid_pre + scale * attention + scale * MLP == resid_post

holds to rounding, with a scale that is 1 or comes from the config; of the two, attention is the one whose
path or class says so. Where no two modules add up, the block has no such sites.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import FOREIGN, accepted, facts, first_tensor, muted, sample_ids

_ULPS = 8  # a sum of three in another order
_IDLE = (nn.Dropout, nn.Identity)


class Place(NamedTuple):
    """A module, the side of it that is meant, and how its tensor is shown."""

    path: str
    before: bool = False
    """Its first input, not its output."""
    scale: float = 1.0
    """What the block multiplies it by before it adds it."""
    heads: int = 0
    """Show (B, T, D) as (B, T, heads, D / heads)."""
    flat: str = ""
    """Path of the block that reshaped (B, T, D) to (B T, D) before this."""
    overwritten: bool = False
    """A later step of the pass writes into the same memory."""
    onto: str = ""
    """Path of the block whose input it is added to: the sum of the two is shown, and changed."""


class Parts(NamedTuple):
    """The sites of one block; None for what it does not have."""

    attention: Place | None = None
    """What attention adds to the stream."""
    middle: Place | None = None
    """The stream between the two; None where they run side by side."""
    mlp: Place | None = None
    """What the MLP adds."""
    z: Place | None = None
    """What the heads hand to attention's output projection, (B, T, heads, d_head)."""


class _Output(NamedTuple):
    """Modules with one output, in the order they ended."""

    names: list[str]
    value: Tensor
    """As it was when the module returned."""
    live: Tensor


@dataclass
class _Pass:
    """What was seen of a block in one pass."""

    path: str
    before: Tensor | None = None
    after: Tensor | None = None
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[_Output] = field(default_factory=list)


def additions(module: nn.Module) -> tuple[Parts, ...]:
    """The parts of each block of ``module``; looked for once, shared with its copies."""
    known = facts(module)
    if "additions" not in known:
        with muted(module), torch.no_grad():
            try:
                known["additions"] = tuple(_look(module))
            except FOREIGN:
                known["additions"] = ()
    parts: tuple[Parts, ...] = known["additions"]
    return parts


def _look(module: nn.Module) -> Iterator[Parts]:
    seen, handles = [_Pass(path) for path in anatomy(module).blocks], []
    for block in seen:
        for path, child in module.get_submodule(block.path).named_modules(prefix=block.path):
            enter, leave = partial(_enter, block, path), partial(_leave, block, path)
            handles.append(child.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(child.register_forward_hook(leave))
    ids = torch.tensor([sample_ids(module, 6)], device=next(module.parameters()).device)
    model: Any = module
    try:
        model(input_ids=ids, **accepted(module, use_cache=False))
    finally:
        for handle in handles:
            handle.remove()
    scales = _scales(model.config)
    for block in seen:
        yield _parts(module, block, scales)


def _enter(block: _Pass, path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    value = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    if path == block.path:
        block.before = None if value is None else value.clone()
    elif value is not None:
        block.inputs.append((path, value.clone()))


def _leave(block: _Pass, path: str, _: nn.Module, __: Any, output: Any) -> None:
    value = first_tensor(output)
    if path == block.path:
        block.after = None if value is None else value.clone()
    elif value is not None:
        same = next((o for o in block.outputs if torch.equal(o.value, value)), None)
        if same is None:
            block.outputs.append(_Output([path], value.clone(), value))
        else:
            same.names.append(path)


def _scales(config: Any) -> tuple[float, ...]:
    """1, and what the config calls a multiplier, or a scale by depth."""
    named = [(k, float(v)) for k, v in config.to_dict().items() if type(v) in (int, float)]
    depth = math.sqrt(getattr(config, "num_hidden_layers", 1))
    multipliers = [v for key, v in named if "multiplier" in key]
    return tuple(dict.fromkeys((1.0, *multipliers, *(v / depth for key, v in named if "scale_depth" in key))))


def _parts(module: nn.Module, block: _Pass, scales: Sequence[float]) -> Parts:
    before, after = block.before, block.after
    if before is None or after is None or before.shape != after.shape:
        return Parts()
    fits = [output for output in block.outputs if _like(output.value, after)]
    attentions = [o for o in fits if any(_is_attention(module, block, name) for name in o.names)]
    others = [o for o in fits if o not in attentions]
    sums = [
        (_error(before, (a, m), scale, after), scale, a, m)
        for scale, a, m in product(scales, attentions, others)
    ]
    error, scale, a, m = min(sums, key=lambda entry: entry[0], default=(math.inf, 1.0, None, None))
    if a is None or m is None or error > _ULPS:
        return Parts()
    return Parts(
        _place(module, block, a, scale),
        _middle(block, before, before + a.value.reshape_as(after) * scale, _place(module, block, a, scale)),
        _place(module, block, m, scale),
        _heads(module, block, a),
    )


def _is_attention(module: nn.Module, block: _Pass, path: str) -> bool:
    inside = path.removeprefix(block.path).lower()
    return "att" in inside or "attention" in type(module.get_submodule(path)).__name__.lower()


def _like(value: Tensor, stream: Tensor) -> bool:
    """Whether it is (B, T, D), or the same as (B T, D)."""
    return value.shape[-1:] == stream.shape[-1:] and value.numel() == stream.numel()


def _error(before: Tensor, added: Sequence[_Output], scale: float, expected: Tensor) -> float:
    """How far a sum is from what it should be: units in the last place of its largest term, worst element."""
    total, largest = before, torch.maximum(before.abs(), expected.abs())
    for output in added:
        term = output.value.reshape_as(before) * scale
        total, largest = total + term, torch.maximum(largest, term.abs())
    unit = torch.finfo(expected.dtype).eps * largest
    return float(((total - expected).abs() / unit.clamp(min=torch.finfo(expected.dtype).tiny)).max())


def _place(module: nn.Module, block: _Pass, output: _Output, scale: float) -> Place:
    """The module that stands for those with one output: the outermost that does something."""
    working = [name for name in output.names if not isinstance(module.get_submodule(name), _IDLE)]
    return Place(
        min(working or output.names, key=lambda name: name.count(".")),
        scale=scale,
        flat=block.path if output.value.ndim < 3 else "",
        overwritten=not torch.equal(output.live, output.value),
    )


def _middle(block: _Pass, before: Tensor, middle: Tensor, attention: Place) -> Place | None:
    """The stream behind attention, where a module reads it; None where none does.

    The stream goes on beside the module that reads it, so a change is made to what attention adds.
    """
    for _, value in block.inputs:
        near = _like(value, middle) and _error(middle, (), 1.0, value.reshape_as(middle)) <= _ULPS
        if near and not torch.equal(value.reshape_as(before), before):
            return attention._replace(onto=block.path)
    return None


def _heads(module: nn.Module, block: _Pass, attention: _Output) -> Place | None:
    """The input of attention's output projection, where it is the heads side by side."""
    config: Any = module.config
    heads = getattr(config, "num_attention_heads", None) or 0
    inputs = dict(block.inputs)
    for output in reversed(block.outputs):
        # It gives what attention gives: it is the last step of a module around it, or of the whole.
        last = output is attention or any(n.startswith(f"{o}.") for o in output.names for n in output.names)
        for path in output.names if last else ():
            inside, z = path.removeprefix(block.path).lower(), inputs.get(path)
            if z is None or z.ndim < 3 or "att" not in inside or "linear_att" in inside:
                continue
            if _is_map(module.get_submodule(path)):
                fits = type(heads) is int and heads > 0 and z.shape[-1] % heads == 0
                return Place(path, before=True, heads=heads) if fits else None
    return None


def _is_map(module: nn.Module) -> bool:
    """Whether it is a matrix alone: a Linear, or GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not list(module.children())
