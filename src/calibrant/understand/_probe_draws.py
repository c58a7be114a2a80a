"""Probes of labels that tell nothing, on the same splits: see ``stats/chance.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calibrant.stats.auroc import area
from calibrant.stats.chance import Labels
from calibrant.stats.folds import Folds
from calibrant.understand._probe_folds import Fit


class Chance(NamedTuple):
    """What labels that tell nothing give."""

    auroc: float
    """Root mean square of AUROC - .5."""
    accuracy: float
    """That of accuracy less that of the training part's more frequent label."""


def chance(fit: Fit, x: Tensor, lots: Sequence[Labels], folds: Folds) -> Chance:
    """Of probes of one layer ``x`` (N, D); the largest of several sets of labellings."""
    found = [_one(fit, x, labels, folds) for labels in lots]
    return Chance(max(one.auroc for one in found), max(one.accuracy for one in found))


def _one(fit: Fit, x: Tensor, labels: Labels, folds: Folds) -> Chance:
    scores, usual = np.zeros(labels.shape), np.zeros(labels.shape, np.bool_)
    for cell in folds.filled:
        inside, apart = folds.inside(cell), folds.apart(cell)
        share = labels[:, apart].mean(1)
        usual[:, inside] = (share > 0.5)[:, None]
        can = np.flatnonzero((share > 0) & (share < 1))
        if len(can):
            fitted = fit(x[None, apart], torch.from_numpy(labels[can][:, apart]))
            scores[np.ix_(can, inside)] = fitted.scores(x[None, inside]).cpu().numpy()
    areas = [area(one, y, folds.blocks) for one, y in zip(scores, labels, strict=True)]
    known = np.array([one for one in areas if one is not None] or [0.0])
    beyond = ((scores > 0) == labels).mean(1) - (usual == labels).mean(1)
    return Chance(*(float(np.sqrt((one**2).mean())) for one in (known - 0.5, beyond)))
