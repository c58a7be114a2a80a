"""Who errs how: true labels and each rater's confusion matrix, estimated together.

Dawid & Skene 1979, Applied Statistics 28(1), 20-28, by expectation-maximisation, with Dirichlet priors so
that a rater with few ratings is neither a saint nor a spammer. What EM climbs is the log posterior.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from calibrant.core import InputError
from calibrant.stats._sample import Floats
from calibrant.stats.agreement import Ratings


class Prior(NamedTuple):
    """Ratings that are imagined beforehand: pseudo-counts on top of a flat Dirichlet, 0 = none.

    The default makes every rater right in (2 + 1 / K) / 3 of three imagined ratings of each label.
    """

    right: float = 2.0
    """For each rater and true label, on the right label."""
    spread: float = 1.0
    """For each rater and true label, shared evenly by all labels."""
    prevalence: float = 1.0
    """On each label's own share."""


NO_PRIOR = Prior(0.0, 0.0, 0.0)
"""Maximum likelihood, as in the paper."""


class Consensus(NamedTuple):
    """What EM found, for N items, R raters and K labels."""

    posterior: Floats
    """(N, K) chance of each true label; rows sum to 1."""
    prevalence: Floats
    """(K,) share of each true label."""
    confusion: Floats
    """(R, K, K) chance that the rater (first) calls a true label (second) by a label (third)."""
    objective: Floats
    """(S,) log posterior before each step, up to a constant, in nats; it never falls."""

    @property
    def accuracy(self) -> Floats:
        """(R,) chance that a rating by each rater is right."""
        right: Floats = np.einsum("rkk,k->r", self.confusion, self.prevalence)
        return right


def dawid_skene(
    rated: Ratings, *, prior: Prior = Prior(), steps: int = 1000, tolerance: float = 1e-9
) -> Consensus:
    """Estimate true labels and raters' confusion matrices from ``rated``, starting from vote shares.

    A rater may have rated an item several times. Stops when a step gains less than ``tolerance`` nats an
    item, or after ``steps``. With two raters, or one rating an item, the data cannot tell who is right and
    the prior decides.

    Raises:
        InputError: there are no ratings, a negative pseudo-count, or no step.
    """
    if not rated.items:
        raise InputError("there are no ratings", hint="give at least one (item, rater, label)")
    if min(prior) < 0 or steps < 1:
        raise InputError(f"pseudo-counts must be 0 or more, steps 1 or more, got {prior}, steps={steps}")
    n, k = len(rated.items), len(rated.labels)
    flat = np.bincount(rated.item * k + rated.label, minlength=n * k).reshape(n, k)
    posterior = flat / flat.sum(axis=1, keepdims=True)
    climbed: list[float] = []
    for _ in range(steps):
        prevalence, confusion = _maximise(rated, posterior, prior)
        posterior, objective = _expect(rated, prevalence, confusion, prior)
        climbed.append(objective)
        if len(climbed) > 1 and climbed[-1] - climbed[-2] < tolerance * n:
            break
    return Consensus(posterior, prevalence, confusion, np.array(climbed))


def _imagined(prior: Prior, k: int) -> Floats:
    """Pseudo-counts of one rater, (K, K)."""
    return prior.right * np.eye(k) + prior.spread / k


def _maximise(rated: Ratings, posterior: Floats, prior: Prior) -> tuple[Floats, Floats]:
    """Prevalence (K,) and confusion (R, K, K) given the items' posteriors."""
    r, k = len(rated.raters), len(rated.labels)
    weight = posterior[rated.item]  # (V, K)
    cell = rated.rater * k + rated.label
    weighted = np.stack([np.bincount(cell, weights=weight[:, true], minlength=r * k) for true in range(k)])
    tables = weighted.reshape(k, r, k).transpose(1, 0, 2) + _imagined(prior, k)
    total = tables.sum(axis=2, keepdims=True)
    # A label that is nobody's truth leaves no row to learn from: any row will do, so a flat one.
    confusion = np.where(total > 0, tables / np.where(total > 0, total, 1), 1 / k)
    share = posterior.sum(axis=0) + prior.prevalence
    return share / share.sum(), confusion


def _expect(rated: Ratings, prevalence: Floats, confusion: Floats, prior: Prior) -> tuple[Floats, float]:
    """Posterior of each item (N, K), and the log posterior of the parameters, in nats."""
    n, k = len(rated.items), len(rated.labels)
    with np.errstate(divide="ignore"):
        log_share, log_told = np.log(prevalence), np.log(confusion)
    terms = log_told[rated.rater, :, rated.label]  # (V, K)
    joint = log_share + np.stack(
        [np.bincount(rated.item, terms[:, t], minlength=n) for t in range(k)], axis=1
    )
    evidence = logsumexp(joint, axis=1, keepdims=True)
    imagined = _imagined(prior, k)
    believed = float((imagined * np.where(imagined > 0, log_told, 0)).sum())
    believed += prior.prevalence * float(log_share.sum()) if prior.prevalence else 0.0
    return np.exp(joint - evidence), float(evidence.sum()) + believed
