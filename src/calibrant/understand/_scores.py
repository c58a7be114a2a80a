"""One instrument on the single cells of one case: against the truth, on other pairs, and in other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from calibrant.core import Estimate, Frozen
from calibrant.stats.auroc import area
from calibrant.understand._effects import Floats
from calibrant.understand._evidence import Evidence
from calibrant.understand._methods import Sweep
from calibrant.understand._rule import share_of

_WITH_INTERVALS = ("denoise", "noise")


class Scored(Frozen):
    """What one instrument gave on one case."""

    instrument: str
    testable: bool
    hits: int = 0
    false: int = 0
    auroc: float | None = None
    average_precision: float | None = None
    stability: float | None = None
    paraphrase: float | None = None
    agreeing: int = 0
    compared: int = 0


class Table:
    """All instruments on single cells, on one table of pairs."""

    def __init__(self, evidence: Evidence, sweeps: Mapping[str, Sweep]) -> None:
        self.evidence, self.sweeps = evidence, sweeps

    def strength(self, name: str) -> Floats:
        """(C,) the size of each cell's mean effect."""
        sizes: Floats = np.abs(self.sweeps[name].effects.mean(1))
        return sizes


def scored(
    name: str,
    one: Table,
    other: Table,
    reworded: Table | None,
    truth: Sequence[int],
    floor: float,
    level: float,
) -> Scored:
    """One instrument on single cells: against the truth, and against itself.

    Args:
        name: of the instrument.
        one: what it is judged by.
        other: the same on other pairs.
        reworded: the same on the first pairs in another form; None where there is none.
        truth: numbers of the planted cells.
        floor: least share of the corruption's effect that counts as found.
        level: largest corrected p-value that counts as found.
    """
    strength, chances = one.strength(name), one.sweeps[name].chances
    shares = strength / abs(one.evidence.total.mean())
    found = [at for at in range(len(strength)) if chances[at] <= level and shares[at] >= floor]
    compared = agreeing = 0
    if name in _WITH_INTERVALS:
        sides = [
            (share_of(one.evidence, name, at), share_of(other.evidence, name, at))
            for at in range(len(strength))
        ]
        checks = [same for a, b in sides if (same := agree(a, b)) is not None]
        compared, agreeing = len(checks), sum(checks)
    return Scored(
        instrument=name,
        testable=True,
        hits=sum(at in truth for at in found),
        false=sum(at not in truth for at in found),
        auroc=area(strength, np.isin(np.arange(len(strength)), truth)) if truth else None,
        average_precision=average_precision(strength, truth) if truth else None,
        stability=_ranks(strength, other.strength(name)),
        paraphrase=_ranks(strength, reworded.strength(name))
        if reworded and name in reworded.sweeps
        else None,
        agreeing=agreeing,
        compared=compared,
    )


def _ranks(one: Floats, other: Floats) -> float | None:
    """Rank correlation of two scores of the same cells; None where either is the same for all."""
    return float(spearmanr(one, other).statistic) if min(np.ptp(one), np.ptp(other)) > 0 else None


def agree(one: Estimate, two: Estimate) -> bool | None:
    """Whether two independent intervals are of one value, as far as their widths say; None without them."""
    ends = (one.value, one.low, one.high, two.value, two.low, two.high)
    if any(end is None for end in ends):
        return None
    value, low, high, other, other_low, other_high = (float(end) for end in ends if end is not None)
    apart = other - value
    mine, theirs = (high - value, other - other_low) if apart > 0 else (value - low, other_high - other)
    return bool(abs(apart) <= np.hypot(mine, theirs) + 1e-9)


def average_precision(scores: Floats, truth: Sequence[int]) -> float:
    """Mean of the precision at each of ``truth``, in order of falling scores; ties at their worst."""
    right = np.isin(np.arange(len(scores)), list(truth))
    order = np.lexsort((right, -scores))
    hits = np.cumsum(right[order])
    return float((hits / np.arange(1, len(scores) + 1))[right[order]].mean())
