"""How a ranking by mean scores changes with other pairs: a bootstrap, clusters of pairs drawn whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def strongest(strength: Floats, count: int) -> NDArray[np.bool_]:
    """(E,) whether an edge is among the ``count`` of the largest strength; of equal ones the first."""
    chosen = np.zeros(strength.size, dtype=bool)
    chosen[np.argsort(-strength, kind="stable")[:count]] = True
    return chosen


def inclusion(
    scores: NDArray[np.floating], count: int, clusters: Sequence[str] | None, draws: int, seed: int
) -> tuple[Floats, float]:
    """(E,) share of resamples in which each edge is among the ``count`` strongest, and the mean overlap.

    Args:
        scores: (E, N) of each edge on each pair.
        count: of edges that are kept.
        clusters: of the pairs; None where they are independent.
        draws: resamples.
        seed: of the draws.

    The overlap is Jaccard's, of the edges kept in a resample and on all pairs.
    """
    drawn = resamples(scores.shape[1], clusters, draws, seed)
    whole = strongest(np.abs(scores.mean(1)), count)
    times, overlap = np.zeros(scores.shape[0]), 0.0
    for weights in drawn:
        chosen = strongest(np.abs(scores @ weights), count)
        times += chosen
        overlap += (chosen & whole).sum() / max(1, (chosen | whole).sum())
    return times / draws, float(overlap / draws)


def resamples(pairs: int, clusters: Sequence[str] | None, draws: int, seed: int) -> Floats:
    """(draws, N) weights of the pairs in each resample, which sum to 1."""
    named = list(clusters) if clusters else [str(at) for at in range(pairs)]
    number = {name: at for at, name in enumerate(dict.fromkeys(named))}
    member = np.array([number[name] for name in named])
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(number), np.full(len(number), 1 / len(number)), size=draws)[:, member]
    weights: Floats = times / times.sum(1, keepdims=True)
    return weights
