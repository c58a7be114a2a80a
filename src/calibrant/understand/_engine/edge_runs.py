"""Runs in which chosen edges carry what their writers wrote in another run: exact patching, and circuits.

A mask (U, R) says which edges are replaced. A reader is then given

    stream + sum over its replaced edges of a_u(other) - a_u(here),

where a_u(here) is what the writer writes in this very run, after all that was replaced before it. One edge
replaced is a patch of that edge; all edges outside a circuit replaced is the circuit. Masks are rows of a
batch, so that many circuits go through the model together. Queries, keys and values that a block computes
are replaced by those of the readers' own inputs; all else is the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.core import NumericalError, OpenLM
from calibrant.understand._engine.columns import KINDS, hooked
from calibrant.understand._engine.edge_scores import rows_at_once
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import last_logits
from calibrant.understand._engine.stream import added, before, by_head, watched, written
from calibrant.understand._engine.wiring import weight_of

_TOKENS = {"cpu": 512}  # in one forward pass; elsewhere 8,192
Other = Callable[[Tensor], Tensor]
"""Examples (B,) -> (B, U, T, D) what every writer wrote in the other run."""


def wrote(model: OpenLM, graph: Graph, ids: Tensor) -> Other:
    """What every writer wrote in a run over ``ids`` (N, T)."""

    def run(examples: Tensor) -> Tensor:
        with watched(model.module, graph) as seen:
            last_logits(model.module, ids[examples], None)
        return written(model.module, graph, seen)

    return run


def mean_wrote(model: OpenLM, graph: Graph, ids: Tensor) -> Other:
    """The mean of that over all rows of ``ids``, position by position."""
    total, one = None, wrote(model, graph, ids)
    with torch.inference_mode():
        for examples in torch.split(torch.arange(len(ids)), rows_at_once(model, graph, ids.shape[1])):
            part = one(examples).sum(0, keepdim=True)
            total = part if total is None else total + part
    assert total is not None
    mean = total / len(ids)
    return lambda examples: mean.expand(len(examples), *mean.shape[1:])


def masked(
    model: OpenLM,
    graph: Graph,
    ids: Tensor,
    other: Other,
    masks: Tensor,
    read: Reader,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """(M, N) float64: the reading of every example under every mask.

    Args:
        model: local weights.
        graph: of the model.
        ids: (N, T) token ids of the run.
        other: what replaced edges carry.
        masks: (M, E) bool, the edges that are replaced.
        read: what is read off the last position's logits.
        progress: called with rows done and rows in all.

    Raises:
        CapabilityError: a model in training mode.
        NumericalError: a reading is NaN or infinite.
    """
    check_still(model.module)
    values = torch.full((len(masks), len(ids)), torch.nan, dtype=torch.float64)
    most = max(
        1,
        min(
            rows_at_once(model, graph, ids.shape[1]) // 2, _TOKENS.get(ids.device.type, 8192) // ids.shape[1]
        ),
    )
    together = max(1, min(len(ids), most))
    done = 0
    with torch.inference_mode():
        for examples in torch.split(torch.arange(len(ids)), together):
            theirs = other(examples)
            for some in torch.split(torch.arange(len(masks)), max(1, most // len(examples))):
                rows = torch.cartesian_prod(some, torch.arange(len(examples)))
                run = _Mixed(
                    model.module,
                    graph,
                    _tables(graph, masks[some]),
                    rows[:, 0] - int(some[0]),
                    theirs[rows[:, 1]],
                )
                which = examples[rows[:, 1]]
                with hooked(list(run.handles())):
                    logits = last_logits(model.module, ids[which], read.columns)
                found = read(logits, which.to(logits.device)).double().cpu()
                values[rows[:, 0], which] = found
                done += len(rows)
                if progress is not None:
                    progress(done, values.numel())
    if not values.isfinite().all():
        raise NumericalError(
            "a run with replaced edges gives NaN or infinite logits", hint="load the model in float32"
        )
    return values


def _tables(graph: Graph, masks: Tensor) -> Tensor:
    """(M, R, U) from (M, E)."""
    writers, readers = graph.index
    table = torch.zeros(len(masks), len(graph.readers), len(graph.writers), dtype=torch.bool)
    table[:, readers, writers] = masks.cpu()
    return table


@dataclass
class _Mixed:
    """One pass under way; rows (Q,) each have a mask."""

    module: nn.Module
    graph: Graph
    tables: Tensor
    """(M, R, U)."""
    mask: Tensor
    """(Q,) each row's."""
    other: Tensor
    """(Q, U, T, D)."""
    apart: Tensor = field(init=False)
    """(Q, U, T, D) the other run's less this one's, as far as the pass has come."""
    stream: Tensor = field(init=False)
    """(Q, T, D) before the present block."""
    z: Tensor = field(init=False)
    projected: Tensor = field(init=False)
    replaced: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Map -> columns and what stands there instead."""

    def __post_init__(self) -> None:
        self.apart = torch.empty_like(self.other)
        self.active = self.tables.any(2).any(0)
        self.weights = self.tables[self.mask].to(self.other)

    def handles(self) -> Iterator[Any]:
        """Hooks on all that is replaced or looked at."""
        module = self.module
        for number, layer in enumerate(self.graph.layers):
            yield before(module, layer.path, partial(self._enter, number))
            for path in dict.fromkeys(heads.path for heads in layer.heads.values()):
                yield module.get_submodule(path).register_forward_hook(partial(self._project, path))
            yield before(module, layer.z.path, self._keep_z)
            yield module.get_submodule(layer.z.path).register_forward_hook(self._keep_projected)
            yield added(module, layer.attention, partial(self._heads_wrote, number))
            yield before(module, layer.entry, partial(self._mlp, number))
            yield added(module, layer.mlp, partial(self._mlp_wrote, number))
        yield before(module, self.graph.tail, self._leave)

    def _given(self, stream: Tensor, readers: Sequence[int]) -> Tensor:
        """(Q, V, T, D) what each of these readers of one block is given."""
        most = self.graph.readers[readers[-1]].upstream
        change = self.weights[:, list(readers), :most] @ self.apart[:, :most].flatten(2)
        return stream[:, None] + change.view(len(stream), len(readers), *stream.shape[1:])

    def _enter(self, number: int, value: Tensor) -> Tensor:
        self.stream = value
        if number == 0:
            self.apart[:, 0] = self.other[:, 0] - value
        self.replaced = {}
        layer, readers = self.graph.layers[number], self.graph.readers
        chosen = [r for r in self.graph.numbers(number) if readers[r].kind in KINDS and self.active[r]]
        if not chosen:
            return value
        given = self._given(value, chosen)
        normed = self.module.get_submodule(layer.norm).forward(given) if layer.norm else given
        for kind in KINDS:
            at = [i for i, r in enumerate(chosen) if readers[r].kind == kind]
            if not at:
                continue
            path, columns = layer.heads[kind]
            mine = columns[[readers[chosen[i]].head for i in at]]
            weight, bias = weight_of(self.module.get_submodule(path))
            made = torch.einsum("qvtd,dve->qtve", normed[:, at], weight[:, mine])
            made = made if bias is None else made + bias[mine]
            self.replaced.setdefault(path, []).append((mine.flatten(), made.flatten(2)))
        return value

    def _project(self, path: str, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        if path not in self.replaced:
            return None
        output = output.clone()
        for columns, made in self.replaced[path]:
            output[..., columns.to(output.device)] = made.reshape(*output.shape[:-1], -1)
        return output

    def _keep_z(self, value: Tensor) -> Tensor:
        self.z = value.view(*value.shape[:-1], self.graph.heads, -1)
        return value

    def _keep_projected(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.projected = output

    def _heads_wrote(self, number: int, value: Tensor) -> None:
        at, layer = self.graph.first(number), self.graph.layers[number]
        here = slice(at, at + self.graph.heads)
        self.apart[:, here] = self.other[:, here] - by_head(self.module, layer, self.z, self.projected, value)

    def _mlp(self, number: int, value: Tensor) -> Tensor:
        reader = self.graph.numbers(number)[-1]
        if not self.active[reader]:
            return value
        layer = self.graph.layers[number]
        if layer.shared:
            given = self._given(self.stream, [reader])[:, 0]
            norm = self.module.get_submodule(layer.norm)
            changed: Tensor = norm.forward(given)
        else:
            changed = self._given(value.reshape_as(self.stream), [reader])[:, 0]
        return changed.reshape_as(value)

    def _mlp_wrote(self, number: int, value: Tensor) -> None:
        at = self.graph.first(number) + self.graph.heads
        self.apart[:, at] = self.other[:, at] - value.reshape_as(self.stream)

    def _leave(self, value: Tensor) -> Tensor:
        reader = len(self.graph.readers) - 1
        return self._given(value, [reader])[:, 0] if self.active[reader] else value
