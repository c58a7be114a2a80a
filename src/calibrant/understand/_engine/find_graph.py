"""Find a model's graph, and believe it only where the stream adds up, forwards and backwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibrant.core import NumericalError
from calibrant.models.anatomy import anatomy
from calibrant.models.batching import batching
from calibrant.models.model_facts import FOREIGN, facts, muted, sample_ids
from calibrant.understand._engine.columns import TOKENS, refusal, trial
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.skip import last_logits
from calibrant.understand._engine.stream import flows_of, reader_flows, watched, written
from calibrant.understand._engine.wiring import weight_of, wirings

_ADDS_UP = 1e-3  # of the largest value: norms of many families work in float32 whatever the model is in


def graph_of(module: nn.Module) -> Graph:
    """The graph of a causal language model; looked for once, shared with its copies, and checked each time.

    Raises:
        CapabilityError: the stream of this family is not a sum of such writers, or the model is in half
            precision, in training mode, not causal, or was made in inference mode.
        NumericalError: its logits are NaN or infinite.
    """
    check_still(module, gradients=True)
    batching(module)  # raises where the model is not causal
    known = facts(module)
    with muted(module), torch.inference_mode(False):
        try:
            graph: Graph = known.get("edges") or _look(module)
            _check(module, graph)
        except FOREIGN as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise refusal(module, f"its parts do not fit together ({said})") from error
    known["edges"] = graph
    return graph


def _look(module: nn.Module) -> Graph:
    with torch.no_grad():
        layers = wirings(module)
    return Graph(tuple(layers), anatomy(module).tail[0], layers[0].z.heads)


def _check(module: nn.Module, graph: Graph) -> None:
    """That the stream is the sum of what is written, and its gradient that of what its readers feel.

    Raises:
        CapabilityError: it is not. NumericalError: the model's logits are NaN or infinite.
    """
    with watched(module, graph) as seen, torch.enable_grad():
        logits = trial(module, TOKENS)
        if not logits.isfinite().all():
            raise NumericalError("the model's logits are NaN or infinite", hint="look at its weights")
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        reading = (logits * weights.to(logits)).sum()
        flows = flows_of(reading, seen, again=True)
        felt = torch.autograd.grad(reading, seen.stream)
    with torch.no_grad():
        with watched(module, graph) as last:
            last_logits(module, torch.tensor([sample_ids(module, TOKENS)], device=logits.device), None)
        if last.stream[-1].shape[1] != TOKENS:
            raise refusal(module, f"{graph.tail} behind its last block is given the last position alone")
        all_written = written(module, graph, seen)
        for number, layer in enumerate(graph.layers):
            at = graph.first(number)
            heads = all_written[:, at : at + graph.heads].sum(1)
            if not layer.normed and (bias := weight_of(module.get_submodule(layer.z.path))[1]) is not None:
                heads = heads + bias * layer.attention.scale
            added = heads + all_written[:, at + graph.heads]
            if not _close(seen.stream[number] + added, seen.stream[number + 1]):
                raise refusal(module, f"what heads and MLP of {layer.path} write is not all that it adds")
            sums = reader_flows(module, graph, seen, flows, number).sum(0) + felt[number + 1]
            if not _close(sums, felt[number]):
                raise refusal(module, f"what reads the stream in {layer.path} is not all that feels it")


def _close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= _ADDS_UP * float(other.abs().max())
