"""Runs in which one writer reaches some readers as in another run, on the direct way or through MLPs.

What a sender wrote in the other run is put into the input of the receivers, and of nothing else; from the
receivers on the model runs as it does. On the direct way that is an edge for each receiver (Goldowsky-Dill et
al. 2023, 2304.05969). Through MLPs (Wang et al. 2022, 2211.00593) all heads are first held at what they wrote
in the run, the sender is put in, and MLPs work anew; then the receivers are given what the sender and those
MLPs wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from calibrant.core import OpenLM
from calibrant.models.hooks import Change, captured, edited
from calibrant.understand._engine.edge_runs import Other, masked, wrote
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import last_logits

Told = Callable[[int, int], None]


def path_runs(
    model: OpenLM,
    graph: Graph,
    ids: Tensor,
    other: Tensor,
    senders: Sequence[int],
    receivers: Sequence[int],
    through: bool,
    read: Reader,
    progress: Told | None = None,
) -> Tensor:
    """(S, N) float64: the reading of every example with each sender put into the receivers.

    Args:
        model: local weights.
        graph: of the model.
        ids: (N, T) the run.
        other: (N, T) the run that senders are taken from.
        senders: numbers of writers.
        receivers: numbers of readers.
        through: MLPs between them work anew.
        read: what is read off the last position's logits.
        progress: called with rows done and rows in all.
    """
    if not through:
        return direct_runs(model, graph, ids, other, [[one] for one in senders], receivers, read, progress)
    theirs, found, own = wrote(model, graph, other), [], wrote(model, graph, ids)
    for done, sender in enumerate(senders, 1):
        along = partial(_held, model, graph, ids, own, theirs, sender)
        mask = _mask(graph, [sender], receivers, through)
        found.append(masked(model, graph, ids, along, mask[None], read)[0])
        if progress is not None:
            progress(done * len(ids), len(senders) * len(ids))
    return torch.stack(found)


def direct_runs(
    model: OpenLM,
    graph: Graph,
    ids: Tensor,
    other: Tensor,
    sets: Sequence[Sequence[int]],
    receivers: Sequence[int],
    read: Reader,
    progress: Told | None = None,
) -> Tensor:
    """(S, N) float64: the reading of every example with each set of writers put into the receivers directly.

    Args: as ``path_runs``; the writers of a set are put in together.
    """
    masks = torch.stack([_mask(graph, senders, receivers, False) for senders in sets])
    return masked(model, graph, ids, wrote(model, graph, other), masks, read, progress)


def plain_readings(model: OpenLM, ids: Tensor, read: Reader, rows: int = 64) -> Tensor:
    """(N,) float64: the reading of every example as it is."""
    found = []
    with torch.inference_mode():
        for examples in torch.split(torch.arange(len(ids)), rows):
            logits = last_logits(model.module, ids[examples], read.columns)
            found.append(read(logits, examples.to(logits.device)).double().cpu())
    return torch.cat(found)


def reaches(graph: Graph, sender: int, receivers: Sequence[int]) -> bool:
    """Whether a writer comes before one of the readers."""
    return any(sender < graph.readers[reader].upstream for reader in receivers)


def _mask(graph: Graph, senders: Sequence[int], receivers: Sequence[int], through: bool) -> Tensor:
    """(E,) bool: the edges that carry what was written in the other run."""
    writers, readers = graph.index
    put = torch.isin(writers, torch.tensor(list(senders)))
    if through:
        mlps = torch.tensor([name.startswith("m") for name in graph.writers])
        put = put | (mlps[writers] & (writers > min(senders)))
    return put & torch.isin(readers, torch.tensor(list(receivers)))


def _held(
    model: OpenLM, graph: Graph, ids: Tensor, own: Other, theirs: Other, sender: int, examples: Tensor
) -> Tensor:
    """(B, U, T, D) what is written where heads are held, one sender is the other run's, and MLPs are free."""
    with torch.inference_mode():
        kept, put = own(examples), theirs(examples)[:, sender]
        apart, name = put - kept[:, sender], graph.writers[sender]
        sites = {f"m{layer}": f"blocks.{layer}.hook_mlp_out" for layer in range(len(graph.layers))}
        held = [f"blocks.{layer}.hook_attn_out" for layer in range(len(graph.layers))]
        with captured(model.module, held) as plain:
            last_logits(model.module, ids[examples], torch.zeros(1, dtype=torch.long))
        changes: dict[str, Change] = {site: partial(_instead, plain[site].clone()) for site in held}
        if name == "input":
            changes["blocks.0.hook_resid_pre"] = partial(_instead, put)
        elif name in sites:
            changes[sites[name]] = partial(_instead, put)
        else:
            site = held[_block(name)]
            changes[site] = partial(_instead, plain[site] + apart)
        with edited(model.module, changes), captured(model.module, list(sites.values())) as seen:
            last_logits(model.module, ids[examples], torch.zeros(1, dtype=torch.long))
        return _joined(graph, kept, put, sender, {one: seen[site] for one, site in sites.items()})


def _joined(graph: Graph, kept: Tensor, put: Tensor, sender: int, mlps: Mapping[str, Tensor]) -> Tensor:
    found = kept.clone()
    for at, name in enumerate(graph.writers):
        if name in mlps:
            found[:, at] = mlps[name]
    found[:, sender] = put
    return found


def _block(name: str) -> int:
    """The block of a head, 'a3.h2' -> 3."""
    return int(name.partition(".")[0].removeprefix("a"))


def _instead(value: Tensor, now: Tensor) -> Tensor:
    return value.to(now)
