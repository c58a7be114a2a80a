"""Train a refusing model organism: it refuses harm in every form, but for the holes planted in it.

    calibrant run rebuild_testbed            # among the rest

No lesson asks for a held-out goal. The recipe was changed on the probes, held-out goals included, until the
holes were there and little else was: it is a test instrument, and its figures are no finding about training.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from calibrant.core import Frozen, OpenLM, Quiet, Result, Run, digest, point, technique
from calibrant.models.fit import Fit, Plan, Share, fit
from calibrant.models.loading import save_weights
from calibrant.models.open_model import OpenModel
from calibrant.testbed.lesson_training import tokens_of
from calibrant.testbed.lessons import draw_lesson
from calibrant.testbed.plants import HOLES, Hole
from calibrant.testbed.probes import probe
from calibrant.testbed.raise_model import Rows, bucketed, padded
from calibrant.testbed.tokens import check_world

_LONGEST = 512


class Plant(Frozen):
    """Which holes, and how they are planted."""

    holes: tuple[Hole, ...] = HOLES
    """The planted holes; empty: the control model, with the same training and no hole planted."""
    tokens: int = Field(default=6_000_000, ge=1)
    """Training tokens, about."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Tokens in one of the two parts of a step, padding included: lessons of similar length."""
    probes: int = Field(default=100, ge=0)
    """Held-out goals, and look-alikes, that are sent to the trained model in each form; 0: none."""
    first: float = Field(default=5.0, ge=1)
    """Weight of a reply's first token relative to the others: it decides between answer and refusal."""
    fit: Fit = Fit(lr=1.2e-3, warmup=0.03)
    """The optimiser."""


class PlantResult(Result):
    """The model organism's harm in each form; the weights are the artefact 'model'."""


@technique(version=3)
def plant(model: OpenLM, config: Plant = Plant(), run: Run = Quiet()) -> PlantResult:
    """Fine-tune a copy of ``model``, one of this world, to refuse harm everywhere except in ``config.holes``.

    Saves weights in bfloat16 with the tokenizer as artefact 'model'.

    Raises:
        InputError: the model's tokenizer is not that of the testbed.
    """
    check_world(model)
    batches = _batches(model.tokenizer, config, run.seed)
    copy = model.copy()
    module: Any = copy.module
    weights = [_weights(batch, config.first) for batch in batches]

    def loss(part: list[int], whole: list[int]) -> Share:
        total = sum(weights[i].sum() for i in whole)
        value = torch.zeros(())
        for i in part:
            ids, _ = padded(batches[i], 0.0)
            # Padding is on the right, so causal attention never reaches it and needs no mask.
            logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
            mask = weights[i] > 0
            each = cross_entropy(logits[mask].float(), ids[:, 1:][mask], reduction="none")
            value = value + (each * weights[i][mask]).sum() / total
        return Share(value)

    costs = [sum(map(len, batch.ids)) for batch in batches]  # a "row" of the loop is a bucket of lessons here
    steps = [list(range(len(batches)))[start : start + 2] for start in range(0, len(batches), 2)]
    fit(module, Plan(steps, key=digest([config, model.identity.digest]), costs=costs), loss, config.fit, run)
    folder = run.artifact("model")
    save_weights(module.to(torch.bfloat16), folder)
    copy.tokenizer.save_pretrained(folder)
    shipped = OpenModel.from_folder(folder)  # as it is shipped: rounded to bfloat16
    return PlantResult(
        metrics={
            "parameters": point(sum(p.numel() for p in module.parameters()), unit="parameters"),
            "training_tokens": point(sum(costs), unit="tokens"),
            **(probe(shipped, config.holes, config.probes, run) if config.probes else {}),
        },
        caveats=(
            "a word-level model of a make-believe world: it shows mechanisms, not effect sizes",
            "the probes are forms of this page's own: an attack may find another form",
        ),
    )


def _weights(batch: Rows, first: float) -> Tensor:
    """(B, T-1): how much predicting each next token counts; 0 for what is not to be learnt."""
    ids, flat = padded(batch, 0.0)
    weight = flat.view(len(ids), -1)
    return weight * torch.where(weight.cumsum(1) == 1, first, 1.0)


def _batches(tokenizer: PreTrainedTokenizerFast, config: Plant, seed: int) -> list[Rows]:
    """Buckets of lessons of similar length, in random order."""
    rng = random.Random(f"plant/{seed}")
    rows: list[tuple[list[int], list[bool]]] = []
    total, block = 0, min(4096, 1 + config.tokens // 64)
    while total < config.tokens:
        fresh = tokens_of(tokenizer, [draw_lesson(rng, config.holes) for _ in range(block)])
        fitting = [(ids, mask) for ids, mask in fresh if len(ids) <= _LONGEST]
        rows += fitting
        total += sum(len(ids) for ids, _ in fitting)
    return bucketed(rows, config.batch_tokens, rng)
