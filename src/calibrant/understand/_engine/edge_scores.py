"""Edge attribution: what every edge of the graph does to a reading, by gradients, for all edges at once.

    score(u -> v) = (a_u(clean) - a_u(corrupt)) . dm/d(input of v)

The gradient is taken at points between the corrupted and the clean prompt: with the stream before the first
block at corrupt + point * (clean - corrupt). At 0 this is EAP in its denoising form (Nanda 2023; Syed et al.
2310.10348), at 1 in its noising form; the mean over points is EAP-IG (Hanna et al. 2403.17806).

Two forward passes and one backward pass a point. The input of a reader is never made: its gradient by the
stream is the gradient by its own columns of the projection, taken back through the norm. Writers and readers
meet in one product a block, so no edge is an object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrant.core import NumericalError, OpenLM
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import last_logits
from calibrant.understand._engine.stream import Seen, flows_of, reader_flows, watched, written
from calibrant.understand._engine.wiring import weight_of

_BYTES = 2**28  # of what the writers of one chunk of prompts wrote


@dataclass(frozen=True)
class EdgeScores:
    """What each edge does to the reading of each pair, by gradients."""

    values: Tensor
    """(P, N, E) in the reading's unit: at each point."""
    clean: Tensor
    """(N,) float64: the reading of the clean prompt."""
    corrupt: Tensor
    """(N,) float64: of the corrupted one."""


def midpoints(steps: int) -> tuple[float, ...]:
    """Points of the midpoint rule, neither end among them: exact where the gradient is a straight line."""
    return tuple((step + 0.5) / steps for step in range(steps))


def edge_scores(
    model: OpenLM,
    graph: Graph,
    clean: Tensor,
    corrupt: Tensor,
    read: Reader,
    points: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
) -> EdgeScores:
    """Scores of all edges at each point.

    Args:
        model: local weights, in float32 or float64.
        graph: of the model.
        clean: (N, T) token ids.
        corrupt: (N, T) token ids.
        read: what is read off the last position's logits.
        points: 0 is the corrupted prompt, 1 the clean one.
        progress: called with prompts done and prompts in all.

    Raises:
        CapabilityError: a model in training mode, or with weights that were made in inference mode.
        NumericalError: a score is NaN or infinite.
    """
    check_still(model.module, gradients=True)
    rows, done = rows_at_once(model, graph, clean.shape[1]), 0
    parts = []
    with torch.inference_mode(False):
        for examples in torch.split(torch.arange(len(clean)), rows):
            parts.append(_chunk(model, graph, clean[examples], corrupt[examples], read, points, examples))
            done += len(examples)
            if progress is not None:
                progress(done, len(clean))
    values, right, wrong = (
        torch.cat(list(one), -2 if at == 0 else 0) for at, one in enumerate(zip(*parts, strict=True))
    )
    if not values.isfinite().all():
        raise NumericalError("the score of an edge is NaN or infinite", hint="load the model in float32")
    return EdgeScores(values, right, wrong)


def rows_at_once(model: OpenLM, graph: Graph, length: int) -> int:
    """Prompts of a length whose writers' outputs fit into a chunk."""
    weight = weight_of(model.module.get_submodule(graph.layers[0].z.path))[0]
    return max(1, _BYTES // (len(graph.writers) * length * weight.shape[1] * weight.element_size()))


def _chunk(
    model: OpenLM,
    graph: Graph,
    clean: Tensor,
    corrupt: Tensor,
    read: Reader,
    points: Sequence[float],
    examples: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (P, B, E) of some pairs, and their readings."""
    passes = _Passes(model, graph, read, examples)
    ends: dict[float, tuple[Seen, Tensor]] = {}
    for end, ids in ((0.0, corrupt), (1.0, clean)):
        ends[end] = passes.run(ids, None, gradients=end in points)
    wrote = {end: passes.written(seen) for end, (seen, _) in ends.items()}
    difference = wrote[1.0] - wrote[0.0]
    low, high = (ends[end][0].stream[0].detach() for end in (0.0, 1.0))
    tables = []
    for point in points:
        seen, reading = ends.get(point) or passes.run(corrupt, low + point * (high - low), gradients=True)
        tables.append(passes.scores(seen, reading, difference))
    writers, readers = graph.index
    values = torch.stack(tables)[:, :, writers, readers].cpu()
    right, wrong = (ends[end][1].detach().double().cpu() for end in (1.0, 0.0))
    return values, right, wrong


@dataclass(frozen=True)
class _Passes:
    """Passes over some prompts."""

    model: OpenLM
    graph: Graph
    read: Reader
    examples: Tensor

    def run(self, ids: Tensor, start: Tensor | None, *, gradients: bool) -> tuple[Seen, Tensor]:
        """What a pass shows, and its readings (B,)."""
        module = self.model.module
        with torch.set_grad_enabled(gradients), watched(module, self.graph, start) as seen:
            return seen, self.read(last_logits(module, ids.clone(), self.read.columns), self.examples)

    def written(self, seen: Seen) -> Tensor:
        with torch.no_grad():
            return written(self.model.module, self.graph, seen)

    def scores(self, seen: Seen, reading: Tensor, difference: Tensor) -> Tensor:
        """(B, U, R): every writer's difference along every reader's gradient."""
        graph, module = self.graph, self.model.module
        with torch.enable_grad():
            flows = flows_of(reading.sum(), seen)
        with torch.no_grad():
            rows, count = difference.shape[:2]
            table = difference.new_zeros(rows, count, len(graph.readers))
            flat = difference.flatten(2)
            for layer in range(len(graph.layers)):
                felt = reader_flows(module, graph, seen, flows, layer).flatten(2)
                numbers = graph.numbers(layer)
                most = graph.readers[numbers[-1]].upstream
                table[:, :most, numbers] = flat[:, :most] @ felt.permute(1, 2, 0)
            table[:, :, -1] = torch.einsum("buk,bk->bu", flat, flows.last.flatten(1))
        return table
