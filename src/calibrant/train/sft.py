"""Supervised fine-tuning: imitate demonstrations. The first step of InstructGPT (arXiv 2203.02155, 3.2).

Where this departs from common trainers:
1. The loss is on the reply and its end token only, averaged over the tokens of a batch (not over rows).
2. Prompt and reply are joined on token ids, so nothing merges across the boundary.
3. A row that does not fit the context is left out and counted, never cut.

    calibrant run real_weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from calibrant.core import Frozen, OpenLM, Quiet, Result, Run, point, technique
from calibrant.data.rows import Examples
from calibrant.maths.logprobs import token_logprobs
from calibrant.maths.losses import nll
from calibrant.models.fit import Fit, batches_of, fit
from calibrant.models.fitting import dropped, fitting
from calibrant.models.open_model import OpenModel


class SFT(Frozen):
    """Settings of supervised fine-tuning."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=16, ge=1)
    """Demonstrations in one step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer rows are left out and counted. None: the context."""
    fit: Fit = Fit(lr=5e-4)
    """The optimiser."""


class SFTResult(Result):
    """The tuned model, also saved as artefact 'model'."""

    model: Any = Field(exclude=True)
    """The tuned OpenLM, live, under an identity of its own."""


@technique(version=1)
def sft(model: OpenLM, examples: Examples, config: SFT = SFT(), run: Run = Quiet()) -> SFTResult:
    """Fine-tune a copy of ``model`` on ``examples``; the model that came in is not changed.

    Raises:
        InputError: there are no examples, or none fits the context.
        NumericalError: the loss became NaN or infinite.
    """
    rows = fitting(model, examples, lambda row: [row.completion], config.max_length)
    policy = model.copy()

    def loss(batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        tokens = policy.encode([rows[i].prompt for i in batch], [rows[i].completion for i in batch])
        run.spend(tokens=int(tokens.mask.sum()))
        return nll(token_logprobs(policy.forward(tokens), tokens.ids), tokens.reply[:, 1:]), {}

    batches = batches_of(len(rows), config.batch_size, config.epochs, run.seed)
    losses = fit(policy.module, batches, loss, config.fit, run)
    # Named anew: under the old identity it would pass for the model that came in.
    tuned = OpenModel.from_module(policy.module, policy.tokenizer, f"{model.identity.name} after sft")
    tuned.save(run.artifact("model"))
    tail = losses[-10:]
    return SFTResult(
        model=tuned,
        metrics={
            "loss_first": point(losses[0], unit="nats per token"),
            "loss_last": point(sum(tail) / len(tail), unit="nats per token, mean of the last 10 steps"),
            "dropped_for_length": dropped(examples, rows),
        },
        caveats=("a falling training loss shows imitation, not that the model behaves better",),
    )
