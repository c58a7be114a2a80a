"""Supervised fine-tuning (SFT) on demonstrations. The first step of InstructGPT (arXiv 2203.02155, 3.2).

Where this departs from common trainers:
1. The loss is on the reply and its end token only, averaged over the tokens of a batch (not over rows).
2. Prompt and reply are joined on token ids, so nothing merges across the boundary.
3. A row that does not fit the context is left out and counted, never truncated.

    calibrant run real_weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from calibrant.core import Frozen, OpenLM, Quiet, Run, digest, point, technique
from calibrant.data.rows import Examples
from calibrant.models.branches import Branches, pack, padded_tokens, score, tokenised
from calibrant.models.fit import FIT_ALIASES, Fit, Plan, Share, batches_of, fit, last
from calibrant.models.fitting import dropped, fitting
from calibrant.models.lora import LoRA, adapted
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import training_caveats
from calibrant.train._tuned import Tuned, save_tuned


class SFT(Frozen):
    """Settings of supervised fine-tuning."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
    }  # fmt: skip

    epochs: int = Field(default=1, ge=1)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=16, ge=1)
    """Demonstrations in one step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer rows are left out and counted. None: the context."""
    lora: LoRA | None = None
    """Train low-rank adapters alone; the saved model has them merged. None: all weights."""
    fit: Fit = Fit(lr=5e-4)
    """The optimiser."""


class SFTResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'."""


@technique(version=3)
def sft(model: OpenLM, examples: Examples, config: SFT = SFT(), run: Run = Quiet()) -> SFTResult:
    """Fine-tune a copy of ``model`` on ``examples``; the input model is not changed.

    Raises:
        InputError: there are no examples, or none fits the context.
        CapabilityError: its chat template renders an answered chat differently, or it is not causal.
        NumericalError: the loss became NaN or infinite.
    """
    check_trainable(model, config.fit.any_template)
    rows = fitting(model, examples, lambda row: [row.completion], config.max_length)
    prompts, replies = tokenised(model, [row.prompt for row in rows], [row.completion for row in rows])
    policy = adapted(model.copy(), config.lora, run.seed)
    device = next(policy.module.parameters()).device

    def loss(part: list[int], whole: list[int]) -> Share:
        some = Branches([prompts[i] for i in part], [[replies[i]] for i in part])
        scores = score(policy.module, pack(some, shared=False, device=device))
        sums = scores.sums()
        return Share(
            -sums.sum() / sum(len(replies[i]) for i in whole), {}, {"logp": sums, "tokens": scores.lengths}
        )

    plan = Plan(
        batches_of(len(rows), config.batch_size, config.epochs, run.seed),
        key=digest([config, examples.digest, model.identity.digest]),
        names=[row.id for row in rows],
        costs=[len(p) + len(r) for p, r in zip(prompts, replies, strict=True)],
        size=lambda part: padded_tokens(
            Branches([prompts[i] for i in part], [[replies[i]] for i in part]), shared=False
        ),
    )
    steps = fit(policy.module, plan, loss, config.fit, run)
    tuned = save_tuned("sft", model, policy, run)
    return SFTResult(
        model=tuned,
        metrics={
            "loss_first": point(steps[0]["loss"], unit="nats per token"),
            "loss_last": point(last(steps, "loss"), unit="nats per token, mean of the last 10 steps"),
            "dropped_for_length": dropped(examples, rows),
        },
        caveats=(
            "a falling training loss shows imitation, not that the model behaves better",
            *training_caveats(config.fit.bf16, model.module, tuned.module),
        ),
    )
