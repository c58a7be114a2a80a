"""What is found out about a model by trying it: kept here, once for a model and its copies.

Families are told apart by no list. A probe runs the model on a few ids and compares: how rows may be batched
(``batching.py``), whether replies may share a row (``branches.py``), where the blocks are (``anatomy.py``),
whether keys and values can be lent (``candidates.py``). This file holds what all probes need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

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
    """Let ``twin``, a copy of ``module``, share what is or will be found out about either."""
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


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
