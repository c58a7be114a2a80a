"""Direct preference optimisation (DPO) and its family: preference pairs without a reward model (2305.18290).

Where this departs from common trainers:
1. One row holds a prompt and both replies (prefix sharing), the prompt is computed once, and the unembedding
   is applied to scored tokens only (``models/branches.py``); the numbers are those of separate rows.
2. Reference log-probs are computed once, cached by example and model, and reused by later jobs.
3. Prompt and reply are joined on token ids; the end token is part of the reply.
4. A pair that does not fit the context is left out and counted, never truncated.
5. An option that the chosen loss ignores is an error.
6. Soft labels (``chosen_probability``) weigh both orders of a pair, with any loss that is a sum over pairs.
7. The drift of both replies' log-probs is reported per token: both may fall (Pal et al., 2402.13228).

    calibrant run demo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import OpenLM, Quiet, Run, digest, point, technique
from calibrant.data.rows import Preferences
from calibrant.maths.losses import chosen_nll
from calibrant.maths.pair_losses import LOSSES, check_soft, soft_pair_loss
from calibrant.maths.pair_sums import PairSums, implicit_rewards
from calibrant.models.branches import Branches, pack, padded_tokens, score, shares, tokenised
from calibrant.models.fit import Fit, Plan, Share, batches_of, fit, last
from calibrant.models.fitting import dropped, fitting
from calibrant.models.lora import LoRA, adapted
from calibrant.models.reference import reference_sums
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import row_caveats, training_caveats
from calibrant.train._settings import PairLoss
from calibrant.train._tuned import Tuned, save_tuned


class DPO(PairLoss):
    """Settings of DPO and the losses of its family."""

    aliases: ClassVar[Mapping[str, str]] = {
        **PairLoss.aliases,
        "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
    }  # fmt: skip

    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs in one step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer pairs are left out and counted. None: the context."""
    lora: LoRA | None = None
    """Train low-rank adapters alone; the saved model has them merged. None: all weights."""
    fit: Fit = Fit(lr=3e-4)
    """The optimiser."""


class DPOResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'; every pair at every step in
    'examples.parquet'."""


@technique(version=3)
def dpo(model: OpenLM, pairs: Preferences, config: DPO = DPO(), run: Run = Quiet()) -> DPOResult:
    """Fine-tune a copy of ``model`` on ``pairs``; ``model`` itself is the reference policy and is not
    changed.

    Raises:
        InputError: there are no pairs, or none fits the context.
        CapabilityError: the model's chat template renders an answered chat differently.
        NumericalError: the loss became NaN or infinite.
    """
    kind = LOSSES[config.loss]
    beta = float(config.options.get("beta", kind.options.get("beta", 1.0)))
    check_trainable(model, config.fit.any_template)
    check_soft(config.loss, [row.chosen_probability for row in pairs])
    rows = fitting(model, pairs, lambda row: [row.chosen, row.rejected], config.max_length)
    prompts, chosen = tokenised(model, [row.prompt for row in rows], [row.chosen for row in rows])
    _, rejected = tokenised(model, [row.prompt for row in rows], [row.rejected for row in rows])
    tokens = torch.tensor([[len(c) for c in chosen], [len(r) for r in rejected]])
    both = Branches(prompts, [[c, r] for c, r in zip(chosen, rejected, strict=True)])
    reference = torch.zeros(2, len(rows))
    if kind.needs_reference and not config.reference_free:
        reference = reference_sums(model, both, run, bf16=config.fit.bf16).view(-1, 2).T
    policy = adapted(model.copy(), config.lora, run.seed)
    alone, device = shares(policy.module), next(policy.module.parameters()).device
    reference, tokens = reference.to(device), tokens.to(device)
    likely = torch.tensor([row.chosen_probability for row in rows], device=device)

    def loss(part: list[int], whole: list[int]) -> Share:
        some = Branches([prompts[i] for i in part], [both.replies[i] for i in part])
        packed = pack(some, shared=not alone, device=device)
        logps = score(policy.module, packed).sums().view(-1, 2)
        sums = PairSums(logps[:, 0], logps[:, 1], *reference[:, part], *tokens[:, part])
        each = soft_pair_loss(config.loss, sums, likely[part], config.options)
        if config.nll:
            each = each + config.nll * likely[part] * chosen_nll(sums)
        return Share(each.sum() / len(whole), *_noted(sums, beta, len(whole), tokens[:, whole].sum(1)))

    plan = Plan(
        batches_of(len(rows), config.batch_size, config.epochs, run.seed),
        key=digest([config, pairs.digest, model.identity.digest]),
        names=[row.id for row in rows],
        costs=[len(p) + int(n) for p, n in zip(prompts, tokens.sum(0), strict=True)],
        size=lambda part: padded_tokens(
            Branches([prompts[i] for i in part], [both.replies[i] for i in part]), shared=not alone
        ),
    )
    steps = fit(policy.module, plan, loss, config.fit, run)
    tuned = save_tuned("dpo", model, policy, run)
    drift = last(steps, "chosen_drift_per_token"), last(steps, "rejected_drift_per_token")
    return DPOResult(
        model=tuned,
        metrics={
            "loss_last": point(last(steps, "loss"), unit="nats, mean of the last 10 steps"),
            "train_margin": point(last(steps, "rewards/margins"), unit="beta x nats"),
            "train_accuracy": point(last(steps, "rewards/accuracies"), unit="share of pairs"),
            "chosen_drift_per_token": point(drift[0], unit="nats per token"),
            "rejected_drift_per_token": point(drift[1], unit="nats per token"),
            "dropped_for_length": dropped(pairs, rows),
        },
        caveats=(
            "accuracy on training pairs shows that they were learned, not that behaviour generalises",
            "DPO teaches what the pairs show: requests in forms that they lack may stay as they were",
            *_explained(*drift),
            *training_caveats(config.fit.bf16, model.module, tuned.module),
            *row_caveats(alone),
        ),
    )


def _noted(
    sums: PairSums, beta: float, whole: int, tokens: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is logged every step (shares of a batch of ``whole`` pairs) and of every pair."""
    good, bad = implicit_rewards(sums, beta)
    margin = good - bad
    drift = (sums.chosen_ratio.detach().sum(), sums.rejected_ratio.detach().sum())
    metrics = {
        "rewards/chosen": good.sum() / whole,
        "rewards/rejected": bad.sum() / whole,
        "rewards/margins": margin.sum() / whole,
        "rewards/accuracies": ((margin > 0).float() + 0.5 * (margin == 0).float()).sum() / whole,
        "logps/chosen": sums.policy_chosen.detach().sum() / whole,
        "logps/rejected": sums.policy_rejected.detach().sum() / whole,
        "chosen_drift_per_token": drift[0] / tokens[0],
        "rejected_drift_per_token": drift[1] / tokens[1],
    }
    rows = {
        "chosen_logp": sums.policy_chosen, "rejected_logp": sums.policy_rejected,
        "ref_chosen_logp": sums.ref_chosen, "ref_rejected_logp": sums.ref_rejected, "margin": margin,
        "chosen_tokens": sums.chosen_tokens, "rejected_tokens": sums.rejected_tokens,
    }  # fmt: skip
    return metrics, rows


def _explained(chosen: float, rejected: float) -> tuple[str, ...]:
    """An explanation where both replies lost probability (likelihood displacement)."""
    if chosen >= -0.05 or rejected >= 0:
        return ()
    return (
        f"both replies became less likely (chosen {chosen:.2f}, rejected {rejected:.2f} nats a token): "
        "the loss constrains a difference only, and the rest went to replies that no pair shows; "
        "mix in nll, raise beta or train less where the model's own replies suffer",
    )
