"""ASR against budget: for each attack the share of goals reached within so many queries. Pure.

Kaplan-Meier with censoring (``calibrant.stats.survival``): a goal that an attack gave up, or that a cap cut
off, is censored there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from calibrant.attack.engine.metrics import AllCounts, clusters_of
from calibrant.core import Estimate, unknown
from calibrant.data.rows import Goals
from calibrant.stats.survival import SuccessCurve, success_curve

_POINTS = 200


def success_curves(goals: Goals, all_counts: AllCounts) -> dict[str, SuccessCurve]:
    """Attack -> its curve over goals and repetitions; costs are queries to the target."""
    clusters = clusters_of(goals)
    curves = {}
    for label in dict.fromkeys(label for label, _, _ in all_counts):
        rows = [(goal, counts) for (name, goal, _), counts in all_counts.items() if name == label]
        costs, reached = [], []
        for _, counts in rows:
            open_ = counts.first is None and counts.first_open is not None
            costs.append(float(counts.first or counts.first_open or counts.queries))
            reached.append(True if counts.first else None if open_ else False)
        curves[label.removeprefix("attack.")] = success_curve(
            costs, reached, clusters=[clusters[goal] for goal, _ in rows]
        )
    return curves


def medians(curves: dict[str, SuccessCurve]) -> dict[str, Estimate]:
    """``queries_to_success/<attack>``: queries until half of the goals are reached, or why it is unknown."""
    metrics = {}
    for label, curve in curves.items():
        median = curve.budget_for(0.5)
        if median.value is None:
            median = unknown(median.reason or "no goal was attacked", n=median.n, unit="query")
        elif median.low is None or median.high is None:
            median = median.model_copy(update={"low": None, "high": None, "method": "point"})
        metrics[f"queries_to_success/{label}"] = median
    return metrics


def drawn(curves: dict[str, SuccessCurve]) -> dict[str, Any]:
    """Curves as JSON-ready lists of at most 200 points each, for figures."""
    return {label: _thinned(curve) for label, curve in curves.items()}


def _thinned(curve: SuccessCurve) -> dict[str, list[float]]:
    size = int(curve.costs.size)
    places = sorted({round(place) for place in np.linspace(0, size - 1, min(size, _POINTS)).tolist()})
    names = ("costs", "value", "low", "high", "after")
    return {name: [float(getattr(curve, name)[place]) for place in places] for name in names}
