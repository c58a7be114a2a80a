"""Which numbers of a projection are a head's queries, keys and values, seen by gradients.

With random numbers in the place of every projection of the stream,

- a head's values are what its output feels even where there is a single token;
- its queries are what the last position feels at the last position only;
- its keys are the rest of what it feels.

So a joint projection may interleave them as it likes, and groups of heads may share keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.core import CapabilityError
from calibrant.models.additions import Place
from calibrant.models.model_facts import accepted, sample_ids

TOKENS = 6
KINDS = ("q", "k", "v")
_FELT = 1e-6  # of the largest gradient: less is rounding
Felt = dict[str, Tensor]
"""Map -> (T, C) whether a head's output at the last position feels that number."""


class Heads(NamedTuple):
    """Where a layer's queries, keys or values are: head h has ``columns[h]`` of a map's output."""

    path: str
    """The map."""
    columns: Tensor
    """(heads, d_head) numbers of its outputs."""


class Asked(NamedTuple):
    """A block whose heads are looked for."""

    path: str
    maps: tuple[str, ...]
    """Maps that read the stream, or what a norm makes of it."""
    z: Place
    """Input of the output projection."""


def heads_of(module: nn.Module, asked: Sequence[Asked]) -> list[tuple[dict[str, Heads], tuple[int, ...]]]:
    """A block's heads by kind, and the number of the keys and values that each query head reads.

    Raises:
        CapabilityError: heads that share queries, mix numbers, or do not come from one map a kind.
    """
    alone, several = _feels(module, asked, 1), _feels(module, asked, TOKENS)
    return [_split(module, *each) for each in zip(asked, alone, several, strict=True)]


def refusal(module: nn.Module, why: str) -> CapabilityError:
    """What to raise for a model without a graph."""
    return CapabilityError(
        f"no graph of edges for {type(module).__name__}: {why}",
        hint="understand.patch and understand.attribute work on whole sites of more families",
    )


@contextmanager
def hooked(handles: Sequence[Any]) -> Iterator[None]:
    """A block with hooks, which go when it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a module is called with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def trial(module: nn.Module, length: int) -> Tensor:
    """Logits of a pass over a few ids."""
    ids = torch.tensor([sample_ids(module, length)], device=next(module.parameters()).device)
    model: Any = module
    logits: Tensor = model(input_ids=ids, **accepted(module, use_cache=False)).logits
    return logits


def _split(
    module: nn.Module, asked: Asked, alone: Sequence[Felt], several: Sequence[Felt]
) -> tuple[dict[str, Heads], tuple[int, ...]]:
    found: dict[str, list[Felt]] = {kind: [] for kind in KINDS}
    for one, more in zip(alone, several, strict=True):
        value = {name: one[name][0] for name in asked.maps}
        early = {name: more[name][:-1].any(0) for name in asked.maps}
        found["v"].append(value)
        found["k"].append({name: early[name] & ~value[name] for name in asked.maps})
        found["q"].append({name: more[name][-1] & ~early[name] & ~value[name] for name in asked.maps})
    heads, group = dict[str, Heads](), dict[str, list[int]]()
    for kind in KINDS:
        heads[kind], group[kind] = _columns(module, asked.path, kind, found[kind])
    if group["q"] != list(range(asked.z.heads)):
        raise refusal(
            module, f"heads of {asked.path} share queries, or a norm or a bottleneck goes over all of them"
        )
    if group["k"] != group["v"]:
        raise refusal(module, f"heads of {asked.path} share keys and not values")
    if heads["q"].columns.shape[1] != heads["k"].columns.shape[1]:
        raise refusal(module, f"queries and keys of {asked.path} differ in size: a gate may be among them")
    taken = [(h.path, c) for h in heads.values() for c in h.columns.flatten().tolist()]
    if len(set(taken)) < len(taken):
        raise refusal(module, f"queries, keys and values of {asked.path} share numbers")
    return heads, tuple(group["k"])


def _columns(module: nn.Module, path: str, kind: str, felt: Sequence[Felt]) -> tuple[Heads, list[int]]:
    """The distinct sets of columns in order, and each query head's."""
    sets: list[tuple[str, tuple[int, ...]]] = []
    group = []
    for one in felt:
        names = [name for name, columns in one.items() if columns.any()]
        if len(names) != 1:
            raise refusal(module, f"what a head of {path} reads cannot be told apart into q, k and v")
        mine = (names[0], tuple(one[names[0]].nonzero()[:, 0].tolist()))
        if mine not in sets:
            sets.append(mine)
        group.append(sets.index(mine))
    paths, sizes = {name for name, _ in sets}, {len(columns) for _, columns in sets}
    flat = [column for _, columns in sets for column in columns]
    if len(paths) > 1 or len(sizes) > 1 or len(set(flat)) < len(flat):
        raise refusal(module, f"heads of {path} mix their {kind}")
    return Heads(sets[0][0], torch.tensor([list(columns) for _, columns in sets])), group


def _feels(module: nn.Module, asked: Sequence[Asked], length: int) -> list[list[Felt]]:
    """Of each block, of each head: what its output at the last position feels."""
    draw = torch.Generator().manual_seed(0)
    leaves: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def replace(name: str) -> Any:
        def give(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            leaf = torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output)
            leaves[name] = leaf.requires_grad_()
            return leaf.clone()

        return give

    def keep(block: Asked) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = first_argument(args, kwargs)
            assert value is not None
            seen[block.path] = value.view(1, length, block.z.heads, -1)[0, -1]

        return note

    handles = [
        module.get_submodule(name).register_forward_hook(replace(name))
        for block in asked
        for name in block.maps
    ]
    handles += [
        module.get_submodule(block.z.path).register_forward_pre_hook(keep(block), with_kwargs=True)
        for block in asked
    ]
    with torch.inference_mode(False), torch.enable_grad():
        with hooked(handles):
            trial(module, length)
        felt: list[list[Felt]] = [[] for _ in asked]
        for head in range(max(block.z.heads for block in asked)):  # leaves cut the blocks off each other
            here = [block for block in asked if head < block.z.heads]
            total = torch.stack([_reading(seen[block.path][head], draw) for block in here]).sum()
            flows = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
            flow = dict(zip(leaves, flows, strict=True))
            for block, mine in zip(asked, felt, strict=True):
                if block in here:
                    mine.append(_over(block, flow, leaves))
    return felt


def _reading(value: Tensor, draw: torch.Generator) -> Tensor:
    return (value * torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value)).sum()


def _over(block: Asked, flow: Mapping[str, Tensor | None], leaves: dict[str, Tensor]) -> Felt:
    """What stands out of rounding."""
    found = {
        name: torch.zeros_like(leaves[name][0]) if (one := flow[name]) is None else one[0].abs()
        for name in block.maps
    }
    largest = max((float(one.max()) for one in found.values()), default=0.0)
    return {name: (one > _FELT * largest).cpu() for name, one in found.items()}
