"""Direct preference optimisation: learn from pairs without a reward model (Rafailov et al., 2305.18290).

Where this departs from common trainers:
1. Reference log-probs are computed once, before the first step, and kept.
2. Prompt and reply are joined on token ids; the end token is part of the reply; sums, not means.
3. A pair that does not fit the context is left out and counted, never cut.
4. The drift of the chosen replies' log-probs is reported per token: both may fall (Pal et al., 2402.13228).

    calibrant run demo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import Frozen, OpenLM, Quiet, Result, Run, point, technique
from calibrant.data.rows import Pair, Preferences
from calibrant.maths.logprobs import masked_sum, token_logprobs
from calibrant.maths.losses import dpo_sigmoid
from calibrant.models.fit import Fit, batches_of, fit
from calibrant.models.fitting import dropped, fitting
from calibrant.models.open_model import OpenModel


class DPO(Frozen):
    """Settings of DPO with the sigmoid loss."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference, in units of 1 / nats: higher stays closer."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs in one step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer pairs are left out and counted. None: the context."""
    fit: Fit = Fit(lr=3e-4)
    """The optimiser."""


class DPOResult(Result):
    """The tuned model, also saved as artefact 'model'."""

    model: Any = Field(exclude=True)
    """The tuned OpenLM, live, under an identity of its own."""


@technique(version=1)
def dpo(model: OpenLM, pairs: Preferences, config: DPO = DPO(), run: Run = Quiet()) -> DPOResult:
    """Tune a copy of ``model`` on ``pairs``; ``model`` itself is the reference and is not changed.

    Raises:
        InputError: there are no pairs, or none fits the context.
        NumericalError: the loss became NaN or infinite.
    """
    rows = fitting(model, pairs, lambda row: [row.chosen, row.rejected], config.max_length)
    prompts = [row.prompt for row in rows]
    reference = torch.tensor(
        [
            [scored.total for scored in model.logprobs(prompts, [row.chosen for row in rows])],
            [scored.total for scored in model.logprobs(prompts, [row.rejected for row in rows])],
        ]
    )
    policy = model.copy()
    seen: list[dict[str, float]] = []

    def loss(batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        chosen, rejected, words = _sums(policy, [rows[i] for i in batch], run)
        ref_chosen, ref_rejected = reference[:, batch].to(chosen.device)
        out = dpo_sigmoid(chosen, rejected, ref_chosen, ref_rejected, config.beta)
        margin = out.chosen_reward - out.rejected_reward
        wins = (margin > 0).float() + 0.5 * (margin == 0).float()
        drift = (chosen.detach() - ref_chosen).sum() / words
        logged = {"margin": margin.mean(), "accuracy": wins.mean(), "chosen_drift_per_token": drift}
        seen.append({name: float(value) for name, value in logged.items()})
        return out.loss.mean(), logged

    batches = batches_of(len(rows), config.batch_size, config.epochs, run.seed)
    losses = fit(policy.module, batches, loss, config.fit, run)
    # Named anew: under the old identity it would pass for the model that came in.
    tuned = OpenModel.from_module(policy.module, policy.tokenizer, f"{model.identity.name} after dpo")
    tuned.save(run.artifact("model"))
    last = {name: sum(step[name] for step in seen[-10:]) / len(seen[-10:]) for name in seen[0]}
    return DPOResult(
        model=tuned,
        metrics={
            "loss_last": point(sum(losses[-10:]) / len(losses[-10:]), unit="nats, mean of the last 10 steps"),
            "train_margin": point(last["margin"], unit="beta x nats"),
            "train_accuracy": point(last["accuracy"], unit="share of pairs"),
            "chosen_drift_per_token": point(last["chosen_drift_per_token"], unit="nats per token"),
            "dropped_for_length": dropped(pairs, rows),
        },
        caveats=(
            "accuracy on training pairs shows that they were learned, not that behaviour generalises",
            "DPO teaches what the pairs show: requests in forms that they lack may stay as they were",
        ),
    )


def _sums(policy: OpenLM, rows: Sequence[Pair], run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Summed log-probs of the chosen (B,) and rejected (B,) replies, and the chosen tokens' number."""
    prompts = [row.prompt for row in rows]
    tokens = policy.encode(prompts + prompts, [r.chosen for r in rows] + [r.rejected for r in rows])
    run.spend(tokens=int(tokens.mask.sum()))
    scored = tokens.reply[:, 1:]
    sums = masked_sum(token_logprobs(policy.forward(tokens), tokens.ids), scored)
    return sums[: len(rows)], sums[len(rows) :], scored[: len(rows)].sum()
