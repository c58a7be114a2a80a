"""Results of probes of a model, cached once for a model and its copies.

There is no list of families. A probe runs the model on a few ids and compares: how rows may be batched
(``batching.py``), whether replies may share a row (``branches.py``), where the blocks are (``anatomy.py``),
whether the KV cache can be shared (``attack/suffix/scorer.py``). This file holds what all probes need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from calibrant.core.errors import CapabilityError

FOREIGN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What families raise where they cannot do what is tried."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest value; half precision: 5 %
_FACTS: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
_MUTED: ContextVar[bool] = ContextVar("muted", default=False)


def facts(module: nn.Module) -> dict[str, Any]:
    """What probes have found out about ``module`` or one of its copies, by name."""
    return _FACTS.setdefault(module, {})


def share_facts(twin: nn.Module, module: nn.Module) -> None:
    """Let ``twin``, a copy of ``module``, share the probe results of both."""
    _FACTS[twin] = facts(module)


@contextmanager
def muted(module: nn.Module) -> Iterator[None]:
    """A block for a probe of ``module``: edits and traces do not see its passes, and nothing is rounded."""
    token, kind = _MUTED.set(True), next(module.parameters()).device.type
    try:
        with torch.autocast(kind, enabled=False):  # its noise would look like a leak
            yield
    finally:
        _MUTED.reset(token)


def is_muted() -> bool:
    """Whether a probe is at work; see ``muted``."""
    return _MUTED.get()


def accepted(module: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of ``options`` that the module's forward names: not every family takes all of them."""
    known = _parameters(type(module).forward)
    return {name: value for name, value in options.items() if name in known}


def close(one: Tensor, two: Tensor) -> bool:
    """Whether two readings agree up to rounding; NaN agrees with NaN."""
    scale = float(two.abs().nan_to_num(0.0, 0.0, 0.0).max()) + 1e-9
    near = (one - two).abs() <= _TOLERANCE.get(two.dtype, 0.05) * scale
    return bool((near | (one == two) | (one.isnan() & two.isnan())).all())


def sample_ids(module: nn.Module, count: int) -> list[int]:
    """A few ids of the vocabulary, the same for every model of its size."""
    config: Any = module.config
    return [(7 * i + 3) % int(config.vocab_size) for i in range(count)]


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a module's output is about: itself, or what stands first; None for anything else."""
    parts = tuple(output.values()) if isinstance(output, Mapping) else output  # a ModelOutput is a mapping
    first = next(iter(parts), None) if isinstance(parts, (tuple, list)) else parts
    return first if isinstance(first, Tensor) else None


def unembedding(module: nn.Module) -> nn.Module | None:
    """The layer from hidden states to logits, as the family names it; None where it names none."""
    layer: nn.Module | None = getattr(module, "get_output_embeddings", lambda: None)()
    return layer


def not_causal(module: nn.Module) -> CapabilityError:
    """What to raise where the tokens that follow change what the model says at a token."""
    return CapabilityError(
        f"{type(module).__name__} as configured is no left-to-right language model: "
        "what it says at a token changes with the tokens that follow",
        hint="take a decoder; an encoder has to be trained as one, with is_decoder in its config",
    )


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
