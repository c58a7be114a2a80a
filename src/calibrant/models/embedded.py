"""Greedy generation behind embeddings that no token has: what a model says to a soft prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.models.generate import Drawn, Stop, accepted


@torch.no_grad()
def speak(module: nn.Module, prompt: Tensor, most: int, stop_ids: Sequence[int]) -> Drawn:
    """The likeliest token after another, up to a stop token or ``most`` of them.

    Args:
        module: a causal language model of transformers.
        prompt: (L, D) embeddings.
        most: tokens at most.
        stop_ids: ids that end a reply.
    """
    model: Any = module
    name = "cache" if accepted(module, cache=None) else "past_key_values"
    given: dict[str, Any] = {"inputs_embeds": prompt[None]}
    ids, logprobs, kept = list[int](), list[float](), None
    stop: Stop = "length"
    while len(ids) < most:
        out = model(**given, **{name: kept}, **accepted(module, logits_to_keep=1), use_cache=True)
        kept, logits = getattr(out, name), out.logits[0, -1].float()
        if not bool(logits.amax().isfinite()):
            stop = "error"
            break
        token = logits.argmax()
        ids.append(int(token))
        logprobs.append(float(logits[token] - logits.logsumexp(0)))
        if ids[-1] in stop_ids:
            stop = "eos"
            break
        given = {"input_ids": token[None, None]}
    return Drawn(tuple(ids), tuple(logprobs), stop)
