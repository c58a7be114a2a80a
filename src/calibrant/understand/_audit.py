"""Exact effects beside estimated ones: of the strongest, and of some drawn at random."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from calibrant.core import Estimate, point, unknown
from calibrant.stats import mean
from calibrant.understand._effects import WAYS, Effects, Floats


@dataclass(frozen=True)
class Chosen:
    """What is patched exactly, by number."""

    top: tuple[int, ...]
    """The strongest."""
    drawn: tuple[int, ...]
    """Of the others, at random."""

    @property
    def all(self) -> list[int]:
        """Both, in order."""
        return sorted({*self.top, *self.drawn})


def choose(strength: Floats, top: int, sample: int, seed: int) -> Chosen:
    """The ``top`` of largest strength (C,), and ``sample`` of the others."""
    strongest = np.argsort(-strength, kind="stable")[:top].tolist()
    rest = sorted({*range(strength.size)} - set(strongest))
    return Chosen(tuple(strongest), tuple(random.Random(seed).sample(rest, min(sample, len(rest)))))


def audit(effects: Effects, exact: Floats, chosen: Chosen, unit: str) -> dict[str, Estimate]:
    """Shares by exact patching of the strongest, and how far the estimates are from them.

    Args:
        effects: the estimates.
        exact: (2, len(chosen.all), N) effects by patching, denoising and noising.
        chosen: what was patched.
        unit: 'cell' or 'edge'.
    """
    found: dict[str, Estimate] = {}
    for side, way in enumerate(WAYS):
        truth = {at: exact[side, row] for row, at in enumerate(chosen.all)}
        found |= {
            f"exact/{way}/{effects.cells[at].name}": effects.share(truth[at]) for at in sorted(chosen.top)
        }
        found |= {f"audit/{k}/{way}": one for k, one in _figures(effects, side, truth, chosen, unit).items()}
    return found


def _figures(
    effects: Effects, side: int, truth: dict[int, Floats], chosen: Chosen, unit: str
) -> dict[str, Estimate]:
    if not effects.testable:
        return dict.fromkeys(
            ("error", "rank_correlation", "missed"), unknown(effects.idle, n=len(truth), unit=unit)
        )
    whole = float(effects.total.mean())
    pairs = {at: (effects.values[side, at].mean() / whole, one.mean() / whole) for at, one in truth.items()}
    if effects.unsigned:
        pairs = {at: (guess, abs(exact)) for at, (guess, exact) in pairs.items()}
    error = float(np.mean([abs(guess - exact) for guess, exact in (pairs[at] for at in chosen.top)]))
    ranks = np.array(list(pairs.values()))
    rank = unknown(f"the {unit}s are alike", n=len(ranks), unit=unit)
    if len(ranks) > 2 and float(np.ptp(ranks, axis=0).min()) > 0:
        rank = point(float(spearmanr(ranks).statistic), unit=unit, n=len(ranks))
    outside = [float(abs(pairs[at][1])) for at in sorted(chosen.drawn)]
    return {
        "error": point(error, unit=unit, n=len(chosen.top)),
        "rank_correlation": rank,
        "missed": _missed(outside, len(effects.cells) - len(chosen.top), unit),
    }


def _missed(outside: list[float], count: int, unit: str) -> Estimate:
    """What ``count`` cells outside the strongest do in all, by the exact effects of those drawn."""
    if len(outside) == count:  # all of them: nothing is estimated
        whole = sum(outside)
        return Estimate(value=whole, low=whole, high=whole, n=count, unit=unit, method="counted")
    one = mean(outside, better="lower", unit=unit)
    low, high = (None if end is None else max(0.0, end * count) for end in (one.low, one.high))
    value = None if one.value is None else one.value * count
    return one.model_copy(update={"value": value, "low": low, "high": high})
