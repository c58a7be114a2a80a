"""How well a sparse coder writes what it should: sums in float64, a row a group (a text), so that what is
made of them has an interval over groups.

    EV    = 1 - E||y - y^||^2 / (E||y||^2 - ||E y||^2)      the mean over all rows: predicting it scores 0
    gamma = E||y^||^2 / E[y . y^]                           below 1: it shrinks (2404.16014)

MSE is the mean over rows of ||y - y^||^2: neither the size nor the number of batches matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calibrant.maths.sparse_kernels import Pattern


class Tally:
    """Sums over rows, by group. Read ``ratios`` when all rows are in."""

    def __init__(self, groups: int, d_out: int, width: int) -> None:
        """Of ``groups`` groups, numbered from 0."""
        self.rows = torch.zeros(groups, dtype=torch.float64)
        self._error, self._size, self._written, self._dot, self._length, self._active = (
            torch.zeros(groups, dtype=torch.float64) for _ in range(6)
        )
        self._sum = torch.zeros(groups, d_out, dtype=torch.float64)
        self.fired = torch.zeros(width, dtype=torch.float64)
        """(m,) rows in which each feature fired."""

    def add(self, groups: Tensor, y: Tensor, found: Tensor, pattern: Pattern, values: Tensor) -> None:
        """Rows (B, d_out) as they are and as they were written, with the features (n,) that wrote them."""
        exact, written = y.double().cpu(), found.double().cpu()
        where, on = groups.long().cpu(), (values > 0).cpu()
        size, far = exact.square().sum(1), written.square().sum(1)
        self.rows.index_add_(0, where, torch.ones(len(y), dtype=torch.float64))
        self._error.index_add_(0, where, (exact - written).square().sum(1))
        self._size.index_add_(0, where, size)
        self._written.index_add_(0, where, far)
        self._dot.index_add_(0, where, (exact * written).sum(1))
        self._length.index_add_(0, where, torch.where(size > 0, (far / size.clamp(min=1e-300)).sqrt(), 0.0))
        self._sum.index_add_(0, where, exact)
        self._active.index_add_(
            0, where[pattern.rows.cpu()[on]], torch.ones(int(on.sum()), dtype=torch.float64)
        )
        self.fired.index_add_(0, pattern.columns.cpu()[on], torch.ones(int(on.sum()), dtype=torch.float64))

    @property
    def mean(self) -> Tensor:
        """(d_out,) of all rows."""
        return self._sum.sum(0) / self.rows.sum()

    def ratios(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> numerator and denominator of each group that has rows, (G,) each.

        The metric is the quotient of their sums; of 'unexplained' EV is 1 less that.
        """
        some = self.rows > 0
        rows = self.rows[some]
        spread = self._size[some] - 2 * self._sum[some] @ self.mean + rows * self.mean.square().sum()
        return {
            "unexplained": (self._error[some], spread),
            "mse": (self._error[some], rows),
            "l0": (self._active[some], rows),
            "l2_ratio": (self._length[some], rows),
            "gamma": (self._written[some], self._dot[some]),
        }

    def value(self, name: str) -> float:
        """One of ``ratios``, over all rows; also 'explained_variance'. NaN where nothing varies."""
        if name == "explained_variance":
            return 1.0 - self.value("unexplained")
        above, below = (part.sum() for part in self.ratios()[name])
        return float(above / below) if float(below) else float("nan")

    @property
    def density(self) -> Tensor:
        """(m,) share of rows in which each feature fires."""
        return self.fired / self.rows.sum()

    @property
    def dead(self) -> Tensor:
        """(m,) bool: never fired in these rows."""
        return self.fired == 0
