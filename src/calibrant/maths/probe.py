"""Logistic regressions of many layers, with an L2 penalty, by Newton's method in float64.

    minimise  sum_i c_i log(1 + exp(-s_i (b + w . x_i)))  +  l2 / 2 |w|^2        s_i = 1 or -1; b is free

for each layer by itself: scikit-learn's ``LogisticRegression(C=1 / l2)``. Convex, so there is one answer.
Where features outnumber rows it is sought among the rows' combinations, w = sum_i a_i x_i, which the penalty
never leaves (Rasmussen & Williams 2006, algorithm 3.1, with a free bias): N unknowns instead of D. Labels
that a plane separates have a finite answer, too, because of the penalty.

The first steps also search the last move, the length of the weights and the bias, whose scores are known:
half as many steps. They are made in float32. The last digits come from steps with their factor and a gradient
in float64, which cost a few products with vectors.

One layer at a time: its copy in float32 and its factor lie in a core's cache, and no two layers' are in
memory at once. Labellings of one layer share what does not depend on labels. Where features outnumber rows, a
layer starts from scores as sure as the median of the layer before, which saves a step; from zeros, if the
loss is less there.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from calibrant.core.errors import InputError, NumericalError
from calibrant.maths.probe_forms import Dual, Held, Primal

_TINY = 1e-10  # curvature of a row that is certain; keeps its working response finite
_REFINED, _LEFT = 12, 1e-9
"""Most steps of refinement, and the largest move of a score, relative, that is left to make."""
_FIRST, _SEARCHED = 2, 3
"""Steps that search, and how often they do: later ones are Newton's own, with little to gain."""
_NEAR, _NEARER = 0.1, 1e-3
"""What conjugate gradients may leave of a step."""


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


def logistic_planes(
    x: Tensor,
    labels: Tensor,
    l2: float,
    weights: Tensor | None = None,
    spread: tuple[Tensor, Tensor] | None = None,
) -> Planes:
    """Regressions of ``labels`` on ``x``, one a layer.

    Args:
        x: (L, N, D) features; (1, N, D) where one layer has several labellings.
        labels: (N,) bool, or (L, N) where layers have labels of their own.
        l2: penalty, above 0.
        weights: (N,) or (L, N) of rows, above 0; None: 1 each.
        spread: mean and standard deviation, (L, D) each: the planes are of features less the one and over the
            other. A layer's are made when its turn comes, and lie in the cache.

    Raises:
        InputError: shapes that do not fit, one label only, or a penalty or weight that is not above 0.
        NumericalError: a feature is NaN or infinite, or a hundred steps were not enough.
    """
    y, c = _checked(x, labels, l2, weights)
    kind = Primal if x.shape[2] < x.shape[1] else Dual
    weight, bias = x.new_empty((len(y), x.shape[2]), dtype=torch.float64), torch.empty_like(y[:, 0])
    rows = coarse = None
    margin = None
    with torch.inference_mode():  # less is noted of each small operation
        for layer in range(len(y)):
            if rows is None or coarse is None or len(x) > 1:
                rows = coarse = None  # frees those of the layer before
                rows = x[layer].double()
                if spread is not None:
                    rows = (rows - spread[0][layer]).div_(spread[1][layer])
                coarse = kind.coarse(rows)
            form = kind(rows, y[layer], c[layer], l2)
            solution, scores = _minimum(form, coarse, margin)
            weight[layer], bias[layer] = form.plane(solution)
            margin = ((2 * y[layer] - 1) * scores).median() if kind is Dual else None
    return Planes(weight, bias)


def _minimum(form: Primal | Dual, coarse: Tensor, margin: Tensor | None) -> tuple[Tensor, Tensor]:
    """Newton's steps in float32; what is left in float64, by the factor of the last of them.

    Where that does not do, Newton's steps in float64. ``margin`` is the layer's before. With the scores.
    """
    share = (form.c @ form.y) / form.c.sum()
    start = form.start()
    start[-1] = (share / (1 - share)).log()
    with suppress(NumericalError):
        rough = form.rough(coarse)
        return _refined(form, rough, *_newton(rough, start.float(), _ROUGH, margin))
    if not bool(form.x.isfinite().all()):
        raise NumericalError("a feature is NaN or infinite", hint="load the model in float32")
    solution = _newton(form, start, _EXACT)[0]
    return solution, form.scores(solution)


def _newton(
    form: Primal | Dual, start: Tensor, until: _Until, margin: Tensor | None = None
) -> tuple[Tensor, Held]:
    """Steps until no score moves, and what the last one divided by."""
    at = _at(form, start, start[-1].expand_as(form.y))
    held, ways, last = None, list[tuple[Tensor, Tensor]](), 1.0
    searching = _FIRST
    if margin is not None and (likely := _likely(form, margin.to(start.dtype))).loss < at.loss:
        at, searching = likely, 1
    for number in range(until.steps):
        p = at.scores.sigmoid()
        curve = (form.c * (p * (1 - p))).clamp_min_(_TINY)
        step = form.step(held, form.pull(at.solution, form.c * (form.y - p)), curve, min(_NEAR, last))
        ways = [(step.move, form.scores(step.move)), *ways[:1]]
        after = _farthest(form, at, ways, number < searching)
        last = _relative(after.scores - at.scores, after.scores) if after.whole else inf
        ways = [(after.solution - at.solution, after.scores - at.scores)]
        at, held = after, None if step.tired else step.held
        if last <= until.settled:
            return at.solution, step.held
    raise NumericalError(
        f"logistic regression on {len(form.y)} rows did not settle in {until.steps} steps",
        hint="raise l2, or scale the features",
    )


def _likely(form: Primal | Dual, margin: Tensor) -> _At:
    """Where Newton's step leads from scores of the right sign and one size, though no weights give them."""
    scores = (2 * form.y - 1) * margin
    p = scores.sigmoid()
    curve = (form.c * (p * (1 - p))).clamp_min_(_TINY)
    pull = form.pull(form.start(), curve * scores + form.c * (form.y - p))
    solution = form.step(None, pull, curve, _NEAR).move
    return _at(form, solution, form.scores(solution))


def _refined(form: Primal | Dual, rough: Primal | Dual, start: Tensor, held: Held) -> tuple[Tensor, Tensor]:
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
            return solution, scores
        last = gone
    raise NumericalError("a factor in float32 does not do", hint="take one in float64")


def _relative(moved: Tensor, scores: Tensor) -> float:
    """The farthest that a score moved, each beside its own size: one huge score hides no other's move."""
    return float((moved.abs() / (1 + scores.abs())).max())


class _At(NamedTuple):
    """A point of the search."""

    solution: Tensor
    scores: Tensor
    loss: float
    whole: bool
    """Whether the step that led here was not cut: one that was says nothing of how far there is to go."""


def _at(form: Primal | Dual, solution: Tensor, scores: Tensor, whole: bool = True) -> _At:
    loss = float(form.c @ (softplus(scores).addcmul_(form.y, scores, value=-1)))
    return _At(solution, scores, loss + 0.5 * form.penalty(solution, scores), whole)


def _farthest(form: Primal | Dual, at: _At, ways: list[tuple[Tensor, Tensor]], wide: bool) -> _At:
    """The best place in the span of Newton's step, the last move, the weights as they are, and the bias.

    Where the search is not ``wide``, or the loss does not fall by it: Newton's step, half of it, ...
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


def _searched(form: Primal | Dual, at: _At, ways: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
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
