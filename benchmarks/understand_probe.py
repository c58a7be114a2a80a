"""understand.probe's solver against scikit-learn: logistic regressions of all layers at once.

Standardised features with a decaying spectrum, C = 1 / l2 = 1, float64, one thread, CPU seconds of the
process. Four courses: few texts and a wide model, as probes mostly have; a middling one; more texts than
features; and a control task, many labellings of one layer.

*The whole of a probe* is what ``understand.probe`` fits to make one figure: every layer on the training parts
of four folds, and of each pair of them for the choice of a layer, and 20 labellings of no meaning on the best
layer. Both sides fit the same parts, standardised by their own rows.

scikit-learn fits a layer at a time. Its best is the quickest of lbfgs, newton-cg and newton-cholesky at
tolerances of 1e-4 to 1e-12 whose decision values are within 1e-6 of ours (liblinear penalises the bias:
another problem). What lbfgs at its default tolerance takes is told on stderr: its decision values are not
equal, so it is no row. Memory is the most that a side allocates at once: one layer's there, all here.
"""

from __future__ import annotations

import time
import tracemalloc
import warnings
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from _race import Row, Work, finish, is_quick, make_row, peak_bytes, quickest, race, say
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from calibrant.maths.probe import logistic_planes
from calibrant.stats.chance import dealt_again
from calibrant.stats.folds import folds_of
from calibrant.understand._probe_draws import chance
from calibrant.understand._probe_fits import linear
from calibrant.understand._probe_folds import Fit, held_out
from calibrant.understand._probe_folds import best as picked_layer

EQUAL, TARGET, PAIRS, WHOLES = 1e-6, 5.0, 10, 6
SOLVERS, TOLERANCES = ("lbfgs", "newton-cg", "newton-cholesky"), (1e-4, 1e-6, 1e-8, 1e-10, 1e-12)


class Course(NamedTuple):
    """A set of fits: of ``layers`` layers, or of as many labellings of one."""

    name: str
    layers: int
    rows: int
    width: int
    labellings: bool = False


COURSES = (
    Course("12 layers, 200 texts, 2048 features", 12, 200, 2048),
    Course("12 layers, 400 texts, 768 features", 12, 400, 768),
    Course("12 layers, 1000 texts, 256 features", 12, 1000, 256),
    Course("20 labellings of a layer, 200 texts, 2048 features", 20, 200, 2048, labellings=True),
)


def drawn(course: Course) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (L, N, D), or (1, N, D) for labellings; labels (L, N)."""
    way = torch.Generator().manual_seed(course.rows)
    layers = 1 if course.labellings else course.layers
    size = (torch.arange(1, course.width + 1) ** -0.5)[:, None]
    mix = torch.randn(course.width, course.width, generator=way, dtype=torch.float64) * size
    labels = torch.rand(course.layers if course.labellings else 1, course.rows, generator=way) < 0.5
    shift = 0.3 * torch.randn(layers, 1, course.width, generator=way, dtype=torch.float64)
    noise = torch.randn(layers, course.rows, course.width, generator=way, dtype=torch.float64)
    x = (noise + labels[0][None, :, None] * shift) @ mix
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    return x, labels.expand(course.layers, -1)


def peers(x: torch.Tensor, labels: torch.Tensor, solver: str, tolerance: float) -> np.ndarray:
    """Decision values (L, N), a layer (or labelling) at a time."""
    said = []
    for at, y in enumerate(labels.numpy()):
        rows = x[at % len(x)].numpy()
        model = LogisticRegression(C=1.0, tol=tolerance, max_iter=20_000, solver=solver).fit(rows, y)
        said.append(model.decision_function(rows))
    return np.stack(said)


def best(course: Course, x: torch.Tensor, labels: torch.Tensor, ours: np.ndarray, rounds: int) -> Work:
    """The quickest way of scikit-learn's to the same decision values."""
    choices: dict[str, Work] = {}
    for solver in SOLVERS:
        if solver == "newton-cholesky" and course.width > course.rows:
            continue  # it factors a matrix of all features: by far the slowest here
        for tolerance in TOLERANCES:
            apart = float(np.abs(peers(x, labels, solver, tolerance) - ours).max())
            if apart <= EQUAL:
                choices[f"{solver}, {tolerance:g}"] = partial(peers, x, labels, solver, tolerance)
                break  # a tighter one is slower
        else:
            say(f"  {solver}: {apart:.1e} apart at the tightest tolerance")
    return choices[quickest(choices, rounds, time.process_time)]


class Sklearn(NamedTuple):
    """scikit-learn's fits of some rows, a layer or a labelling at a time."""

    mean: np.ndarray
    std: np.ndarray
    models: list[LogisticRegression]

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Decision values (L, M) of rows (L, M, D)."""
        scaled = (x.numpy() - self.mean) / self.std
        said = [one.decision_function(scaled[at % len(scaled)]) for at, one in enumerate(self.models)]
        return torch.from_numpy(np.stack(said))


def sklearn_fit(x: torch.Tensor, labels: torch.Tensor, solver: str, tolerance: float) -> Sklearn:
    """``linear`` of ``understand.probe`` by scikit-learn."""
    rows = x.numpy()
    mean, std = rows.mean(1, keepdims=True), rows.std(1, keepdims=True)
    scaled, every = (rows - mean) / std, labels.numpy() if labels.ndim == 2 else [labels.numpy()] * len(x)
    models = [
        LogisticRegression(C=1.0, tol=tolerance, max_iter=20_000, solver=solver).fit(scaled[at % len(x)], y)
        for at, y in enumerate(every)
    ]
    return Sklearn(mean, std, models)


def whole(fit: Fit, x: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Held-out scores (L, N) of every layer, after the draws of the best one as well."""
    folds = folds_of((), labels, 4, 0, inner=True)
    held = held_out(fit, x, labels, folds)
    picked = picked_layer(held.scores, labels, folds.blocks)
    chance(fit, x[picked], dealt_again(labels, (), folds, 0), folds)
    return held.scores


def run_whole(course: Course, pairs: int) -> Row:
    """All fits of a probe against the same ones by scikit-learn at its best."""
    name = f"understand.probe, the whole of a probe, {course.name}"
    say(name)
    x, every = drawn(course)
    labels = every[0].numpy()
    ours = partial(whole, partial(linear, l2=1.0), x, labels)
    reference, choices = ours(), dict[str, Work]()
    for solver in SOLVERS:
        if solver == "newton-cholesky" and course.width > course.rows:
            continue
        for tolerance in TOLERANCES:
            way = partial(whole, partial(sklearn_fit, solver=solver, tolerance=tolerance), x, labels)
            apart = float(np.abs(way() - reference).max())
            if apart <= EQUAL:
                choices[f"{solver}, {tolerance:g}"] = way
                break
        else:
            say(f"  {solver}: {apart:.1e} apart at the tightest tolerance")
    rival = choices[quickest(choices, 1, time.process_time)]
    row = make_row(
        f"{name}, against scikit-learn's best",
        race(ours, rival, pairs, clock=time.process_time),
        equal=True, memory_ratio=peak_of_numpy(rival) / peak_bytes(ours), target=TARGET,
    )  # fmt: skip
    return row._replace(versions=row.versions | {"scikit-learn": version("scikit-learn")})


def peak_of_numpy(work: Work) -> int:
    """Most bytes allocated at once."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def run(course: Course, pairs: int) -> Row:
    """Against scikit-learn at its best."""
    say(course.name)
    x, labels = drawn(course)

    def ours() -> np.ndarray:
        found: np.ndarray = logistic_planes(x, labels, 1.0).scores(x).numpy()
        return found

    reference = ours()
    rival = best(course, x, labels, reference, 1 if pairs == 1 else 2)
    apart = float(np.abs(rival() - reference).max())
    assert apart <= EQUAL, f"{course.name}: decision values are {apart:.1e} apart"
    row = make_row(
        f"understand.probe, {course.name}, against scikit-learn's best",
        race(ours, rival, pairs, clock=time.process_time),
        equal=True, memory_ratio=peak_of_numpy(rival) / peak_bytes(ours), target=TARGET,
    )  # fmt: skip
    usual = partial(peers, x, labels, "lbfgs", 1e-4)
    apart, ratio = float(np.abs(usual() - reference).max()), race(ours, usual, 1, clock=time.process_time)[0]
    say(f"  (lbfgs at its default tolerance: {ratio:.2f}, with decision values up to {apart:.1e} apart)")
    return row._replace(versions=row.versions | {"scikit-learn": version("scikit-learn")})


def main() -> None:
    """Race every course; the quick run takes two."""
    quick = is_quick(__doc__)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    courses = (COURSES[0], COURSES[3]) if quick else COURSES
    rows = [run(course, 1 if quick else PAIRS) for course in courses]
    finish(rows + [run_whole(course, 1 if quick else WHOLES) for course in courses if not course.labellings])


if __name__ == "__main__":
    main()
