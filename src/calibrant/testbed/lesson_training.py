"""Fine-tune a model of this world on lessons: one pass, the loss on what the assistant says in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from calibrant.core import OpenLM, Run
from calibrant.models.fit import Fit, Plan, Share, fit
from calibrant.models.loading import save_weights
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import Rows, bucketed, padded

Lessons = list[tuple[list[int], list[bool]]]
"""Token ids of each dialogue, and for each id whether it is learned."""


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


def train_until(
    model: OpenLM,
    draw: Callable[[int], Lessons],
    tokens: int,
    batch_tokens: int,
    settings: Fit,
    key: str,
    rng: random.Random,
    run: Run,
) -> int:
    """Change ``model`` itself by about ``tokens`` tokens of lessons; how many they were.

    ``draw`` makes so many lessons with ``rng``; ``key`` names all that decides them.
    """
    rows: Lessons = []
    total, block = 0, min(256, 1 + tokens // 64)
    while total < tokens:
        fresh = draw(block)
        rows += fresh
        total += sum(len(ids) for ids, _ in fresh)
    train_on(model, rows, batch_tokens, settings, key, rng, run)
    return total


def ship(model: OpenLM, run: Run) -> OpenModel:
    """Save weights in bfloat16 with the tokenizer as artefact 'model'; the model as it is stored, rounded."""
    folder = run.artifact("model")
    save_weights(model.module.to(torch.bfloat16), folder)
    model.tokenizer.save_pretrained(folder)
    return OpenModel.from_folder(folder)
