"""Reward shaping: from one score per reply to a reward per token. Tensors in, tensors out.

Tables are (M, T): M replies, T the tokens of the longest, a reply's tokens first. The score stands on the
*last generated token* (its end token where it has one). Two well-known programs (Huang et al. 2024, arXiv
2403.17031, and TRL up to 1.12) put it one place further, on the first padding, and give that place a value of
its own; ``after=True`` does so too. With gamma lam below 1 the advantages of the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.maths.rounding import ROUNDING, negligible


class Masks(NamedTuple):
    """Which places of a table (M, T) exist, bool."""

    tokens: Tensor
    """Generated tokens: what the policy is trained on."""
    steps: Tensor
    """Places with a reward and a value: the tokens, and with ``after`` one place more where there is room."""


def masks(lengths: Tensor, width: int, *, after: bool) -> Masks:
    """Masks of replies of ``lengths`` (M,) in a table of ``width`` columns."""
    place = torch.arange(width, device=lengths.device)[None]
    return Masks(place < lengths[:, None], place < lengths[:, None] + int(after))


def score_place(lengths: Tensor, width: int, *, after: bool) -> Tensor:
    """(M,) column of the score: length - 1, or with ``after`` the next one where the table has one."""
    return (lengths if after else lengths - 1).clamp(max=width - 1)


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, coef: float, *, after: bool) -> Tensor:
    """Reward of each token, (M, T): the score (M,) at its place, less ``coef`` times the KL (M, T) in nats.

    ``kl`` may hold anything beyond a reply's length.
    """
    rewards = (-coef * kl).masked_fill(~masks(lengths, kl.shape[1], after=False).tokens, 0.0)
    place = score_place(lengths, kl.shape[1], after=after)
    return rewards.scatter_add(1, place[:, None], scores[:, None].to(rewards.dtype))


def missing_end(scores: Tensor, ended: Tensor, penalty: float, *, replace: bool) -> Tensor:
    """Scores (M,) with a ``penalty`` for replies that were cut off (``ended`` (M,) bool is False).

    ``replace`` puts -penalty in place of the score (Huang et al.: -1, whatever the reply was worth), else the
    penalty is subtracted (TRL). For negative scores the two can differ in sign.
    """
    cut = torch.full_like(scores, -penalty) if replace else scores - penalty
    return torch.where(ended, scores, cut)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over what exists: 1 is a perfect critic, 0 knows the mean.

    Scalar; NaN where the returns do not vary by more than rounding, since then there is nothing to explain.
    """
    seen, wanted = values[mask].double(), returns[mask].double()
    spread = wanted.var(correction=0)
    flat = negligible(spread.sqrt(), wanted.abs().max()) if len(wanted) else torch.tensor(True)
    return torch.where(~flat, 1 - (wanted - seen).var(correction=0) / spread, math.nan)


@dataclass(frozen=True)
class Moments:
    """Running mean and spread of all scores so far (Chan, Golub and LeVeque 1983, parallel update)."""

    n: float = 0.0
    """Scores seen."""
    mean: float = 0.0
    """Their mean."""
    squares: float = 0.0
    """Sum of squared distances from it."""

    def after(self, scores: Tensor) -> Moments:
        """With these scores (M,) added."""
        count, new = float(len(scores)), scores.double()
        mean = float(new.mean())
        total, apart = self.n + count, mean - self.mean
        squares = self.squares + float(((new - mean) ** 2).sum()) + apart**2 * self.n * count / total
        return Moments(total, self.mean + apart * count / total, squares)

    def normalised(self, scores: Tensor) -> Tensor:
        """Scores (M,) with the running mean at 0 and the running standard deviation at 1.

        All 0 where all scores so far differ by no more than rounding.
        """
        spread = math.sqrt(self.squares / max(1.0, self.n))
        if spread <= ROUNDING * abs(self.mean):
            return torch.zeros_like(scores)
        return (scores - self.mean) / math.sqrt(spread**2 + 1e-8)

    def state(self) -> dict[str, float]:
        """What ``restored`` needs."""
        return {"n": self.n, "mean": self.mean, "squares": self.squares}

    @classmethod
    def restored(cls, state: Mapping[str, float]) -> Moments:
        """As they stood when ``state`` was taken."""
        return cls(state["n"], state["mean"], state["squares"])
