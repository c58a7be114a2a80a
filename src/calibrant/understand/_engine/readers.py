"""What is read off the logits of the last position: a number a row, or a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Reader(Protocol):
    """Reads one number, or K of them, off each row of logits."""

    @property
    def columns(self) -> Tensor | None:
        """Ids of the only tokens whose logits are needed, in order; None: all of them."""
        ...

    def __call__(self, logits: Tensor, examples: Tensor) -> Tensor:
        """(R, V) or (R, len(columns)) float logits of the examples (R,) -> (R,) or (R, K)."""
        ...


class LogitDifference:
    """Logit of the right token less that of the foil; in logits, which is nats of their odds."""

    def __init__(self, answers: Sequence[int], foils: Sequence[int]) -> None:
        """One id an example each."""
        right, wrong = torch.tensor(list(answers)), torch.tensor(list(foils))
        self.columns: Tensor | None = torch.unique(torch.cat([right, wrong]))
        self._right, self._wrong = (torch.searchsorted(self.columns, ids) for ids in (right, wrong))

    def __call__(self, logits: Tensor, examples: Tensor) -> Tensor:
        """(R,)."""
        right, wrong = self._right.to(logits.device)[examples], self._wrong.to(logits.device)[examples]
        return logits.gather(1, right[:, None])[:, 0] - logits.gather(1, wrong[:, None])[:, 0]


class LogProb:
    """Log-probability of the right token, in nats."""

    columns: Tensor | None = None

    def __init__(self, answers: Sequence[int]) -> None:
        """One id an example."""
        self._answers = torch.tensor(list(answers))

    def __call__(self, logits: Tensor, examples: Tensor) -> Tensor:
        """(R,)."""
        answers = self._answers.to(logits.device)[examples][:, None]
        return logits.log_softmax(-1).gather(1, answers)[:, 0]


class LogProbAndDifference:
    """Log-probability of the right token, and its logit less the foil's, from the same logits."""

    columns: Tensor | None = None

    def __init__(self, answers: Sequence[int], foils: Sequence[int]) -> None:
        """One id an example each."""
        self._answers, self._foils = torch.tensor(list(answers)), torch.tensor(list(foils))

    def __call__(self, logits: Tensor, examples: Tensor) -> Tensor:
        """(R, 2)."""
        right, wrong = (
            logits.gather(1, ids.to(logits.device)[examples][:, None])[:, 0]
            for ids in (self._answers, self._foils)
        )
        return torch.stack([right - logits.logsumexp(-1), right - wrong], dim=1)
