"""Settings of PPO, shared by ``ppo``, its rollouts and its optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from calibrant.maths.policy_losses import Aggregation
from calibrant.models.fit import FIT_ALIASES, Fit
from calibrant.train._settings import KL, Old, Rounds, Shaping

Start = Literal["auto", "reward", "policy"]
"""What the critic starts from."""


class PPO(Rounds):
    """Settings of PPO; every stabiliser of Huang et al. (2403.17031) is a switch."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "num_ppo_epochs": "epochs", "num_mini_batches": "minibatches", "num_generations": "samples",
        "response_length": "max_tokens", "cliprange": "clip", "cliprange_value": "value_clip",
        "vf_coef": "value_weight", "kl_coef": "kl.coef", "kl_estimator": "kl.estimator",
        "whiten_rewards": "shaping.whiten", "missing_eos_penalty": "shaping.missing_end",
    }  # fmt: skip

    batch_size: int = Field(default=32, ge=1)
    """Prompts in one round."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the replies of a round."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda: 1 sums all future rewards, 0 trusts the critic after one token."""
    clip: float | None = Field(default=0.2, gt=0)
    """The ratio pi / pi_old counts from 1 - clip to 1 + clip. None: no clip."""
    clip_high: float | None = Field(default=None, gt=0)
    """Another upper clip. None: ``clip`` on both sides."""
    aggregation: Aggregation = "token_mean"
    """How tokens are averaged: token_mean, sequence_mean, constant, micro_token_mean."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the policy's entropy a token, in nats, in the objective."""
    score_at: Literal["last", "after"] = "last"
    """The score is the reward of the last generated token, or of the position after it (TRL up to 1.12)."""
    truncated: Literal["terminal", "bootstrap"] = "terminal"
    """Return after a truncated reply: terminal (0), or bootstrapped from the critic."""
    old_logprobs: Old = "auto"
    """pi_old as the rollout reported it (behaviour), or from one more pass before the update (rescored).
    auto: behaviour in full precision, rescored in half, where rollout and training passes round
    differently."""
    whiten_advantages: bool = True
    """Advantages of a round get mean 0 and standard deviation 1 over its tokens."""
    unbiased: bool = True
    """Whitening divides a variance by n - 1 (TRL), else by n (Huang et al.)."""
    critic: Start = "auto"
    """Initialise the critic from the reward model, from the policy's trunk, or (auto) from the reward model
    where possible."""
    head_scale: float | None = Field(default=None, ge=0)
    """Scale of a new critic's head, N(0, 1 / (width + 1)): 0 predicts 0 everywhere. None: 1."""
    critic_warmup: int = Field(default=0, ge=0)
    """Rounds at the start in which only the critic is trained."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """Value clipping: no gradient once a value is this far from the rollout's. None: no clip."""
    value_weight: float = Field(default=1.0, gt=0)
    """Weight of the critic's loss. AdamW is nearly invariant to it; gradient clipping is not."""
    stop_kl: float | None = Field(default=None, gt=0)
    """End a round's updates once pi is this far from pi_old, in nats a token (half the mean squared
    log-ratio)."""
    kl: KL = KL()
    """KL penalty to the reference policy (the input model)."""
    shaping: Shaping = Shaping()
    """Reward shaping before the advantages."""
    fit: Fit = Fit(lr=1e-4, eps=1e-5, schedule="linear")
    """The policy's optimiser. Full fine-tuning of a billion weights needs a learning rate of about 3e-6."""
    critic_fit: Fit | None = None
    """The critic's optimiser. None: as the policy's."""

    def contradictions(self) -> list[str]:
        """Switches that exclude each other."""
        problems = super().contradictions()
        if self.truncated == "bootstrap" and self.shaping.missing_end is not None:
            problems.append(
                "truncated = 'bootstrap' says that a cut is no end, shaping.missing_end punishes it"
            )
        if self.truncated == "bootstrap" and self.score_at == "after":
            problems.append(
                "score_at = 'after' gives the place behind a reply a step of its own: no bootstrap"
            )
        if self.critic == "reward" and self.head_scale is not None:
            problems.append("critic = 'reward' has a head already, so head_scale would be ignored")
        if self.critic_warmup >= self.steps:
            problems.append(
                f"critic_warmup = {self.critic_warmup} leaves no step of {self.steps} to learn in"
            )
        return problems
