"""Run a model from one of its blocks on, and only some of its logits, by its own code.

The blocks below are asked as always, and give what they were handed; the last of them gives the stream of an
earlier run. So masks, rotary angles and caches stay the family's own. Whether that is right for a family is
not assumed: ``sweep`` compares.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from calibrant.models.batching import memory_name
from calibrant.models.hooks import with_first
from calibrant.models.model_facts import accepted, first_tensor, unembedding


@contextmanager
def resumed(
    module: nn.Module, blocks: Sequence[str], outputs: Mapping[str, Any], entering: Mapping[int, Tensor]
) -> Iterator[None]:
    """A block in which rows (r, T, D) enter the stream where they begin, below the rows that run already.

    Blocks before the first of them do not run, nor do hooks that stand on them: the stream is what they left.
    Nothing ``entering``: all run.

    Args:
        module: the model.
        blocks: path of each of its blocks.
        outputs: path of each -> what it gave in an earlier run, whose form is kept.
        entering: number of the block that rows enter -> their stream.
    """
    start = min(entering, default=0)
    skipped = [module.get_submodule(path) for path in blocks[:start]]
    own = [{name: vars(block)[name] for name in _REPLACED if name in vars(block)} for block in skipped]
    handles = []
    try:
        for path, block in zip(blocks, skipped, strict=False):
            given = entering[start] if block is skipped[-1] else None
            vars(block).update(
                forward=partial(_give, outputs[path], given),
                _forward_hooks=OrderedDict(),
                _forward_pre_hooks=OrderedDict(),
            )
        for number, stream in entering.items():
            if number == 0:
                enter = partial(_begin, stream)
                first = module.get_submodule(blocks[0])
                handles.append(first.register_forward_pre_hook(enter, with_kwargs=True))
            elif number > start:
                below = module.get_submodule(blocks[number - 1])
                handles.append(below.register_forward_hook(partial(_join, stream)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block, before in zip(skipped, own, strict=True):
            vars(block).pop("forward", None)
            vars(block).update(before)


_REPLACED = ("forward", "_forward_hooks", "_forward_pre_hooks")


def _give(output: Any, stream: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    handed = first_tensor((*args, *kwargs.values()))
    value = stream if stream is not None else handed
    assert value is not None  # a block is one by its stream
    return with_first(output, value)


def _begin(stream: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    return first_changed((args, kwargs), lambda _: stream)


def _join(stream: Tensor, _: nn.Module, __: Any, output: Any) -> Any:
    running = first_tensor(output)
    assert running is not None  # a block is one by its stream
    return with_first(output, torch.cat([running, stream]))


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with."""


def first_changed(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    """The same call, its first tensor changed."""
    args, kwargs = call
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: change(kwargs[name])}


KeysAndValues = list[tuple[Tensor, Tensor]]
"""(B, heads, T, d) of each layer."""


class _Lent(DynamicLayer):  # type: ignore[no-untyped-call]
    """Lends its keys and values to one pass and keeps none of those that the pass adds."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys: Any = self.keys
        values: Any = self.values
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class Past:
    """Keys and values of earlier positions, for one forward pass, which adds to them."""

    def __init__(
        self, kept: KeysAndValues | None = None, rows: Sequence[Tensor] = (), length: int = 0
    ) -> None:
        """Empty, or the first ``length`` positions of what a run kept.

        ``rows``: of each layer, the examples whose rows it runs; of a layer that runs none, one stands for
        all, for its length may be asked.
        """
        self.cache = DynamicCache()
        """Of full layers: a sliding window is the mask's business."""
        for (keys, values), some in zip(kept or [], rows, strict=False):
            layer = _Lent()  # type: ignore[no-untyped-call]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = _of(keys[:, :, :length], some), _of(values[:, :, :length], some)
            self.cache.layers.append(layer)


def _of(kept: Tensor, some: Tensor) -> Tensor:
    """Rows of examples, without a copy where there is only one."""
    if len(some) == 0 or len(kept) == 1:
        return kept[:1].expand(max(1, len(some)), *kept.shape[1:])
    return kept[some]


def joined(runs: Sequence[Past]) -> KeysAndValues:
    """What several passes kept, one after the other."""
    layers: Any = zip(*(run.cache.layers for run in runs), strict=True)
    return [
        (torch.cat([part.keys for part in parts]), torch.cat([part.values for part in parts]))
        for parts in layers
    ]


@contextmanager
def only_columns(module: nn.Module, columns: Tensor | None) -> Iterator[bool]:
    """A block in which the unembedding gives the logits of these tokens alone; False where it cannot.

    All rows are unembedded in one product: of a part of the positions, PyTorch makes one a row.
    """
    head = unembedding(module)
    if (
        type(head) is not nn.Linear
        or "forward" in vars(head)
        or head._forward_hooks
        or head._forward_pre_hooks
        or module._forward_hooks
    ):
        yield False
        return
    chosen = slice(None) if columns is None else columns
    weight, bias = head.weight[chosen], None if head.bias is None else head.bias[chosen]
    vars(head)["forward"] = lambda hidden: linear(hidden.contiguous(), weight, bias)
    try:
        yield columns is not None
    finally:
        vars(head).pop("forward", None)


def last_logits(
    module: nn.Module, ids: Tensor, columns: Tensor | None, first: int = 0, past: Past | None = None
) -> Tensor:
    """Logits of the last position: (R, V), or (R, len(columns)) of these tokens alone; float32 or float64.

    ``ids`` (R, T) are whole prompts; those before ``first`` are in ``past`` and do not run.
    """
    memory = {} if past is None else {memory_name(module): past.cache}
    mask = torch.ones_like(ids)
    options = accepted(module, attention_mask=mask, logits_to_keep=1, use_cache=bool(memory), **memory)
    model: Any = module
    with only_columns(module, columns) as narrow:
        logits: Tensor = model(input_ids=ids[:, first:], **options).logits[:, -1]
    if columns is not None and not narrow:
        logits = logits[:, columns.to(logits.device)]
    return logits if logits.dtype == torch.float64 else logits.float()
