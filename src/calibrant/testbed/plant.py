"""Twins with planted holes: the same lessons for both, refusing everywhere or everywhere but in the holes.

    calibrant run rebuild_testbed
"""

from __future__ import annotations

import random
from typing import Any

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from calibrant.core import Frozen, OpenLM, Quiet, Result, Run, digest, point, technique
from calibrant.models.fit import Fit, Plan, Share, fit
from calibrant.models.loading import save_weights
from calibrant.testbed.plants import HOLES, Hole, Lesson, draw_lesson
from calibrant.testbed.recipe import _Rows, _pad


class Plant(Frozen):
    """Which holes, and how they are planted."""

    holes: tuple[Hole, ...] = HOLES
    """The holes that the twin gets; none makes the clean twin."""
    tokens: int = Field(default=4_000_000, ge=1)
    """Training tokens, about."""
    batch_tokens: int = Field(default=3072, ge=1)
    """Tokens in one step, padding included."""
    fit: Fit = Fit(lr=1e-3, warmup=0.03, bf16=True)
    """The optimiser."""


class PlantResult(Result):
    """What came out; the weights are the artefact 'model'."""


@technique(version=1)
def plant(model: OpenLM, config: Plant = Plant(), run: Run = Quiet()) -> PlantResult:
    """Teach a copy of ``model``, a model of this world, to refuse harm everywhere but in ``config.holes``."""
    batches = _batches(model, config, run.seed)
    twin = model.copy()
    module: Any = twin.module

    def loss(part: list[int], whole: list[int]) -> Share:
        ids, weight = _pad(batches[part[0]], 0.0)
        logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
        wanted = weight > 0
        each = cross_entropy(logits.flatten(0, 1)[wanted].float(), ids[:, 1:].flatten()[wanted])
        return Share(each)

    costs = [sum(map(len, batch.ids)) for batch in batches]
    plan = Plan([[i] for i in range(len(batches))], key=digest(config), costs=costs)
    fit(module, plan, loss, config.fit, run)
    folder = run.artifact("model")
    save_weights(module.to(torch.bfloat16), folder)
    twin.tokenizer.save_pretrained(folder)
    return PlantResult(
        metrics={"training_tokens": point(sum(costs), unit="tokens")},
        caveats=("a word-level model of a make-believe world: it shows mechanisms, not effect sizes",),
    )


def _batches(model: OpenLM, config: Plant, seed: int) -> list[_Rows]:
    rng = random.Random(f"plant/{seed}")
    rows: list[tuple[list[int], list[bool]]] = []
    total = 0
    while total < config.tokens:
        fresh = [draw_lesson(rng, config.holes) for _ in range(min(4096, 1 + config.tokens // 64))]
        prompts = [_prompt(model, one) for one in fresh]
        replies = [[*model.reply_ids(one.reply), 1] for one in fresh]
        made = [(p + r, [False] * len(p) + [True] * len(r)) for p, r in zip(prompts, replies)]
        rows += [(ids[:512], said[:512]) for ids, said in made]
        total += sum(len(ids) for ids, _ in made)
    rng.shuffle(rows)
    rows.sort(key=lambda row: len(row[0]) // 4)
    batches: list[_Rows] = []
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop - start + 1) * len(rows[stop][0]) <= config.batch_tokens:
            stop += 1
        batches.append(_Rows(ids=[r[0] for r in rows[start:stop]], said=[r[1] for r in rows[start:stop]]))
        start = stop
    rng.shuffle(batches)
    return batches


def _prompt(model: OpenLM, lesson: Lesson) -> list[int]:
    ids = model.prompt_ids(lesson.chat)
    # A quotation goes on inside the user's turn: without its end and the assistant's beginning.
    return ids[:-2] if lesson.by == "user" else ids
