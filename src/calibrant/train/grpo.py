"""GRPO (group relative policy optimisation): advantages relative to the group of a prompt's replies
(2402.03300).

The advantage of each of K replies to a prompt is A_i = (r_i - mean r) / (std r + eps), the same for all of
its tokens. Ratios pi / pi_old are clipped per token. No critic; an optional KL penalty in the loss.

Where this departs from common trainers:
1. ``scale``, ``eps`` and ``unbiased`` define what the scores are divided by; ``scale = "none"`` is Dr. GRPO.
2. ``aggregation`` says how tokens are averaged, over the whole optimiser step, invariant to micro-batching.
   The one that depends on it (``micro_token_mean``, TRL's 'bnpo') is marked, and never the default.
3. Prompts whose replies all have the same score give no gradient; their share is logged
   (``frac_reward_zero_std``). Their advantages are exactly 0, not a rounding error that AdamW would amplify.
4. One row holds a prompt and all its replies, and the prompt is computed once (``models/branches.py``).
5. Everything random comes from (seed, step), so a killed run resumes with the same bits. A watcher may stop
   the run (early stopping): its 'no' restores the weights of its last look that was not a 'no'; the caveats
   say whether that was 'yes' or 'unknown'.

    calibrant show train.grpo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import Tensor

from calibrant.core import OpenLM, Quiet, Reward, Run, Watcher, technique
from calibrant.data.rows import Prompts
from calibrant.maths.advantages import Scale, group_normalised
from calibrant.maths.kl import PENALTIES
from calibrant.maths.policy_losses import AGGREGATIONS, Aggregation, Window, clipped_surrogate
from calibrant.models.fit import FIT_ALIASES
from calibrant.train import _rl_group as group
from calibrant.train._rl_common import clips
from calibrant.train._rl_state import Student
from calibrant.train._settings import KL, Grouped
from calibrant.train._tuned import Tuned

_TRL = {"grpo": "sequence_mean", "bnpo": "micro_token_mean", "dr_grpo": "constant", "dapo": "token_mean"}


class GRPO(Grouped):
    """Settings of GRPO."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "max_steps": "steps", "num_generations": "samples", "max_completion_length": "max_tokens",
        "num_iterations": "epochs", "epsilon": "clip", "epsilon_high": "clip_high", "beta": "kl.coef",
        "scale_rewards": "scale", "loss_type": "aggregation", "mask_truncated_completions": "mask_truncated",
    }  # fmt: skip

    samples: int = Field(default=8, ge=2)
    """K, replies sampled for each prompt: the group."""
    scale: Scale = "group"
    """Divide by the standard deviation of the prompt's own scores (the paper), of the whole round's (batch),
    or by nothing (none: Dr. GRPO, 2503.20783)."""
    eps: float = Field(default=1e-4, gt=0)
    """Added to that deviation; TRL has 1e-4, verl 1e-6."""
    unbiased: bool = True
    """The deviation divides its variance by n - 1, else by n."""
    aggregation: Aggregation = "token_mean"
    """How tokens are averaged: token_mean (DAPO), sequence_mean (GRPO's paper), constant (Dr. GRPO), or
    micro_token_mean (TRL's 'bnpo'), the one that depends on ``fit.micro_tokens``. TRL's names are
    accepted."""
    clip: float | None = Field(default=0.2, gt=0)
    """The ratio of a token counts from 1 - clip to 1 + clip. None: no clip."""
    clip_high: float | None = Field(default=None, gt=0)
    """Another upper clip (DAPO: 0.28, 2503.14476). None: ``clip`` on both sides."""
    mask_truncated: bool = False
    """Truncated replies count in the baseline, but are masked in the loss."""
    kl: KL = KL(coef=0.0, place="loss", estimator="k3")
    """KL penalty to the reference policy (the input model): always in the loss (k3 as in the paper, k2 or
    k3+)."""

    @field_validator("aggregation", mode="before")
    @classmethod
    def _named_as_in_trl(cls, value: Any) -> Any:
        return _TRL.get(value, value) if isinstance(value, str) else value

    def contradictions(self) -> list[str]:
        """Settings that would be ignored, or that belong to another method."""
        problems = super().contradictions()
        if self.scale == "none" and not (self.eps == 1e-4 and self.unbiased):
            problems.append("scale = 'none' divides by nothing, so eps and unbiased would be ignored")
        if self.kl.place != "loss":
            problems.append(
                "GRPO adds the KL to the loss (kl.place = 'loss'); train.rloo takes it off the reward"
            )
        return problems


class GRPOResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'; every reply of every step in
    'examples.parquet'."""


@technique(version=2)
def grpo(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None = None,
    config: GRPO = GRPO(),
    run: Run = Quiet(),
) -> GRPOResult:
    """Fine-tune a copy of ``model`` on its own samples for ``prompts``; ``model`` is the reference policy.

    Raises:
        InputError: there are no prompts, none leaves room for a reply, one with its
            replies takes more than ``fit.micro_tokens``, the reward gives a wrong number of
            scores, or a checkpoint cannot be written. What the reward raises is passed on.
        CapabilityError: there are several processes, or the model's chat template writes an answered chat
            otherwise.
        NumericalError: a score, loss or gradient is NaN or infinite; earlier checkpoints stay.
    """
    fields = group.train(
        "grpo", model, prompts, reward, watcher, config, run, _advantages, _term,
        ended_only=config.mask_truncated, longest=config.max_tokens,
        flat_last=("frac_reward_zero_std", "share of prompts"),
    )  # fmt: skip
    return GRPOResult(**fields)


def _advantages(round_: group.GroupRound, config: GRPO) -> Tensor:
    """(M,) float32: r_i less the mean of the prompt's scores, over their spread."""
    scale, unbiased, eps = config.scale, config.unbiased, config.eps
    return group_normalised(round_.grouped, scale=scale, unbiased=unbiased, eps=eps).flatten().float()


def _term(student: Student, round_: group.GroupRound, advantages: Tensor, config: GRPO) -> group.Term:
    """The loss of an update: clipped ratios of tokens, the KL, and how they are averaged."""
    low, high = clips(config.clip, config.clip_high)

    def term(window: Window, part: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = round_.rolled.rows(part)
        mask, old, credit = round_.mask[rows], round_.old[rows], advantages[rows, None]
        new = group.logprobs(student.module, round_.rolled, part, old)
        out = clipped_surrogate(new, old, credit.expand_as(new), low=low, high=high)
        each = out.loss
        if round_.coef and student.moved:  # before the first step the KL and its gradient are 0
            each = each + round_.coef * PENALTIES[config.kl.estimator](new, round_.reference[rows])
        share = AGGREGATIONS[config.aggregation](each, mask, window)
        return share, group.moved(round_, rows, new, out, credit, window)

    return term
