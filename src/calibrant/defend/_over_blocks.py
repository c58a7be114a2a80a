"""What benign requests and their replies lose behind layers, by the same parts as what is prevented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibrant.core import Estimate
from calibrant.defend._hits import Passes, credit, outcomes
from calibrant.stats import mean, rate
from calibrant.stats.per import per, scaled


def over_blocks(passes: Passes, groups: list[str], names: Sequence[str], level: float) -> dict[str, Estimate]:
    """``over_block_rate``, of all layers and of each alone; ``over_block_marginal`` and ``_shapley``."""
    metrics = {"over_block_rate": _blocked(passes, groups, level)}
    for at, name in enumerate(names):
        others = np.delete(passes, at, 1).min(1, initial=1.0)
        only = outcomes(np.minimum(1 - passes[:, at], others))
        metrics[f"over_block_rate/alone/{name}"] = _blocked(passes[:, [at]], groups, level)
        metrics[f"over_block_marginal/{name}"] = rate(
            only, clusters=groups, level=level, better="lower", unit="attempt"
        )
        metrics[f"over_block_shapley/{name}"] = _share(passes, at, groups, level)
    return metrics


def blocked_for_each(
    passes: Passes, groups: list[str], owed: Mapping[str, Estimate], benign_per_attempt: float, level: float
) -> dict[str, Estimate]:
    """``over_block_per_prevented``, of all layers and of each; ``owed``: what is prevented of an attempt, of
    all ("") and of each in the order of columns, with intervals at ``wide(level)``."""
    lost = {"": _blocked(passes, groups, wide(level))}
    lost |= {name: _share(passes, at, groups, wide(level)) for at, name in enumerate([*owed][1:])}
    found = {}
    for name, prevented in owed.items():
        found["over_block_per_prevented" + (f"/{name}" if name else "")] = per(
            scaled(lost[name], benign_per_attempt), prevented, level=level, better="lower",
            unit="benign request",
        )  # fmt: skip
    return found


def wide(level: float) -> float:
    """Level of each of the two intervals that a cost for each success is made of."""
    return (1 + level) / 2


def _blocked(passes: Passes, groups: list[str], level: float) -> Estimate:
    """Of benign texts, those that some of these layers blocks."""
    lost = outcomes((1 - passes).max(1))
    return rate(lost, clusters=groups, level=level, better="lower", unit="attempt")


def _share(passes: Passes, at: int, groups: list[str], level: float) -> Estimate:
    """A layer's share of that."""
    owed = credit(1 - passes, at, np.ones(len(passes)))
    return mean(owed, clusters=groups, level=level, bounds=(0.0, 1.0), better="lower", unit="attempt")
