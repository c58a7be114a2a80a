"""Logistic regressions of many layers at once, with an L2 penalty, by Newton's method in float64.

    minimise  sum_i c_i log(1 + exp(-s_i (b + w . x_i)))  +  l2 / 2 |w|^2        s_i = 1 or -1; b is free

for each layer by itself: scikit-learn's ``LogisticRegression(C=1 / l2)``. Convex, so there is one answer.
Where features outnumber rows it is sought among the rows' combinations, w = sum_i a_i x_i, which the penalty
never leaves (Rasmussen & Williams 2006, algorithm 3.1, with a free bias): N unknowns instead of D. Labels
that a plane separates have a finite answer, too, because of the penalty.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from calibrant.core.errors import InputError, NumericalError

_STEPS = 100
_TINY = 1e-10  # curvature of a row that is certain; keeps its working response finite
_SETTLED = 1e-6
"""Largest move of a score, relative, in the last step: what is left is about its square."""
_ROUGH = 1e-3
"""The same in float32, where most steps are made; what is left is done in float64."""
_HALVES = 4


class Planes(NamedTuple):
    """One regression a layer."""

    weight: Tensor
    """(L, D) float64."""
    bias: Tensor
    """(L,) float64."""

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds (L, M) of rows (L, M, D)."""
        return (x @ self.weight[..., None])[..., 0] + self.bias[:, None]


def logistic_planes(x: Tensor, labels: Tensor, l2: float, weights: Tensor | None = None) -> Planes:
    """Regressions of ``labels`` on ``x``, one a layer.

    Args:
        x: (L, N, D) features; (1, N, D) where one layer has several labellings.
        labels: (N,) bool, or (L, N) where layers have labels of their own.
        l2: penalty, above 0.
        weights: (N,) or (L, N) of rows, above 0; None: 1 each.

    Raises:
        InputError: shapes that do not fit, one label only, or a penalty or weight that is not above 0.
        NumericalError: a feature is NaN or infinite, or a hundred steps were not enough.
    """
    x, y, c = _checked(x, labels, l2, weights)
    rows = x.shape[1]
    if x.shape[2] < rows:
        ones = x.new_ones((*x.shape[:2], 1))
        whole = torch.cat([x, ones], 2).expand(len(y), -1, -1)
        solution = _minimum(_Primal(whole, l2), y, c)
        return Planes(solution[:, :-1], solution[:, -1])
    solution = _minimum(_Dual(_gram(x).expand(len(y), rows, rows), l2), y, c)
    return Planes((solution[:, None, :-1] @ x)[:, 0], solution[:, -1])


class _Primal:
    """Unknowns: w and b."""

    def __init__(self, x: Tensor, l2: float) -> None:
        self.x, self.l2 = x, l2
        self.ridge = torch.full((x.shape[2],), l2, dtype=x.dtype, device=x.device)
        self.ridge[-1] = 0.0

    def part(self, which: Tensor) -> _Primal:
        return _Primal(self.x[which], self.l2)

    def rough(self) -> _Primal:
        return _Primal(self.x.float(), self.l2)

    def start(self, bias: Tensor) -> Tensor:
        solution = self.x.new_zeros((len(bias), self.x.shape[2]))
        solution[:, -1] = bias
        return solution

    def scores(self, solution: Tensor) -> Tensor:
        return (self.x @ solution[..., None])[..., 0]

    def step(self, solution: Tensor, _: Tensor, pull: Tensor, curve: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step, and what it does to the scores; ``pull`` is c (y - p), ``curve`` c p (1 - p)."""
        slope = (pull[:, None] @ self.x)[:, 0] - self.ridge * solution
        bend = _gram((self.x * curve.sqrt()[..., None]).mT)
        bend.diagonal(dim1=1, dim2=2).add_(self.ridge)
        step = _solved(bend, slope[..., None])[..., 0]
        return step, self.scores(step)

    def penalty(self, solution: Tensor, _: Tensor) -> Tensor:
        return 0.5 * self.l2 * (solution[:, :-1] ** 2).sum(1)


class _Dual:
    """Unknowns: a of each row, and b."""

    def __init__(self, kernel: Tensor, l2: float) -> None:
        self.kernel, self.l2 = kernel, l2

    def part(self, which: Tensor) -> _Dual:
        return _Dual(self.kernel[which], self.l2)

    def rough(self) -> _Dual:
        return _Dual(self.kernel.float(), self.l2)

    def start(self, bias: Tensor) -> Tensor:
        solution = self.kernel.new_zeros((len(bias), self.kernel.shape[1] + 1))
        solution[:, -1] = bias
        return solution

    def scores(self, solution: Tensor) -> Tensor:
        return (self.kernel @ solution[:, :-1, None])[..., 0] + solution[:, -1:]

    def step(self, solution: Tensor, scores: Tensor, pull: Tensor, curve: Tensor) -> tuple[Tensor, Tensor]:
        """a + step solves (K + l2 / curve) a = scores + pull / curve - b, with b such that a sums to 0."""
        root = curve.sqrt()
        bend = root[..., None] * self.kernel * root[:, None]
        bend.diagonal(dim1=1, dim2=2).add_(self.l2)
        sides = torch.stack([root * scores + pull / root, root], 2)
        target, ones = (root[..., None] * _solved(bend, sides)).unbind(2)
        bias = target.sum(1) / ones.sum(1)
        there = torch.cat([target - bias[:, None] * ones, bias[:, None]], 1)
        return there - solution, self.scores(there) - scores

    def penalty(self, solution: Tensor, scores: Tensor) -> Tensor:
        return 0.5 * self.l2 * (solution[:, :-1] * (scores - solution[:, -1:])).sum(1)


def _minimum(form: _Primal | _Dual, y: Tensor, c: Tensor) -> Tensor:
    """Most steps in float32, the last ones in float64; where float32 does not do, all of them."""
    share = (c * y).sum(1) / c.sum(1)
    start = form.start((share / (1 - share)).log())
    with suppress(NumericalError):
        rough = _newton(form.rough(), start.float(), y.float(), c.float(), _ROUGH, 15)
        if bool(rough.isfinite().all()):
            start = rough.double()
    return _newton(form, start, y, c, _SETTLED, _STEPS)


def _newton(
    form: _Primal | _Dual, solution: Tensor, y: Tensor, c: Tensor, settled: float, steps: int
) -> Tensor:
    """Steps until no score moves; layers that are done leave the batch."""
    scores = form.scores(solution)
    done = torch.empty_like(solution)
    open_layers = torch.arange(len(y), device=y.device)
    for _ in range(steps):
        p = scores.sigmoid()
        step, moved = form.step(solution, scores, c * (y - p), (c * p * (1 - p)).clamp_min(_TINY))
        size = _size(form, (solution, scores), (step, moved), y, c)
        solution, scores = solution + size * step, scores + size * moved
        still = (size == 1)[:, 0] & (moved.abs().amax(1) <= settled * (1 + scores.abs().amax(1)))
        if bool(still.any()):
            done[open_layers[still]] = solution[still]
            if bool(still.all()):
                return done
            going = ~still
            open_layers, solution, scores = open_layers[going], solution[going], scores[going]
            form, y, c = form.part(going), y[going], c[going]
    raise NumericalError(
        f"logistic regression on {y.shape[1]} rows did not settle in {steps} steps",
        hint="raise l2, or scale the features",
    )


def _size(
    form: _Primal | _Dual, at: tuple[Tensor, Tensor], way: tuple[Tensor, Tensor], y: Tensor, c: Tensor
) -> Tensor:
    """(L, 1) largest of 1, 1/2, 1/4, ... at which a layer's loss does not rise; Newton can overshoot."""
    size = y.new_ones((len(y), 1))
    before, slack = _loss(form, *at, y, c), 1e-10 if y.dtype == torch.float64 else 1e-5
    for _ in range(40):
        after = _loss(form, at[0] + size * way[0], at[1] + size * way[1], y, c)
        worse = ~(after <= before + slack * (1 + before.abs()))
        if not bool(worse.any()):
            break
        size[worse] /= 2
    return size


def _loss(form: _Primal | _Dual, solution: Tensor, scores: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (c * (softplus(scores) - y * scores)).sum(1) + form.penalty(solution, scores)


def _gram(x: Tensor) -> Tensor:
    """x x^T of each layer, (L, N, N); each pair of blocks of rows is multiplied once."""
    count = x.shape[1]
    ends = [count * part // _HALVES for part in range(_HALVES + 1)]
    found = x.new_empty((len(x), count, count))
    for at, (start, end) in enumerate(pairwise(ends)):
        rows = x[:, start:end] @ x[:, : ends[at + 1]].mT
        found[:, start:end, :end] = rows
        found[:, :start, start:end] = rows[:, :, :start].mT
    return found


def _solved(bend: Tensor, sides: Tensor) -> Tensor:
    """bend (L, K, K) is positive definite; sides (L, K, R)."""
    factor, wrong = torch.linalg.cholesky_ex(bend)
    if bool(wrong.any()):
        raise NumericalError("the penalty is too small for these features", hint="raise l2")
    return torch.cholesky_solve(sides, factor)


def _checked(x: Tensor, labels: Tensor, l2: float, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels as 0 and 1 (L, N), and row weights (L, N), all float64."""
    if x.ndim != 3 or not x.numel():
        raise InputError(f"features of shape {tuple(x.shape)}", hint="give (layers, rows, features)")
    shape = (len(labels) if labels.ndim == 2 and len(x) == 1 else len(x), x.shape[1])
    if labels.dtype != torch.bool or tuple(labels.shape) not in (shape, shape[1:]):
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} for {shape[1]} rows",
            hint="give a truth value a row",
        )
    y = labels.to(x.device).double().expand(shape)
    if not 0 < l2 < float("inf"):
        raise InputError(f"l2 = {l2}", hint="give a penalty above 0: separable labels have no answer without")
    c = torch.ones_like(y) if weights is None else weights.to(x.device).double().expand(shape)
    if not bool((c > 0).all()) or not bool(c.isfinite().all()):
        raise InputError("a row's weight is not above 0", hint="leave such rows out")
    if bool(((y == y[:, :1]).all(1)).any()):
        raise InputError("all labels are the same", hint="a probe needs rows of either label")
    x = x.double()
    if not bool(x.isfinite().all()):
        raise NumericalError("a feature is NaN or infinite", hint="load the model in float32")
    return x, y, c
