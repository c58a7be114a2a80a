"""How far held-out scores come from chance by chance: the same splits, with labels that tell nothing.

An interval over held-out rows takes the fit as given. That other rows, or other groups, would have given
another fit, and that fits of two folds share rows, is not in it: where nothing is planted, one 95 % interval
in six left chance out. So labels are dealt again at random, within their folds, and the method is fitted to
those: to the groups where labels go by group (who asks, which template), else to the rows. No interval is
narrower than theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from calibrant.core import Estimate
from calibrant.stats.folds import Folds, Rows

_DRAWS = 20
Labels = NDArray[np.bool_]


def by_group(names: Sequence[str], labels: Labels) -> int:
    """How many groups there are, if each has one label for several rows; else 0."""
    found: dict[str, set[bool]] = {}
    for name, label in zip(_named(names), labels.tolist(), strict=True):
        found.setdefault(name, set()).add(label)
    whole = 1 < len(found) < len(names) and all(len(one) == 1 for one in found.values())
    return len(found) if whole else 0


def dealt_again(labels: Labels, kinds: Sequence[Sequence[str]], folds: Folds, seed: int) -> list[Labels]:
    """(draws, N) labellings: one set for each kind of groups that labels go by; of rows, if there is none."""
    way = np.random.default_rng(seed)
    found = [
        _dealt(np.unique(np.array(_named(names)), return_inverse=True)[1], labels, of, way)
        for names, of in zip(kinds, folds.of, strict=False)
        if by_group(names, labels)
    ]
    return found or [_dealt(np.arange(len(labels)), labels, folds.blocks, way)]


def _dealt(group: Rows, labels: Labels, fold: Rows, way: np.random.Generator) -> Labels:
    first = np.unique(group, return_index=True)[1]
    parts = [np.flatnonzero(fold[first] == part) for part in np.unique(fold)]
    found = []
    for _ in range(_DRAWS):
        new = labels[first].copy()
        for part in parts:
            new[part] = labels[first][way.permutation(part)]
        found.append(new[group])
    return np.array(found)


def widened(one: Estimate, spread: float, middle: float = 0.5) -> Estimate:
    """``one`` with an interval no narrower than ``spread`` asks for.

    The spread is that at ``middle``, where nothing is planted; nearer to 0 and 1 it is less, as a share's is.
    """
    return _reaching(one, _at(one.value, spread, middle), (0.0, 1.0))


def widened_gain(one: Estimate, *parts: tuple[float | None, float]) -> Estimate:
    """The same of a difference of two AUROCs, each with its value and spread, as if of different rows."""
    spread = math.hypot(*(_at(value, spread, 0.5) for value, spread in parts))
    return _reaching(one, spread, (-1.0, 1.0))


def _at(value: float | None, spread: float, middle: float) -> float:
    if value is None or not 0 < middle < 1:
        return 0.0 if value is None else spread
    return spread * math.sqrt(max(value * (1 - value), 0.0) / (middle * (1 - middle)))


def _reaching(one: Estimate, spread: float, bounds: tuple[float, float]) -> Estimate:
    if one.value is None or one.low is None or one.high is None:
        return one
    half, (least, most) = float(stdtrit(_DRAWS, 0.975)) * (1 + 1 / _DRAWS) ** 0.5 * spread, bounds
    ends = {
        "low": max(least, min(one.low, one.value - half)),
        "high": min(most, max(one.high, one.value + half)),
    }
    return one.model_copy(
        update=ends | {"method": f"{one.method}, and {_DRAWS} labellings that tell nothing"}
    )


def _named(names: Sequence[str]) -> list[str]:
    """A row without a name is a group of its own."""
    return [name or f"\0{row}" for row, name in enumerate(names)]
