"""What a probe could learn of any labels: the control task, splits that leak, and the codelength."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrant.core import Estimate, point, unknown
from calibrant.maths.codelength import block_ends, prequential
from calibrant.stats.auroc import UNIT, auroc, crossed
from calibrant.stats.folds import Floats, dealt
from calibrant.understand._probe_folds import Fit

_LAYERS = 8  # in one batch


class Rowwise(NamedTuple):
    """A split of rows, groups on both sides."""

    scores: Floats
    """(C, N) held-out scores, a row of each labelling."""
    folds: NDArray[np.intp]


def rowwise(fit: Fit, x: Tensor, labels: Tensor, count: int, seed: int) -> Rowwise:
    """Scores of one layer's rows x (N, D) under labellings (C, N), each row by a fit without its fold."""
    folds = dealt([""] * labels.shape[1], labels[0].numpy(), count, seed)
    scores = np.zeros(labels.shape)
    for part in range(count):
        out, rest = np.flatnonzero(folds == part), np.flatnonzero(folds != part)
        scores[:, out] = fit(x[None, rest], labels[:, rest]).scores(x[None, out]).cpu().numpy()
    return Rowwise(scores, folds)


def selectivity(
    fit: Fit,
    x: Tensor,
    labels: NDArray[np.bool_],
    kinds: Sequence[Sequence[str]],
    count: int,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Accuracy less that of a control task (Hewitt & Liang 2019, 1909.03368), rows split at random.

    In the control task each type (template; task where none is named) has one random label for all its rows,
    drawn from the labels' own share: a probe can only know it by knowing the type. ``x`` is (N, D).
    """
    mine = rowwise(fit, x, torch.from_numpy(labels)[None], count, seed)
    found = {"auroc_ungrouped": auroc(mine.scores[0], labels, blocks=mine.folds, clusters=kinds[:1])}
    names = ("selectivity", "control_accuracy")
    why = "no template or task is named, so no type of text comes again"
    if kinds:
        controls, why = _controls(kinds[0], labels, count, draws, seed)
    if why:
        return found | {name: unknown(why, n=len(labels), unit=UNIT) for name in names}
    theirs = rowwise(fit, x, torch.from_numpy(controls), count, seed)
    right = ((mine.scores[0] > 0) == labels).astype(np.float64)
    control = ((theirs.scores > 0) == controls).astype(np.float64).mean(0)
    parts = {
        "selectivity": (right - control, (-1.0, 1.0), 0.0),
        "control_accuracy": (control, (0.0, 1.0), None),
    }
    for name, (values, bounds, null) in parts.items():
        better = "higher" if name == "selectivity" else "none"
        found[name] = crossed(
            values.tolist(),
            [kinds[0]],
            bounds=bounds,
            null_value=null,
            better=better,  # type: ignore[arg-type]
        )
    return found


def _controls(
    names: Sequence[str], labels: NDArray[np.bool_], count: int, draws: int, seed: int
) -> tuple[NDArray[np.bool_], str]:
    """Labellings (draws, N), or why there are none."""
    types = {
        name: at
        for at, name in enumerate(dict.fromkeys(name or f"\0{row}" for row, name in enumerate(names)))
    }
    of = np.array([types[name or f"\0{row}"] for row, name in enumerate(names)])
    none = np.zeros((0, len(labels)), np.bool_)
    if len(types) > len(labels) / 2:
        return none, "most types of text come once: nothing of a control task carries over"
    positive = min(max(round(float(labels.mean()) * len(types)), 1), len(types) - 1)
    lot = random.Random(seed)
    drawn = []
    for _ in range(draws):
        chosen = np.zeros(len(types), np.bool_)
        chosen[lot.sample(range(len(types)), positive)] = True
        drawn.append(chosen[of])
    made = np.array(drawn)
    if made.sum(1).min() <= count or (~made).sum(1).min() <= count:
        return none, "too few types of text for a control task"
    return made, ""


def codelength(
    fit: Fit, x: Tensor, labels: NDArray[np.bool_], kinds: Sequence[Sequence[str]], picked: int, seed: int
) -> tuple[list[Estimate], Estimate]:
    """Labels a bit in each layer, and bits a label in the one picked; whole groups come at one go."""
    groups: dict[object, list[int]] = {}
    for row, name in enumerate(kinds[0] if kinds else [""] * len(labels)):
        groups.setdefault(name or row, []).append(row)
    order = random.Random(seed).sample(list(groups.values()), len(groups))
    rows = [row for group in order for row in group]
    ends = block_ends([len(group) for group in order])
    y = torch.from_numpy(labels[rows])

    def scores(seen: Tensor, so_far: Tensor) -> Callable[[Tensor], Tensor]:
        return fit(seen, so_far).scores

    bits = torch.cat(
        [prequential(scores, part[:, rows], y, ends) for part in torch.split(x, _LAYERS)]
    ).numpy()
    found = [point(float(len(rows) / one.sum()), unit="labels a bit", n=len(rows)) for one in bits]
    clusters = [[names[row] for row in rows] for names in kinds]
    return found, crossed(bits[picked].tolist(), clusters, null_value=1.0, better="lower", unit="bit")
