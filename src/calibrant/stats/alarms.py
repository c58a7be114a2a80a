"""A score as an alarm: a threshold at a chosen rate of false alarms, and the rate that unseen rows see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from calibrant.core import Estimate, unknown
from calibrant.stats.auroc import UNIT
from calibrant.stats.folds import Floats, Folds, Held
from calibrant.stats.proportion import rate

_CERTAIN = 27.0
"""Log-odds whose probability a stored probe still tells from 0 and 1."""


def threshold(negatives: Floats, share: float) -> float | None:
    """The score above which at most ``share`` of new negatives are expected, exchangeable with these (n,).

    The ceil((n + 1) (1 - share))-th least (split conformal: Vovk et al. 2005); None where n is too small.
    """
    rank = math.ceil((len(negatives) + 1) * (1 - share) - 1e-9)
    return float(np.sort(negatives)[rank - 1]) if rank <= len(negatives) else None


def halfway(cut: float | None, positives: Floats) -> float | None:
    """A threshold halfway from ``cut`` to the least positive above it: it rings less and misses none of them.

    Where scores are far apart, it is not at the very edge of the negatives.
    """
    above = positives[positives > cut] if cut is not None else positives[:0]
    return (cut + float(above.min())) / 2 if cut is not None and above.size else cut


def alarms(
    held: Held,
    picked: int,
    labels: NDArray[np.bool_],
    folds: Folds,
    kinds: Sequence[Sequence[str]],
    share: float,
    *,
    between: bool = False,
) -> dict[str, Estimate]:
    """``false_alarm_rate`` and ``detection_rate`` on blocks that no fit, choice or threshold has seen.

    ``between``: thresholds stand ``halfway`` to the next positive.
    """
    stored = threshold(held.scores[picked][~labels], share)
    if stored is not None and abs(stored) > _CERTAIN:
        return _none(f"a threshold of {stored:.0f} in log-odds is next to no probability: raise l2", labels)
    rung: list[bool | None] = [None] * len(labels)
    for cell in folds.filled:
        rows = folds.inside(cell)
        others, scores = held.inner[cell]
        seen = scores[held.picked[rows[0]]]
        cut = threshold(seen[~labels[others]], share)
        cut = halfway(cut, seen[labels[others]]) if between else cut
        if cut is None:
            few = int((~labels[others]).sum())
            why = f"{few} held-out negatives cannot set a rate of {share:g}: {math.ceil(1 / share) - 1} can"
            return _none(why, labels)
        for row in rows:
            rung[row] = bool(held.nested[row] > cut)
    return {
        "false_alarm_rate": _rate(
            [r for r, y in zip(rung, labels, strict=True) if not y], kinds, ~labels, "lower"
        ),
        "detection_rate": _rate([r for r, y in zip(rung, labels, strict=True) if y], kinds, labels, "higher"),
    }


def _none(why: str, labels: NDArray[np.bool_]) -> dict[str, Estimate]:
    return {name: unknown(why, n=len(labels), unit=UNIT) for name in ("false_alarm_rate", "detection_rate")}


def probability(score: float) -> float:
    """The least probability above that of a score, inside (0, 1)."""
    return float(min(max(np.nextafter(expit(score), 1.0), 1e-12), 1 - 1e-12))


def _rate(
    rung: list[bool | None], kinds: Sequence[Sequence[str]], rows: NDArray[np.bool_], better: str
) -> Estimate:
    """Clopper-Pearson, or Korn & Graubard's with clusters; with two kinds, the wider of both."""
    some: list[list[str] | None] = [
        [n for n, take in zip(names, rows, strict=True) if take] for names in kinds
    ]
    found = [
        rate(rung, clusters=names, better=better, unit=UNIT)  # type: ignore[arg-type]
        for names in some or [None]
    ]
    return max(found, key=lambda one: (one.high or 1.0) - (one.low or 0.0))
