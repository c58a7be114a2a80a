"""Logistic regressions of many layers at once, with an L2 penalty, by Newton's method in float64.

    minimise  sum_i c_i log(1 + exp(-s_i (b + w . x_i)))  +  l2 / 2 |w|^2        s_i = 1 or -1; b is free

for each layer by itself: scikit-learn's ``LogisticRegression(C=1 / l2)``. Convex, so there is one answer.
Where features outnumber rows it is sought among the rows' combinations, w = sum_i a_i x_i, which the penalty
never leaves (Rasmussen & Williams 2006, algorithm 3.1, with a free bias): N unknowns instead of D. Labels
that a plane separates have a finite answer, too, because of the penalty.

Each step also searches the last move, the length of the weights and the bias, whose scores are known: half as
many steps. They are made in float32, and the last digits come from steps with their factor and a gradient in
float64, which cost a few products with vectors.
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
_ROUGH = 3e-3
"""The same in float32."""
_REFINED, _LEFT = 12, 1e-9
"""Most steps of refinement, and the largest move of a score, relative, in the last."""
_SEARCHED = 4
_ALIKE = 1e-9  # two directions may be the same
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
    form = (_Primal if x.shape[2] < x.shape[1] else _Dual)(x, y, c, l2)
    return form.planes(_minimum(form))


class _Primal:
    """Unknowns: w and b."""

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, l2: float) -> None:
        self.y, self.c, self.l2 = y, c, l2
        self.x = torch.cat([x, x.new_ones((*x.shape[:2], 1))], 2)
        self.ridge = torch.full((self.x.shape[2],), l2, dtype=x.dtype, device=x.device)
        self.ridge[-1] = 0.0

    def rough(self) -> _Primal:
        """The same in float32."""
        return _Primal(self.x[..., :-1].float(), self.y.float(), self.c.float(), self.l2)

    def start(self) -> Tensor:
        return self.x.new_zeros((len(self.y), self.x.shape[2]))

    def planes(self, solution: Tensor) -> Planes:
        return Planes(solution[:, :-1], solution[:, -1])

    def scores(self, solution: Tensor) -> Tensor:
        return _times(self.x, solution)

    def pull(self, solution: Tensor, scores: Tensor) -> Tensor:
        """Downhill: minus the gradient."""
        return _times(self.x.mT, self.c * (self.y - scores.sigmoid())) - self.ridge * solution

    def factored(self, curve: Tensor) -> _Held:
        """Of the Hessian where a row's curvature is ``curve``."""
        root = curve.sqrt()
        bend = _gram((self.x * root[..., None]).mT)
        bend.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return _Held(_factor(bend), root)

    def step(self, held: _Held, pull: Tensor) -> Tensor:
        return _solved(held, pull[..., None])[..., 0]

    def products(self, one: Tensor, other: Tensor, _: Tensor) -> Tensor:
        """Of directions (L, K, i) and (L, K, j) under the penalty."""
        return one.mT @ (self.ridge[:, None] * other)


class _Dual:
    """Unknowns: a of each row, and b."""

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, l2: float) -> None:
        self.x, self.y, self.c, self.l2 = x, y, c, l2
        self.kernel: Tensor | None = None

    def rough(self) -> _Dual:
        """The same in float32, by the rows' products: many steps pay for them, the few last ones do not."""
        form = _Dual(self.x.float(), self.y.float(), self.c.float(), self.l2)
        form.kernel = _gram(form.x)
        return form

    def start(self) -> Tensor:
        return self.x.new_zeros((len(self.y), self.x.shape[1] + 1))

    def planes(self, solution: Tensor) -> Planes:
        return Planes(_times(self.x.mT, solution[:, :-1]), solution[:, -1])

    def scores(self, solution: Tensor) -> Tensor:
        a = solution[:, :-1]
        plain = _times(self.x, _times(self.x.mT, a)) if self.kernel is None else _times(self.kernel, a)
        return plain + solution[:, -1:]

    def pull(self, solution: Tensor, scores: Tensor) -> Tensor:
        """c (y - p) - l2 a, which is 0 at the least loss, and minus the sum of a, which is, too."""
        a = solution[:, :-1]
        return torch.cat([self.c * (self.y - scores.sigmoid()) - self.l2 * a, -a.sum(1, keepdim=True)], 1)

    def factored(self, curve: Tensor) -> _Held:
        if self.kernel is None:
            self.kernel = _gram(self.x)
        root = curve.sqrt()
        bend = root[..., None] * self.kernel * root[:, None]
        bend.diagonal(dim1=1, dim2=2).add_(self.l2)
        return _Held(_factor(bend), root)

    def step(self, held: _Held, pull: Tensor) -> Tensor:
        """(l2 + W K) da + W db = pull with W = root^2, and a + da sums to 0."""
        root = held.root.to(pull)
        sides = torch.stack([pull[:, :-1] / root, root], 2)
        target, ones = (root[..., None] * _solved(held, sides)).unbind(2)
        bias = (target.sum(1) - pull[:, -1]) / ones.sum(1)
        return torch.cat([target - bias[:, None] * ones, bias[:, None]], 1)

    def products(self, one: Tensor, other: Tensor, scores: Tensor) -> Tensor:
        return self.l2 * one[:, :-1].mT @ (scores - other[:, -1:])


class _Held(NamedTuple):
    """What a Newton step divides by."""

    factor: Tensor
    """(L, K, K) of Cholesky."""
    root: Tensor
    """(L, N) square roots of the rows' curvatures."""


def _minimum(form: _Primal | _Dual) -> Tensor:
    """Newton's steps in float32; what is left in float64, by the factor of the last of them.

    Where that does not do, Newton's steps in float64.
    """
    share = (form.c * form.y).sum(1) / form.c.sum(1)
    start = form.start()
    start[:, -1] = (share / (1 - share)).log()
    with suppress(NumericalError):
        return _refined(form, *_newton(form.rough(), start.float(), _ROUGH, 15))
    return _newton(form, start, _SETTLED, _STEPS)[0]


def _newton(form: _Primal | _Dual, solution: Tensor, settled: float, steps: int) -> tuple[Tensor, _Held]:
    """Steps until no score moves, and what the last one divided by."""
    scores, before = form.scores(solution), list[tuple[Tensor, Tensor]]()
    for _ in range(steps):
        p = scores.sigmoid()
        held = form.factored((form.c * p * (1 - p)).clamp_min(_TINY))
        step = form.step(held, form.pull(solution, scores))
        move, moved, whole = _farthest(form, (solution, scores), [(step, form.scores(step)), *before])
        before = [(move, moved)]
        solution, scores = solution + move, scores + moved
        if bool((whole & (moved.abs().amax(1) <= settled * (1 + scores.abs().amax(1)))).all()):
            return solution, held
    raise NumericalError(
        f"logistic regression on {form.y.shape[1]} rows did not settle in {steps} steps",
        hint="raise l2, or scale the features",
    )


def _refined(form: _Primal | _Dual, rough: Tensor, held: _Held) -> Tensor:
    """Steps with an old factor and a new gradient: each leaves a small part of what was missing."""
    solution = rough.double()
    scores = form.scores(solution)
    for _ in range(_REFINED):
        step = form.step(held, form.pull(solution, scores))
        moved = form.scores(step)
        solution, scores = solution + step, scores + moved
        if bool((moved.abs().amax(1) <= _LEFT * (1 + scores.abs().amax(1))).all()):
            return solution
    raise NumericalError("a factor in float32 does not do", hint="take one in float64")


def _farthest(
    form: _Primal | _Dual, at: tuple[Tensor, Tensor], ways: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best move in the span of Newton's step, the last move, the weights as they are, and the bias.

    Their scores are known, so it is a search over a few numbers, by Newton's method again. Where the loss
    does not fall by it: Newton's step, half of it, a quarter, ... A step that was cut says nothing of how far
    there is to go: the third tensor (L,) is true where none was.
    """
    solution, scores = at
    bias = torch.zeros_like(solution)
    bias[:, -1] = 1.0
    ways = [
        *ways,
        (solution - solution[:, -1:] * bias, scores - solution[:, -1:]),
        (bias, torch.ones_like(scores)),
    ]
    moves, moved = (torch.stack(parts, 2) for parts in zip(*ways, strict=True))
    square = form.products(moves, moves, moved).double()
    slope = form.products(moves, solution[..., None], scores[..., None])[..., 0].double()
    where, there = moved.double(), scores.double()
    size = where.new_zeros((len(where), len(ways)))
    size[:, 0] = 1.0
    for _ in range(_SEARCHED):
        p = (there + _times(where, size)).sigmoid()
        down = _times(where.mT, form.c * (form.y - p)) - _times(square, size) - slope
        bend = where.mT @ (where * (form.c * p * (1 - p)).clamp_min(_TINY)[..., None]) + square
        bend += torch.diag_embed(_ALIKE * bend.diagonal(dim1=1, dim2=2) + _TINY)
        size = size + torch.linalg.solve(bend, down[..., None])[..., 0]
    size = size.nan_to_num(0.0, 0.0, 0.0).to(moves)
    before, (step, shift) = _loss(form, *at), ways[0]
    best, gone = _times(moves, size), _times(moved, size)
    worse = _above(_loss(form, solution + best, scores + gone), before)
    part, whole = torch.ones_like(solution[:, :1]), torch.ones_like(worse)
    for halved in range(40):
        if not bool(worse.any()):
            break
        whole = whole & ~worse if halved else whole
        best, gone = (
            torch.where(worse[:, None], part * step, best),
            torch.where(worse[:, None], part * shift, gone),
        )
        worse, part = _above(_loss(form, solution + best, scores + gone), before), part / 2
    return best, gone, whole & ~worse


def _above(after: Tensor, before: Tensor) -> Tensor:
    slack = 1e-10 if after.dtype == torch.float64 else 1e-5
    return ~(after <= before + slack * (1 + before.abs()))


def _loss(form: _Primal | _Dual, solution: Tensor, scores: Tensor) -> Tensor:
    penalty = form.products(solution[..., None], solution[..., None], scores[..., None])[:, 0, 0]
    return (form.c * (softplus(scores) - form.y * scores)).sum(1) + 0.5 * penalty


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """(L or 1, N, K) times (L, K), (L, N)."""
    if len(matrices) == 1:
        return vectors @ matrices[0].mT
    return (vectors[:, None] @ matrices.mT)[:, 0]  # two to three times as fast as matrix times column


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


def _factor(bend: Tensor) -> Tensor:
    """Of Cholesky; (L, K, K) is positive definite."""
    factor: Tensor
    factor, wrong = torch.linalg.cholesky_ex(bend)
    if bool(wrong.any()):
        raise NumericalError("the penalty is too small for these features", hint="raise l2")
    return factor


def _solved(held: _Held, sides: Tensor) -> Tensor:
    """Sides (L, K, R), in the factor's own precision."""
    found: Tensor = torch.cholesky_solve(sides.to(held.factor), held.factor)
    return found.to(sides)


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
    if not bool(x.sum().isfinite()) and not bool(x.isfinite().all()):  # the sum is quicker, and may overflow
        raise NumericalError("a feature is NaN or infinite", hint="load the model in float32")
    return x, y, c
