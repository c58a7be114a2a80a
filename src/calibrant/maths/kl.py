"""Kullback-Leibler divergence of a policy from its reference: estimators, penalties, controllers.

With d = ln pi - ln ref of a token that pi drew, three numbers estimate KL(pi || ref) in nats (Schulman 2020,
"Approximating KL divergence"):

    k1 = d                      unbiased; often negative on one token
    k2 = d^2 / 2                biased; never negative
    k3 = exp(-d) - 1 + d        unbiased; never negative; a heavy tail where ref likes what pi does not

*As a value* (logged, or taken off a reward) use ``estimate``. *As a loss*, what counts is the gradient, and
there the order is another (Liu et al. 2025, arXiv 2510.01555): use ``penalty``. On tokens that pi drew,

    k1    has gradient zero in expectation, so it is no penalty at all and is not offered
    k2    has the gradient of the KL: the same as k1 taken off the reward
    k3    has the gradient of KL(ref || pi) instead, since its exp(-d) is not reweighted: biased
    k3+   shows the value of k3 and has the gradient of k2 (verl's name for it)

exp(-d) is bounded *before* the exponential, at ``BOUND`` nats. A clamp after it gives 0 times infinity in the
gradient (OpenRLHF, fixed in its pull request 1335), and a plain clamp before it gives gradient zero where the
pull should be strongest; here only the size is bounded, and the direction stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
Penalty = Literal["k2", "k3", "k3+"]
Unit = Literal["sequence", "token"]

BOUND = 20.0
"""Largest exponent, in nats: exp(20) = 4.9e8 is finite in float32 with room for sums."""


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """ln pi - ln ref of drawn tokens (any shape), in nats."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """(ln pi - ln ref)^2 / 2 of drawn tokens (any shape), in nats."""
    return 0.5 * (policy - reference) ** 2


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """ref / pi - 1 - ln(ref / pi) of drawn tokens (any shape), in nats; its ratio is bounded, see above."""
    return bounded(reference - policy).expm1() + (policy - reference)


def k3_plus(policy: Tensor, reference: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2 (any shape), in nats."""
    square = k2(policy, reference)
    return square + (k3(policy, reference) - square).detach()


def bounded(exponent: Tensor) -> Tensor:
    """``exponent``, at most ``BOUND``; the gradient passes as if it were not bounded."""
    return exponent - (exponent - BOUND).clamp(min=0).detach()


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
PENALTIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k2": k2, "k3": k3, "k3+": k3_plus}


def estimate(name: Estimator, policy: Tensor, reference: Tensor) -> Tensor:
    """Value of an estimator at each drawn token, same shape as the log-probs, in nats; no gradient."""
    return ESTIMATORS[name](policy.detach(), reference.detach())


def penalty(name: Penalty, policy: Tensor, reference: Tensor) -> Tensor:
    """What to add to a loss at each drawn token, same shape; the gradient reaches ``policy`` alone."""
    return PENALTIES[name](policy, reference.detach())


def categorical_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """Exact KL(pi || ref) in nats, (...), of distributions given as logits or log-probs (..., V)."""
    policy, reference = policy.log_softmax(-1), reference.log_softmax(-1)
    # A token that pi never draws costs nothing, though ln 0 times 0 is NaN.
    apart = (policy - reference).masked_fill(policy == -math.inf, 0.0)
    return (policy.exp() * apart).sum(-1)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the model that it draws from, in nats: ln n - (n - 1) / n.

    Exact where no two replies tie, an upper bound else (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class FixedKL:
    """A KL coefficient that stays as it is."""

    coef: float
    """Reward given up for one nat."""

    def after(self, nats: float, sequences: int, tokens: int) -> FixedKL:
        """The controller for the next batch: this one."""
        return self

    def state(self) -> dict[str, float]:
        """What ``restored`` needs."""
        return {"coef": self.coef}

    def restored(self, state: Mapping[str, float]) -> FixedKL:
        """This controller as it stood when ``state`` was taken."""
        return replace(self, coef=state["coef"])


@dataclass(frozen=True)
class AdaptiveKL:
    """A coefficient that steers the KL to a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    coef is multiplied by 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon after n sequences.
    """

    coef: float
    """Reward given up for one nat."""
    target: float
    """The KL wanted, in nats per ``unit``: 6 a sequence in Ziegler's and trlx, 0.1 a token in verl."""
    horizon: float
    """Sequences over which the coefficient may change by a factor of about 1.2."""
    unit: Unit = "sequence"
    """What ``target`` is a mean over: whole sequences (sums of their tokens) or tokens."""

    def after(self, nats: float, sequences: int, tokens: int) -> AdaptiveKL:
        """The controller for the next batch.

        Args:
            nats: KL of the whole batch, summed over all tokens of all sequences.
            sequences: how many replies that was.
            tokens: how many tokens that was.
        """
        kl = nats / (sequences if self.unit == "sequence" else tokens)
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coef=self.coef * (1 + error * sequences / self.horizon))

    def state(self) -> dict[str, float]:
        """What ``restored`` needs."""
        return {"coef": self.coef}

    def restored(self, state: Mapping[str, float]) -> AdaptiveKL:
        """This controller as it stood when ``state`` was taken."""
        return replace(self, coef=state["coef"])
