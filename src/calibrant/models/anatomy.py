"""Find a model's blocks, and the modules between the last one and the logits, by tracing one forward pass.

Families name their parts as they like, so nothing is looked up by name. A pass over a few ids is watched by
hooks: the blocks are the modules of the shallowest ``ModuleList`` that run once each, in order; the tail is
what runs after the last of them. The tail is believed only where it gives the model's own logits, up to a
factor or a soft cap c * tanh(x / c) that the config names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.models.model_facts import (
    FOREIGN,
    accepted,
    facts,
    first_tensor,
    muted,
    sample_ids,
    unembedding,
)

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of the largest logit; half precision: 2 %
_IDLE = (nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Anatomy:
    """Module paths of one model."""

    blocks: tuple[str, ...] = ()
    """The blocks, in order; () where they were not found."""
    tail: tuple[str, ...] = ()
    """Modules that lead, one after the other, from the last block's output to the logits."""
    scale: float = 1.0
    """Factor of the logits."""
    cap: float | None = None
    """c of a soft cap of the logits, after the factor."""
    reason: str = ""
    """Why there is no way from the residual stream to the logits; "" where there is one."""

    def unembed(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Logits (..., V) of residual-stream vectors (..., D)."""
        for path in self.tail:
            hidden = module.get_submodule(path)(hidden)
        return _scaled(hidden, self.scale, self.cap)

    def final(self, module: nn.Module) -> str:
        """Path of the module whose output the unembedding reads; "" where that is the stream itself."""
        if len(self.tail) < 2 or module.get_submodule(self.tail[-1]) is not unembedding(module):
            return ""
        working = [path for path in self.tail[:-1] if not isinstance(module.get_submodule(path), _IDLE)]
        return working[-1] if working else ""


@dataclass
class _Call:
    """One run of one module."""

    path: str
    begins: int
    ends: int = -1
    output: Tensor | None = None


def anatomy(module: nn.Module) -> Anatomy:
    """What was seen in ``module``, a causal language model; looked for once, shared with its copies."""
    known = facts(module)
    if "anatomy" not in known:
        with muted(module), torch.no_grad():
            try:
                known["anatomy"] = _look(module)
            except FOREIGN as error:
                message = " ".join(f"{type(error).__name__}: {error}".split())[:160]
                known["anatomy"] = Anatomy(reason=f"it cannot read a row of ids ({message})")
    result: Anatomy = known["anatomy"]
    return result


def _look(module: nn.Module) -> Anatomy:
    model: Any = module
    ids = torch.tensor([sample_ids(module, 6)], device=next(module.parameters()).device)
    calls, clock = list[_Call](), count()
    handles = [
        handle
        for path, child in module.named_modules()
        if path
        for handle in (
            child.register_forward_pre_hook(partial(_begin, calls, clock, path)),
            child.register_forward_hook(partial(_end, calls, clock, path)),
        )
    ]
    try:
        logits: Tensor = model(input_ids=ids, **accepted(module, use_cache=False)).logits
    finally:
        for handle in handles:
            handle.remove()
    blocks = _blocks(module, calls)
    if not blocks:
        return Anatomy(reason="no list of blocks that run once each, in order, was found")
    last = blocks[-1]
    after = [call for call in calls if call.begins > last.ends]
    tail = [c.path for c in after if not any(o.begins < c.begins and c.ends < o.ends for o in after)]
    result = Anatomy(tuple(call.path for call in blocks), tuple(tail))
    try:
        return _fitted(module, result, last.output, logits)
    except FOREIGN:
        return replace(result, reason="what runs after its last block is no chain of modules")


def _begin(calls: list[_Call], clock: Iterator[int], path: str, *_: Any) -> None:
    calls.append(_Call(path, next(clock)))


def _end(calls: list[_Call], clock: Iterator[int], path: str, _: nn.Module, __: Any, output: Any) -> None:
    call = next(call for call in reversed(calls) if call.path == path and call.ends < 0)
    call.ends = next(clock)
    call.output = first_tensor(output)


def _blocks(module: nn.Module, calls: list[_Call]) -> list[_Call]:
    """Calls of the shallowest list whose modules ran once each, one after the other, over the stream."""
    runs: dict[str, list[_Call]] = {}
    for call in calls:
        runs.setdefault(call.path, []).append(call)
    candidates = []
    for path, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child):
            some = [runs.get(f"{path}.{i}", []) for i in range(len(child))]
            if all(len(run) == 1 for run in some) and _in_order([run[0] for run in some]):
                candidates.append((path.count("."), -len(child), [run[0] for run in some]))
    return min(candidates, key=lambda entry: entry[:2])[2] if candidates else []


def _in_order(run: list[_Call]) -> bool:
    shapes = {tuple(call.output.shape) if call.output is not None else () for call in run}
    apart = all(one.ends < two.begins for one, two in pairwise(run))
    return apart and len(shapes) == 1 and len(next(iter(shapes))) == 3


def _fitted(module: nn.Module, found: Anatomy, stream: Tensor | None, logits: Tensor) -> Anatomy:
    """``found`` with the factor and cap under which it gives the model's logits best, if it does at all."""
    assert stream is not None  # a block is one by its output
    plain = found.unembed(module, stream)
    bound = _TOLERANCE.get(logits.dtype, 0.02) * float(logits.abs().max())
    tried = [(float((_scaled(plain, s, c) - logits).abs().max()), s, c) for s, c in _forms(module.config)]
    error, scale, cap = min(tried, key=lambda entry: entry[0])
    if not error <= bound:
        return replace(found, reason="what follows its last block does not give its own logits")
    return replace(found, scale=scale, cap=cap)


def _forms(config: Any) -> Iterator[tuple[float, float | None]]:
    """Factors and caps that the config names, plain last: the first of equally good ones is taken."""
    named = {**config.to_dict(), **{k: getattr(config, k, None) for k in ("logit_scale", "logits_scaling")}}
    numbers = {key: float(v) for key, v in named.items() if type(v) in (int, float) and v > 0}
    scales = [v for key, v in numbers.items() if "scal" in key or "multiplier" in key]
    caps = [v for key, v in numbers.items() if "cap" in key]
    for scale in dict.fromkeys([1.0, *scales, *(1 / v for v in scales)]):
        yield from ((scale, cap) for cap in caps)
        yield scale, None


def _scaled(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)
