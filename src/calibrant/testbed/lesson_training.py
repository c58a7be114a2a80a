"""Fine-tune a model of this world on lessons: one pass, the loss on what the assistant says in them.

And what every model organism needs besides: lessons until there are enough tokens, the weights as they are
stored, and the replies to many chats.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from calibrant.core import LM, Chat, OpenLM, Run, Sampling
from calibrant.models.fit import Fit, Plan, Share, fit
from calibrant.models.loading import save_weights
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import Rows, bucketed, padded

Lessons = list[tuple[list[int], list[bool]]]
"""Token ids of each dialogue, and for each id whether it is learned."""
_CHUNK = 64


def drawn_lessons(draw: Callable[[int], Lessons], tokens: int) -> tuple[Lessons, int]:
    """Lessons of at least ``tokens`` tokens, and how many they have; ``draw`` makes so many more."""
    rows: Lessons = []
    total, block = 0, min(256, 1 + tokens // 64)
    while total < tokens:
        fresh = draw(block)
        rows += fresh
        total += sum(len(ids) for ids, _ in fresh)
    return rows, total


def stored(model: OpenLM, run: Run) -> OpenModel:
    """``model`` as it is stored, rounded to bfloat16, with its tokenizer as artefact 'model'."""
    folder, module = run.artifact("model"), model.module
    save_weights(module.to(torch.bfloat16), folder)
    model.tokenizer.save_pretrained(folder)
    return OpenModel.from_folder(folder)


def replies(model: LM, chats: Sequence[Chat], sampling: Sampling, run: Run) -> list[str]:
    """What ``model`` says to each chat, charged and told."""
    said: list[str] = []
    for start in range(0, len(chats), _CHUNK):
        chunk = chats[start : start + _CHUNK]
        run.spend(queries=len(chunk))
        said += [reply.text for reply in model.generate(chunk, sampling)]
        run.progress(len(said), len(chats), "asking")
    return said


def train_on(
    model: OpenLM, rows: Lessons, batch_tokens: int, settings: Fit, key: str, rng: random.Random, run: Run
) -> None:
    """Change ``model`` itself. ``key`` names all that decides the rows, so that a killed run may go on."""
    batches: list[Rows] = bucketed(rows, batch_tokens, rng)
    module: Any = model.module

    def loss(part: list[int], whole: list[int]) -> Share:
        ids, weight = padded(batches[part[0]], 0.0)
        # Padding is on the right, so causal attention never reaches it and needs no mask.
        logits = module(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        said = weight > 0
        return Share(cross_entropy(logits[said].float(), ids[:, 1:].flatten()[said]))

    costs = [sum(map(len, batch.ids)) for batch in batches]  # a "row" of the loop is a whole batch here
    plan = Plan([[i] for i in range(len(batches))], key=key, costs=costs)
    fit(module, plan, loss, settings, run)
