"""Generation: one batched loop over a Hugging Face module and its own KV cache.

Prompts are left-padded, sorted by length and cut into sub-batches by a token budget; a finished row
leaves its batch, cache rows included. A prompt that occurs K times is read once, and its cache is then
handed to all K. A model that cannot be run so goes a slower way, which it says: ``batching.py``.

Greedy output is that of ``transformers.generate`` with ``do_sample=False``. What an item draws depends on its
own seed and never on its neighbours: each item has one stream of uniform numbers, and a token is the inverse
of the cumulative distribution at the next number. Only the model's own distribution is used: repetition
penalties and the like, which a generation config may ask for, are left out, since they would make the
log-probs those of another model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from calibrant.core.lm import Sampling
from calibrant.models.batching import Batching, advance, batching, select

Stop = Literal["length", "eos", "error"]
_STOPS: tuple[Stop, Stop, Stop] = ("length", "eos", "error")  # index = the code used on the device


@dataclass(frozen=True)
class Request:
    """One prompt: its ids (at least one), how many tokens may follow (at least one), and its seed."""

    ids: Sequence[int]
    room: int
    seed: int


@dataclass(frozen=True)
class Drawn:
    """What followed: ids with the stop token, their log-probs in nats, and why it ended.

    ``stop`` is 'error' when the logits became NaN or infinite; ``ids`` holds what came before.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: Stop


def buckets(costs: Sequence[int], budget: int, keys: Sequence[Hashable] = ()) -> Iterator[list[int]]:
    """Cut indices, sorted by cost, into runs with rows x largest cost <= budget (one row always fits).

    ``keys``: one an index; a run has indices of one key only.
    """
    groups: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        groups.setdefault(keys[index] if keys else None, []).append(index)
    for group in groups.values():
        batch: list[int] = []
        for index in group:
            if batch and (len(batch) + 1) * costs[index] > budget:
                yield batch
                batch = []
            batch.append(index)
        yield batch


def draw(
    module: nn.Module, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int], budget: int
) -> list[Drawn]:
    """Continue every request; results stand in the order of ``requests``.

    ``budget`` bounds the tokens that one sub-batch holds in its cache at the end. What may stand in one batch
    is asked of the model, once: ``batching.py``.

    Raises:
        CapabilityError: the model is no left-to-right language model.
    """
    results: dict[int, Drawn] = {}
    if not requests:
        return []
    how = batching(module)
    costs = [len(r.ids) + r.room for r in requests]
    ways = [how.draws(len(r.ids), cost, i) for i, (r, cost) in enumerate(zip(requests, costs, strict=True))]
    for batch in buckets(costs, budget, ways):
        some, taken = [requests[i] for i in batch], replace(how, way=ways[batch[0]][0])
        drawn = _draw_batch(module, taken, some, sampling, stop_ids)
        results.update(zip(batch, drawn, strict=True))
    return [results[i] for i in range(len(requests))]


@torch.inference_mode()
def follow(
    module: nn.Module, request: Request, sampling: Sampling, stop_ids: Sequence[int]
) -> Iterator[Drawn]:
    """``draw`` for one request, token by token: what has followed so far; the last is what ``draw`` gives."""
    how = batching(module)
    how = replace(how, way=how.draws(len(request.ids), len(request.ids) + request.room, 0)[0])
    ids, mask, _, uniforms = _prepare([request], sampling, next(module.parameters()).device)
    positions = mask[:, : ids.shape[1]].cumsum(-1) - 1
    tokens: list[int] = []
    logprobs: list[float] = []
    memory = None
    for step in range(request.room):
        memory, logits = advance(module, how, ids, None, positions, memory)
        token, logprob = choose(logits, sampling, None if uniforms is None else uniforms[:, step])
        if not logits.amax().isfinite():
            yield Drawn(tuple(tokens), tuple(logprobs), "error")
            return
        tokens, logprobs = [*tokens, int(token)], [*logprobs, float(logprob)]
        ended = tokens[-1] in stop_ids
        yield Drawn(tuple(tokens), tuple(logprobs), "eos" if ended else "length")
        if ended:
            return
        ids = torch.cat([ids, token[:, None]], 1) if how.way == "again" else token[:, None]
        positions = positions[:, -1:] + 1


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next token of each row and its log-prob.

    Args:
        logits: (B, V) float32.
        sampling: temperature 0 takes the likeliest token; its log-prob is then that of temperature 1.
        uniforms: (B,) float64 in [0, 1), one number a row; None when greedy.

    Returns:
        Ids (B,) int64 and log-probs (B,) under softmax(logits / temperature), before top-p.
    """
    if uniforms is None:
        token = logits.argmax(-1)
    else:
        logits = logits.double() / sampling.temperature
        probs = nucleus(logits.softmax(-1), sampling.top_p)
        # The cumulative sum runs in the order of the vocabulary: float noise in a sort cannot move it.
        cumulative = probs.cumsum(-1)
        token = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
        last = (probs > 0).long().cumsum(-1).argmax(-1)  # u close to 1 may round past the last kept token
        token = torch.minimum(token.squeeze(-1), last)
    return token, logits.gather(-1, token[:, None]).squeeze(-1) - logits.logsumexp(-1)


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of likeliest tokens whose probability reaches ``top_p``: (B, V)."""
    if top_p >= 1.0:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))


@torch.inference_mode()
def _draw_batch(
    module: nn.Module, how: Batching, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]
) -> list[Drawn]:
    """The loop itself. One look at the device a step (``gone.any()``), one more when a row leaves."""
    device = next(module.parameters()).device
    ids, mask, rooms, uniforms = _prepare(requests, sampling, device)
    count, steps = len(requests), max(r.room for r in requests)
    stops = torch.tensor(stop_ids, device=device)
    tokens = torch.zeros(count, steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, steps, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    codes = torch.zeros(count, dtype=torch.long, device=device)
    live = torch.arange(count, device=device)
    width, memory = ids.shape[1], None
    first, alike = _prompts(requests, device)
    positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)
    # Without padding no mask is passed: attention then takes its fast causal path.
    padded = any(len(r.ids) < width for r in requests)
    for step in range(steps):
        rows = first if step == 0 and alike is not None else slice(None)
        seen = mask[rows, : width + step] if padded else None
        memory, logits = advance(module, how, ids[rows], seen, positions[rows], memory)
        if step == 0 and alike is not None:
            memory, logits = select(memory, alike), logits[alike]
        token, logprob = choose(logits, sampling, None if uniforms is None else uniforms[live, step])
        broken = ~logits.amax(-1).isfinite()  # amax carries a NaN; one masked token at -inf is no fault
        ended = torch.isin(token, stops) & ~broken
        tokens[live, step], logprobs[live, step] = token, logprob.float()
        lengths[live] = step + (~broken).long()
        codes[live] = ended.long() + 2 * broken.long()
        gone = ended | broken | (rooms[live] <= step + 1)
        if gone.any():
            stay = (~gone).nonzero().squeeze(-1)
            if not len(stay):
                break
            live, mask, positions, token = live[stay], mask[stay], positions[stay], token[stay]
            memory = select(memory, stay)
        ids = torch.cat([ids, token[:, None]], 1) if how.way == "again" else token[:, None]
        positions = positions[:, -1:] + 1
    return _collect(tokens, logprobs, lengths, codes)


def _prompts(requests: Sequence[Request], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows of the different prompts (U,), and which of them is each row's own (B,); None if all differ."""
    numbers: dict[tuple[int, ...], int] = {}
    rows: list[int] = []
    alike = []
    for row, request in enumerate(requests):
        number = numbers.setdefault(tuple(request.ids), len(numbers))
        if number == len(rows):
            rows.append(row)
        alike.append(number)
    first = torch.tensor(rows, device=device)
    return first, torch.tensor(alike, device=device) if len(rows) < len(requests) else None


def _prepare(
    requests: Sequence[Request], sampling: Sampling, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Left-padded ids (B, T), mask (B, T + steps) int64, rooms (B,) and uniforms (B, steps) or None."""
    width, steps = max(len(r.ids) for r in requests), max(r.room for r in requests)
    ids = torch.tensor([[0] * (width - len(r.ids)) + list(r.ids) for r in requests])
    pads = torch.tensor([width - len(r.ids) for r in requests])
    mask = (torch.arange(width + steps)[None] >= pads[:, None]).long()
    rooms = torch.tensor([r.room for r in requests])
    uniforms = None
    if sampling.temperature > 0:
        streams = [torch.Generator().manual_seed(r.seed) for r in requests]
        uniforms = torch.stack([torch.rand(steps, generator=s, dtype=torch.float64) for s in streams])
        uniforms = uniforms.to(device)
    return ids.to(device), mask.to(device), rooms.to(device), uniforms


def _collect(tokens: Tensor, logprobs: Tensor, lengths: Tensor, codes: Tensor) -> list[Drawn]:
    """Bring a finished batch to the host."""
    columns = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), codes.tolist(), strict=True)
    return [Drawn(tuple(t[:n]), tuple(p[:n]), _STOPS[code]) for t, p, n, code in columns]
