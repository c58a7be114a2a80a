"""Run a model from one of its blocks on, and only some of its logits, by its own code.

The blocks below are asked as always, and give what they were handed; the last of them gives the stream of an
earlier run. So masks, rotary angles and caches stay the family's own. Whether that is right for a family is
not assumed: ``sweep`` compares.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import DynamicCache

from calibrant.models.batching import memory_name
from calibrant.models.hooks import with_first
from calibrant.models.model_facts import accepted, first_tensor, unembedding


@contextmanager
def resumed(module: nn.Module, outputs: Mapping[str, Any], stream: Tensor | None) -> Iterator[None]:
    """A block in which some blocks of the model do not run, and the last of them gives ``stream`` (R, T, D).

    Nor do hooks that stand on them: the stream is what they left. ``outputs``: path of each -> what it gave
    in an earlier run, whose form is kept.
    """
    skipped = [module.get_submodule(path) for path in outputs]
    own = [{name: vars(block)[name] for name in _REPLACED if name in vars(block)} for block in skipped]
    try:
        for block, output in zip(skipped, outputs.values(), strict=True):
            given = stream if block is skipped[-1] else None
            vars(block).update(
                forward=partial(_give, output, given),
                _forward_hooks=OrderedDict(),
                _forward_pre_hooks=OrderedDict(),
            )
        yield
    finally:
        for block, before in zip(skipped, own, strict=True):
            vars(block).pop("forward", None)
            vars(block).update(before)


_REPLACED = ("forward", "_forward_hooks", "_forward_pre_hooks")


def _give(output: Any, stream: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    handed = first_tensor((*args, *kwargs.values()))
    value = stream if stream is not None else handed
    assert value is not None  # a block is one by its stream
    return with_first(output, value)


KeysAndValues = list[tuple[Tensor, Tensor]]
"""(B, heads, T, d) of each layer."""


class Past:
    """Keys and values of earlier positions, for one forward pass, which adds to them."""

    def __init__(
        self,
        kept: KeysAndValues | None = None,
        examples: Tensor | None = None,
        length: int = 0,
        skipped: int = 0,
    ) -> None:
        """Empty, or the first ``length`` positions of ``examples`` (R,) of what a run kept.

        Of the first ``skipped`` layers, which do not run, one row stands for all: only its length is asked.
        """
        rows = [slice(1) if layer < skipped else examples for layer in range(len(kept or []))]
        self.cache = DynamicCache(
            [
                (k[some, :, :length], v[some, :, :length])
                for some, (k, v) in zip(rows, kept or [], strict=True)
            ]
        )
        """Of full layers: a sliding window is the mask's business."""


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
    if type(head) is not nn.Linear or "forward" in vars(head) or head._forward_hooks:
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
