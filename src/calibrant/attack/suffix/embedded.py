"""Greedy generation behind embeddings that no token has: what a model says to a soft prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.models.batching import advance, batching
from calibrant.models.generate import Drawn, Stop


@torch.no_grad()
def speak(module: nn.Module, prompt: Tensor, most: int, stop_ids: Sequence[int]) -> Drawn:
    """The likeliest token after another, up to a stop token or ``most`` of them.

    Args:
        module: a causal language model of transformers.
        prompt: (L, D) embeddings.
        most: tokens at most.
        stop_ids: ids that end a reply.

    Raises:
        CapabilityError: the model is no left-to-right language model.
    """
    how = batching(module)
    table: Any = module.get_input_embeddings()  # type: ignore[operator]
    inputs, past = prompt[None], None
    positions = torch.arange(len(prompt), device=prompt.device)[None]
    ids, logprobs = list[int](), list[float]()
    stop: Stop = "length"
    while len(ids) < most:
        # Cloned, since a family may scale what it is given in place.
        past, rows = advance(module, how, inputs.clone(), None, positions, past)
        logits = rows[0]
        if not bool(logits.amax().isfinite()):
            stop = "error"
            break
        token = logits.argmax()
        ids.append(int(token))
        logprobs.append(float(logits[token] - logits.logsumexp(0)))
        if ids[-1] in stop_ids:
            stop = "eos"
            break
        positions = positions[:, -1:] + 1
        inputs = torch.cat([inputs, table(token)[None, None]], 1) if how.way == "again" else token[None, None]
    return Drawn(tuple(ids), tuple(logprobs), stop)
