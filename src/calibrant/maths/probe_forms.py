"""What a logistic regression is solved for: weights and bias, or a number for each row.

Both have scores, a gradient, a penalty, and Newton's step. Weights and bias suit many rows: a factor takes a
matrix of products, dearer than many products with vectors, so that it serves several steps, by conjugate
gradients. A number for each row suits many features: the rows' products are the same throughout.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.core.errors import NumericalError

_HALVES = 4
_INNER = 8
"""Most conjugate gradients with an old factor: they cost what a new one does."""
_NOTHING = 1e-30


class Primal:
    """Unknowns: w and b."""

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, l2: float, wide: Tensor | None = None) -> None:
        self.x, self.y, self.c, self.l2 = x, y, c, l2
        self.wide: Tensor | None = wide
        self.turned: Tensor | None = None if wide is None else wide.T
        self.ridge = y.new_full((x.shape[1] + 1,), l2)
        self.ridge[-1] = 0.0

    @staticmethod
    def coarse(x: Tensor) -> Tensor:
        """What steps in float32 read: the features and a one."""
        return _with_ones(x, torch.float32)

    def rough(self, coarse: Tensor) -> Primal:
        """The same in float32."""
        return Primal(self.x, self.y.float(), self.c.float(), self.l2, coarse)

    def start(self) -> Tensor:
        """All zeros."""
        return torch.zeros_like(self.ridge)

    def plane(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (D,) and bias."""
        return solution[:-1], solution[-1]

    def scores(self, solution: Tensor) -> Tensor:
        """Log-odds (N,) of rows."""
        w, b = solution[:-1], solution[-1]
        return self.x @ w + b if self.wide is None else self.wide @ solution

    def pull(self, solution: Tensor, rest: Tensor) -> Tensor:
        """Downhill: minus the gradient."""
        turned = self.turned
        plain = torch.cat([self.x.T @ rest, rest.sum()[None]]) if turned is None else turned @ rest
        return plain.addcmul_(self.ridge, solution, value=-1)

    def step(self, held: Held | None, pull: Tensor, curve: Tensor, near: float) -> Step:
        """Newton's; with what an older one divided by, by conjugate gradients."""
        if self.wide is None or self.turned is None:
            self.wide = _with_ones(self.x, self.x.dtype)
            self.turned = self.wide.T
        if held is None:
            bend = _gram((self.wide * curve.sqrt()[:, None]).T)
            bend.diagonal().add_(self.ridge)
            held = Held(_factor(bend), curve, curve)
            return Step(_solved(held, pull), held, pull.dtype == torch.float64)
        way = _solved(held, pull)
        found, rest, last = torch.zeros_like(pull), pull.clone(), float(pull @ way)
        enough = near * near * last
        for _ in range(_INNER):
            bent = (self.turned @ (self.wide @ way).mul_(curve)).addcmul_(self.ridge, way)
            along = float(way @ bent)
            if not along > _NOTHING:
                return Step(_solved(held, pull), held, True)
            found.add_(way, alpha=last / along)
            rest.sub_(bent, alpha=last / along)
            back = _solved(held, rest)
            left = float(rest @ back)
            if left <= enough:
                return Step(found, held, False)
            way, last = back.add_(way, alpha=left / last), left
        return Step(found, held, True)

    def products(self, one: Tensor, other: Tensor, _: Tensor) -> Tensor:
        """Of directions (i, K) and (j, K) under the penalty."""
        return (one * self.ridge) @ other.T

    def penalty(self, solution: Tensor, _: Tensor) -> float:
        """Twice what a solution pays: l2 times its squared length."""
        return float((solution * self.ridge) @ solution)


def _with_ones(x: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.ones((len(x), x.shape[1] + 1), dtype=dtype, device=x.device)
    wide[:, :-1] = x
    return wide


class Dual:
    """Unknowns: a of each row, and b."""

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, l2: float, kernel: Tensor | None = None) -> None:
        self.x, self.y, self.c, self.l2, self.kernel = x, y, c, l2, kernel

    @staticmethod
    def coarse(x: Tensor) -> Tensor:
        """The rows' products: many steps pay for them, the few last ones do not."""
        return _gram(x.float())

    def rough(self, coarse: Tensor) -> Dual:
        """The same in float32."""
        return Dual(self.x, self.y.float(), self.c.float(), self.l2, coarse)

    def start(self) -> Tensor:
        """All zeros."""
        return self.y.new_zeros(len(self.y) + 1)

    def plane(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (D,) and bias."""
        return self.x.T @ solution[:-1], solution[-1]

    def scores(self, solution: Tensor) -> Tensor:
        """Log-odds (N,) of rows."""
        a = solution[:-1]
        plain = self.x @ (self.x.T @ a) if self.kernel is None else self.kernel @ a
        return plain + solution[-1]

    def pull(self, solution: Tensor, rest: Tensor) -> Tensor:
        """c (y - p) - l2 a, which is 0 at the least loss, and minus the sum of a, which is, too."""
        a = solution[:-1]
        return torch.cat([rest - self.l2 * a, -a.sum()[None]])

    def step(self, held: Held | None, pull: Tensor, curve: Tensor, _: float) -> Step:
        """(l2 / W + K) da + db = pull / W, and a + da sums to 0."""
        if held is None:
            matrix = self._factor(curve)
            sides = torch.stack([pull[:-1] / curve, torch.ones_like(curve)], 1)
            alone, beside = torch.cholesky_solve(sides, matrix).unbind(1)
            held = Held(matrix, curve, beside)
        else:
            alone = _solved(held, pull[:-1] / held.curve)
        bias = (alone.sum() - pull[-1]) / held.beside.sum()
        return Step(torch.cat([alone - bias * held.beside, bias[None]]), held, True)

    def _factor(self, curve: Tensor) -> Tensor:
        if self.kernel is None:
            self.kernel = _gram(self.x)
        across = self.kernel.diagonal()
        own = across.clone()
        across.add_(self.l2 / curve)
        try:
            return _factor(self.kernel)
        finally:
            across.copy_(own)

    def products(self, one: Tensor, other: Tensor, scores: Tensor) -> Tensor:
        """Of directions (i, K) and (j, K) under the penalty; ``scores`` (j, N) are those of the latter."""
        return self.l2 * (one[:, :-1] @ (scores - other[:, -1:]).T)

    def penalty(self, solution: Tensor, scores: Tensor) -> float:
        """Twice what a solution pays: l2 times its squared length."""
        return self.l2 * float(solution[:-1] @ (scores - solution[-1]))


class Held(NamedTuple):
    """What a Newton step divides by."""

    matrix: Tensor
    """Cholesky's factor: (D + 1, D + 1) of w and b, (N, N) of rows."""
    curve: Tensor
    """(N,) of the rows when it was made."""
    beside: Tensor
    """Of rows: what they lose (N,) where the bias gains 1."""


class Step(NamedTuple):
    """One of Newton's, or nearly."""

    move: Tensor
    held: Held
    tired: bool
    """Whether the next one should divide by something new."""


def _solved(held: Held, side: Tensor) -> Tensor:
    return torch.cholesky_solve(side[:, None], held.matrix)[:, 0]


def _gram(x: Tensor) -> Tensor:
    """x x^T, (N, N); each pair of blocks of rows is multiplied once."""
    count = len(x)
    ends = [count * part // _HALVES for part in range(_HALVES + 1)]
    found = x.new_empty((count, count))
    for start, end in pairwise(ends):
        torch.mm(x[start:end], x[:end].T, out=found[start:end, :end])
        found[:start, start:end] = found[start:end, :start].T
    return found


def _factor(bend: Tensor) -> Tensor:
    """Of Cholesky; (K, K) is positive definite."""
    factor: Tensor
    factor, wrong = torch.linalg.cholesky_ex(bend)
    if int(wrong):
        raise NumericalError("the penalty is too small for these features", hint="raise l2")
    return factor
