"""Settings that several trainers share; each trainer's own file has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from calibrant.core import Frozen
from calibrant.maths.kl import ESTIMATORS, PENALTIES, AdaptiveKL, FixedKL, Unit
from calibrant.maths.pair_losses import LOSSES, Option, check_options
from calibrant.maths.shaping import Moments, missing_end
from calibrant.models.fit import FIT_ALIASES, Fit
from calibrant.models.lora import LoRA

Old = Literal["auto", "behaviour", "rescored"]
"""Where pi_old comes from."""

_OPTIONS = ("beta", "label_smoothing", "gamma", "lam", "tau", "length_average", "reference_free",
            "divergence", "alpha")  # fmt: skip


class Settings(Frozen):
    """Settings that are refused, with every problem named, where they contradict each other."""

    def contradictions(self) -> list[str]:
        """What is wrong with these settings together, a sentence each; a subclass adds its own."""
        return []

    @model_validator(mode="after")
    def _nothing_contradicts(self) -> Self:
        if problems := self.contradictions():
            raise ValueError("; ".join(problems))
        return self


class Rounds(Settings):
    """Settings of an RL method."""

    steps: int = Field(default=100, ge=1)
    """Rounds of rollouts, scoring and updates."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts in one round."""
    samples: int = Field(default=1, ge=1)
    """Replies sampled for each prompt of a round."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of a reply; prompts that leave no room for it are left out and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; every log-prob (old, new, reference) divides its logits by it."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replies of a round."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps in one pass."""
    watch_every: int = Field(default=10, ge=1)
    """Rounds between two checks of the watcher, where there is one."""
    lora: LoRA | None = None
    """Train low-rank adapters of the policy alone; the saved model has them merged. None: all weights."""
    fit: Fit = Fit(lr=1e-4, eps=1e-5, schedule="linear")
    """The policy's optimiser. Full fine-tuning of a billion weights needs a learning rate of about 1e-6."""

    def contradictions(self) -> list[str]:
        """More minibatches than prompts."""
        problems = super().contradictions()
        if self.minibatches > self.batch_size:
            problems.append(f"{self.minibatches} minibatches cannot be cut from {self.batch_size} prompts")
        return problems


class PairLoss(Settings):
    """Settings of the loss of a pair of replies, for every method of DPO's family."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "loss_type": "loss", "simpo_gamma": "gamma", "rpo_alpha": "nll", "f_divergence_type": "divergence",
        "f_alpha_divergence_coef": "alpha", "discopop_tau": "tau",
    }  # fmt: skip

    loss: str = "sigmoid"
    """Which loss: sigmoid (DPO), conservative (cDPO), robust, hinge, ipo, simpo, orpo, nca_pair, sppo_hard,
    apo_zero, apo_down, ...: all are in docs/train.dpo.md."""
    beta: float | None = Field(default=None, gt=0)
    """Strength of the KL constraint: higher stays closer to the reference. None: the loss's own default,
    often 0.1."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)
    """Share of the labels that is wrong (conservative, robust, aot), or the smoothing of exo_pair."""
    gamma: float | None = Field(default=None, ge=0)
    """SimPO's target margin, in nats x beta."""
    lam: float | None = Field(default=None, ge=0)
    """ORPO's weight of the odds ratio."""
    tau: float | None = Field(default=None, gt=0)
    """DiscoPOP's temperature."""
    length_average: bool | None = None
    """IPO: means over tokens (as its authors and TRL have it) or sums."""
    reference_free: bool | None = None
    """Leave the reference out of the loss: it likes both replies equally."""
    divergence: str | None = None
    """Distance from the reference: reverse_kl, forward_kl, js, or alpha (f-DPO, 2309.16240)."""
    alpha: float | None = None
    """Order of the divergence 'alpha'."""
    nll: float = Field(default=0.0, ge=0)
    """Weight of the chosen reply's negative log-likelihood per token; it counters likelihood displacement."""
    fit: Fit = Fit()
    """The optimiser."""

    @property
    def options(self) -> dict[str, Option]:
        """The given options of the loss."""
        return {name: value for name in _OPTIONS if (value := getattr(self, name)) is not None}

    def contradictions(self) -> list[str]:
        """An option that the loss ignores, or micro-batches of a loss over the whole batch."""
        problems = super().contradictions() + check_options(self.loss, self.options)
        if self.loss in LOSSES and not LOSSES[self.loss].accumulation_invariant and self.fit.micro_tokens:
            problems.append(f"loss '{self.loss}' looks at a whole batch, so fit.micro_tokens cannot cut it")
        return problems


class KL(Frozen):
    """KL penalty to the reference policy."""

    coef: float = Field(default=0.05, ge=0)
    """Reward given up for one nat; where there is a target, where the coefficient starts."""
    place: Literal["reward", "loss"] = "reward"
    """Take it off the reward of each token, or add it to the loss."""
    estimator: Literal["k1", "k2", "k3", "k3+"] = "k1"
    """In the reward k1, k2 or k3; in the loss k2 (the gradient of the KL), k3 (a biased one) or k3+ (the
    value of k3, the gradient of k2). k1 in the reward and k2 in the loss ask for the same."""
    target: float | None = Field(default=None, gt=0)
    """Steer the coefficient so that the KL comes here, in nats per ``unit``. None: it stays."""
    horizon: float = Field(default=10_000, gt=0)
    """With a target: replies over which the coefficient may change by a factor of about 1.2."""
    unit: Unit = "sequence"
    """With a target: nats of a whole reply (6 is common), or of a token (0.1 is)."""

    @model_validator(mode="after")
    def _fits_its_place(self) -> KL:
        known = ESTIMATORS if self.place == "reward" else PENALTIES
        if self.estimator not in known:
            why = "it has no gradient there" if self.estimator == "k1" else "its gradient has no place there"
            raise ValueError(f"'{self.estimator}' in the {self.place}: {why}; take one of {', '.join(known)}")
        if self.target is not None and self.coef == 0:
            raise ValueError("a coefficient of 0 cannot be steered to a target: it is multiplied")
        return self

    def controller(self) -> FixedKL | AdaptiveKL:
        """The coefficient at the start."""
        if self.target is None:
            return FixedKL(self.coef)
        return AdaptiveKL(self.coef, self.target, self.horizon, self.unit)


class Shaping(Frozen):
    """Reward shaping, in this order."""

    normalise: bool = False
    """Subtract the running mean of all scores so far and divide by their running standard deviation."""
    clip: float | None = Field(default=None, gt=0)
    """Hold scores within plus or minus this."""
    missing_end: float | None = Field(default=None, ge=0)
    """Penalty for a reply that was cut off before it ended. None: it is scored as it is."""
    missing_end_mode: Literal["subtract", "replace"] = "subtract"
    """Subtract the penalty (TRL), or put minus the penalty in place of the score (Huang et al.)."""
    whiten: bool = False
    """Divide the rewards of all tokens by their standard deviation; their mean stays."""

    def shaped(self, scores: Tensor, ended: Tensor, moments: Moments) -> Tensor:
        """Scores (M,) after all but the whitening; ``moments`` have seen these scores already."""
        if self.normalise:
            scores = moments.normalised(scores)
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        if self.missing_end is not None:
            replaced = self.missing_end_mode == "replace"
            scores = missing_end(scores, ended, self.missing_end, replace=replaced)
        return scores


class Grouped(Rounds):
    """Settings of an RL method that compares the replies to one prompt with each other."""

    old_logprobs: Old = "auto"
    """pi_old as the rollout reported it (behaviour), or from one more pass before the update (rescored).
    auto: behaviour in full precision, rescored in half, where rollout and training passes round
    differently."""
    kl: KL = KL()
    """KL penalty to the reference policy (the input model)."""
    shaping: Shaping = Shaping()
    """Reward shaping before the advantages."""

    def contradictions(self) -> list[str]:
        """Whitened tokens."""
        problems = super().contradictions()
        if self.shaping.whiten:
            problems.append("shaping.whiten scales rewards of tokens; here a reply has one reward")
        return problems
