"""Logistic regressions of many layers, with an L2 penalty, by Newton's method in float64.

    minimise  sum_i c_i log(1 + exp(-s_i (b + w . x_i)))  +  l2 / 2 |w|^2        s_i = 1 or -1; b is free

for each layer by itself: scikit-learn's ``LogisticRegression(C=1 / l2)``. Convex, so there is one answer.
Where features outnumber rows it is sought among the rows' combinations, w = sum_i a_i x_i, which the penalty
never leaves (Rasmussen & Williams 2006, algorithm 3.1, with a free bias): N unknowns instead of D. Labels
that a plane separates have a finite answer, too, because of the penalty.

Each step also searches the last move, the length of the weights and the bias, whose scores are known: half as
many steps. They are made in float32, and the last digits come from steps with their factor and a gradient in
float64, which cost a few products with vectors.

One layer at a time: its copy in float32 and its factor lie in a core's cache, and no two layers' are in memory
at once. Labellings of one layer share what does not depend on labels.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from calibrant.core.errors import InputError, NumericalError

_TINY = 1e-10  # curvature of a row that is certain; keeps its working response finite
_REFINED, _LEFT = 12, 1e-9
"""Most steps of refinement, and the largest move of a score, relative, that is left to make."""
_FIRST, _SEARCHED = 2, 3
"""Steps that search, and how often they do: later ones are Newton's own, which then has few digits to gain."""
_INNER, _NEAR, _NEARER = 8, 0.1, 1e-3
"""Most conjugate gradients with an old factor, which cost what a new one does, and what they may leave."""
_NOTHING = 1e-30
_HALVES = 4


class _Until(NamedTuple):
    """When Newton's steps end."""

    settled: float
    """Largest move of a score, relative, in the last step."""
    steps: int


_ROUGH, _EXACT = _Until(3e-3, 25), _Until(1e-6, 100)
"""In float32; and in float64, where what is left is about the square of the last move."""


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
    y, c = _checked(x, labels, l2, weights)
    kind = _Primal if x.shape[2] < x.shape[1] else _Dual
    weight, bias = x.new_empty((len(y), x.shape[2]), dtype=torch.float64), torch.empty_like(y[:, 0])
    rows = coarse = None
    for layer in range(len(y)):
        if rows is None or len(x) > 1:
            rows = coarse = None  # frees those of the layer before
            rows = x[layer].double()
            coarse = kind.coarse(rows)
        form = kind(rows, y[layer], c[layer], l2)
        weight[layer], bias[layer] = form.plane(_minimum(form, coarse))
    return Planes(weight, bias)


class _Primal:
    """Unknowns: w and b."""

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, l2: float) -> None:
        self.x, self.y, self.c, self.l2 = x, y, c, l2
        self.ridge = x.new_full((x.shape[1] + 1,), l2)
        self.ridge[-1] = 0.0
        self.wide: Tensor | None = None

    @staticmethod
    def coarse(x: Tensor) -> Tensor:
        """What steps in float32 read: the features and a one."""
        return _with_ones(x, torch.float32)

    def rough(self, coarse: Tensor) -> _Primal:
        """The same in float32."""
        form = _Primal(coarse[:, :-1], self.y.float(), self.c.float(), self.l2)
        form.wide = coarse
        return form

    def start(self) -> Tensor:
        return torch.zeros_like(self.ridge)

    def plane(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        return solution[:-1], solution[-1]

    def scores(self, solution: Tensor) -> Tensor:
        return self.x @ solution[:-1] + solution[-1]

    def pull(self, solution: Tensor, rest: Tensor) -> Tensor:
        """Downhill: minus the gradient."""
        return torch.addcmul(torch.cat([self.x.T @ rest, rest.sum()[None]]), self.ridge, solution, value=-1)

    def step(self, held: _Held | None, pull: Tensor, curve: Tensor, near: float) -> _Step:
        """Newton's; with what an older one divided by, by conjugate gradients."""
        if self.wide is None:
            self.wide = _with_ones(self.x, self.x.dtype)
        if held is None:
            bend = _gram((self.wide * curve.sqrt()[:, None]).T)
            bend.diagonal().add_(self.ridge)
            held = _Held(torch.cholesky_inverse(_factor(bend)), curve, curve)
            return _Step(held.matrix @ pull, held, pull.dtype == torch.float64)
        way = held.matrix @ pull
        found, rest, last = torch.zeros_like(pull), pull.clone(), float(pull @ way)
        enough = near * near * last
        for _ in range(_INNER):
            bent = torch.addcmul(self.wide.T @ (curve * (self.wide @ way)), self.ridge, way)
            along = float(way @ bent)
            if not along > _NOTHING:
                return _Step(held.matrix @ pull, held, True)
            found.add_(way, alpha=last / along)
            rest.sub_(bent, alpha=last / along)
            back = held.matrix @ rest
            left = float(rest @ back)
            if left <= enough:
                return _Step(found, held, False)
            way, last = back.add_(way, alpha=left / last), left
        return _Step(found, held, True)

    def products(self, one: Tensor, other: Tensor, _: Tensor) -> Tensor:
        """Of directions (i, K) and (j, K) under the penalty."""
        return self.l2 * (one[:, :-1] @ other[:, :-1].T)


def _with_ones(x: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.ones((len(x), x.shape[1] + 1), dtype=dtype, device=x.device)
    wide[:, :-1] = x
    return wide


class _Dual:
    """Unknowns: a of each row, and b."""

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, l2: float, kernel: Tensor | None = None) -> None:
        self.x, self.y, self.c, self.l2, self.kernel = x, y, c, l2, kernel

    @staticmethod
    def coarse(x: Tensor) -> Tensor:
        """The rows' products: many steps pay for them, the few last ones do not."""
        return _gram(x.float())

    def rough(self, coarse: Tensor) -> _Dual:
        """The same in float32."""
        return _Dual(self.x, self.y.float(), self.c.float(), self.l2, coarse)

    def start(self) -> Tensor:
        return self.y.new_zeros(len(self.y) + 1)

    def plane(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        return self.x.T @ solution[:-1], solution[-1]

    def scores(self, solution: Tensor) -> Tensor:
        a = solution[:-1]
        plain = self.x @ (self.x.T @ a) if self.kernel is None else self.kernel @ a
        return plain + solution[-1]

    def pull(self, solution: Tensor, rest: Tensor) -> Tensor:
        """c (y - p) - l2 a, which is 0 at the least loss, and minus the sum of a, which is, too."""
        a = solution[:-1]
        return torch.cat([rest - self.l2 * a, -a.sum()[None]])

    def step(self, held: _Held | None, pull: Tensor, curve: Tensor, _: float) -> _Step:
        """(l2 / W + K) da + db = pull / W, and a + da sums to 0."""
        if held is None:
            matrix = self._factor(curve)
            sides = torch.stack([pull[:-1] / curve, torch.ones_like(curve)], 1)
            alone, beside = torch.cholesky_solve(sides, matrix).unbind(1)
            held = _Held(matrix, curve, beside)
        else:
            alone = torch.cholesky_solve((pull[:-1] / held.curve)[:, None], held.matrix)[:, 0]
        bias = (alone.sum() - pull[-1]) / held.beside.sum()
        return _Step(torch.cat([alone - bias * held.beside, bias[None]]), held, True)

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
        return self.l2 * (one[:, :-1] @ (scores - other[:, -1:]).T)


class _Held(NamedTuple):
    """What a Newton step divides by."""

    matrix: Tensor
    """Of w and b: the Hessian's inverse (D + 1, D + 1). Of rows: the factor (N, N) of Cholesky."""
    curve: Tensor
    """(N,) of the rows when it was made."""
    beside: Tensor
    """Of rows: what they lose (N,) where the bias gains 1."""


class _Step(NamedTuple):
    """One of Newton's, or nearly."""

    move: Tensor
    held: _Held
    tired: bool
    """Whether the next one should divide by something new."""


def _minimum(form: _Primal | _Dual, coarse: Tensor) -> Tensor:
    """Newton's steps in float32; what is left in float64, by the factor of the last of them.

    Where that does not do, Newton's steps in float64.
    """
    share = (form.c @ form.y) / form.c.sum()
    start = form.start()
    start[-1] = (share / (1 - share)).log()
    with suppress(NumericalError):
        rough = form.rough(coarse)
        return _refined(form, rough, *_newton(rough, start.float(), _ROUGH))
    if not bool(form.x.isfinite().all()):
        raise NumericalError("a feature is NaN or infinite", hint="load the model in float32")
    return _newton(form, start, _EXACT)[0]


def _newton(form: _Primal | _Dual, start: Tensor, until: _Until) -> tuple[Tensor, _Held]:
    """Steps until no score moves, and what the last one divided by."""
    at = _at(form, start, start[-1].expand_as(form.y))
    held, ways, last = None, list[tuple[Tensor, Tensor]](), 1.0
    for number in range(until.steps):
        p = at.scores.sigmoid()
        curve = (form.c * (p * (1 - p))).clamp_min_(_TINY)
        step = form.step(held, form.pull(at.solution, form.c * (form.y - p)), curve, min(_NEAR, last))
        ways = [(step.move, form.scores(step.move)), *ways[:1]]
        after = _farthest(form, at, ways, number < _FIRST)
        last = _relative(after.scores - at.scores, after.scores) if after.whole else inf
        ways = [(after.solution - at.solution, after.scores - at.scores)]
        at, held = after, None if step.tired else step.held
        if last <= until.settled:
            return at.solution, step.held
    raise NumericalError(
        f"logistic regression on {len(form.y)} rows did not settle in {until.steps} steps",
        hint="raise l2, or scale the features",
    )


def _refined(form: _Primal | _Dual, rough: _Primal | _Dual, start: Tensor, held: _Held) -> Tensor:
    """Steps with an old factor and a new gradient: each leaves a small part of what was missing."""
    solution, last = start.double(), 0.0
    scores = form.scores(solution)
    for _ in range(_REFINED):
        p = scores.sigmoid()
        curve = (form.c * (p * (1 - p))).clamp_min_(_TINY)
        pull = form.pull(solution, form.c * (form.y - p))
        size = float(pull.abs().max()) or 1.0  # float32 has no room for what is very small
        step = rough.step(held, (pull / size).float(), curve.float(), _NEARER).move.double() * size
        moved = form.scores(step)
        solution, scores = solution + step, scores + moved
        gone = _relative(moved, scores)
        left = min(gone, gone * gone / last) if last else gone  # the next one, if it shrinks as this one did
        if left <= _LEFT:
            return solution
        last = gone
    raise NumericalError("a factor in float32 does not do", hint="take one in float64")


def _relative(moved: Tensor, scores: Tensor) -> float:
    """The farthest that a score moved."""
    return float(moved.abs().max()) / (1 + float(scores.abs().max()))


class _At(NamedTuple):
    """A point of the search."""

    solution: Tensor
    scores: Tensor
    loss: float
    whole: bool
    """Whether the step that led here was not cut: one that was says nothing of how far there is to go."""


def _at(form: _Primal | _Dual, solution: Tensor, scores: Tensor, whole: bool = True) -> _At:
    penalty = form.products(solution[None], solution[None], scores[None])
    loss = float(form.c @ (softplus(scores) - form.y * scores)) + 0.5 * float(penalty)
    return _At(solution, scores, loss, whole)


def _farthest(form: _Primal | _Dual, at: _At, ways: list[tuple[Tensor, Tensor]], wide: bool) -> _At:
    """The best place in the span of Newton's step, the last move, the weights as they are, and the bias.

    Where the search is not ``wide``, or the loss does not fall by it: Newton's step, half of it, a quarter, ...
    """
    if wide:
        move, moved = _searched(form, at, ways)
        found = _at(form, at.solution + move, at.scores + moved)
        if not _above(found, at):
            return found
    part, (move, moved) = 1.0, ways[0]
    for _ in range(40):
        found = _at(form, at.solution + part * move, at.scores + part * moved, part == 1.0)
        if not _above(found, at):
            break
        part /= 2
    return found


def _searched(
    form: _Primal | _Dual, at: _At, ways: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Their scores are known, so it is a search over a few numbers, by Newton's method again."""
    solution, scores = at.solution, at.scores
    bias, plain = torch.zeros_like(solution), solution.clone()
    bias[-1], plain[-1] = 1.0, 0.0
    ways = [*ways, (plain, scores - solution[-1]), (bias, torch.ones_like(scores))]
    moves, moved = (torch.stack(parts) for parts in zip(*ways, strict=True))
    square = form.products(moves, moves, moved)
    slope = form.products(moves, solution[None], scores[None])[:, 0]
    size = moved.new_zeros(len(ways))
    size[0] = 1.0
    for _ in range(_SEARCHED):
        p = torch.addmv(scores, moved.T, size).sigmoid_()
        down = moved @ (form.c * (form.y - p)) - torch.addmv(slope, square, size)
        bend = torch.addmm(square, moved * (form.c * (p * (1 - p))).clamp_min_(_TINY), moved.T)
        bend.diagonal().mul_(1 + _alike(bend)).add_(_TINY)
        size = size + torch.linalg.solve_ex(bend, down).result
    return size @ moves, size @ moved


def _alike(like: Tensor) -> float:
    """Two directions may be the same."""
    return 1e-9 if like.dtype == torch.float64 else 1e-5


def _above(after: _At, before: _At) -> bool:
    slack = 1e-10 if after.scores.dtype == torch.float64 else 1e-5
    return not after.loss <= before.loss + slack * (1 + abs(before.loss))


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


def _checked(x: Tensor, labels: Tensor, l2: float, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels as 0 and 1, and row weights, (L, N) float64."""
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
    return y, c
