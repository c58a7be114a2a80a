"""What the arms of weak-to-strong training show: accuracies, the gap, its recovered share, agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.core import Estimate
from calibrant.oversee._weak_data import Task
from calibrant.stats.seeded import gap_recovered, seeded_difference, seeded_mean

FEW_TEXTS, FEW_OF_CLASS, FEW_ERRORS = 100, 10, 30
"""Below these a caveat says that there are few."""
_OFF = 0.05  # a class whose share among the weak labels is further from the truth is told of

Classes = NDArray[np.int64]


class Predictions(NamedTuple):
    """Classes (S, N) that each arm gives the test texts, by seed."""

    truth: Classes
    """(N,)"""
    weak: Classes
    student: Classes
    ceiling: Classes
    confidence: Classes | None

    def arms(self) -> dict[str, Classes]:
        """Name -> classes, in the order of the tables."""
        named = {"weak": self.weak, "student": self.student, "confidence": self.confidence}
        return {name: found for name, found in named.items() if found is not None} | {"ceiling": self.ceiling}


def figures(found: Predictions, clusters: list[str] | None, level: float, seed: int) -> dict[str, Estimate]:
    """Every metric."""
    arms = found.arms()
    right = {name: (classes == found.truth).astype(np.float64) for name, classes in arms.items()}
    students: list[str] = [name for name in ("student", "confidence") if name in arms]
    metrics: dict[str, Estimate] = {}
    for name in students:
        metrics[_named("pgr", name)] = gap_recovered(
            right["weak"], right[name], right["ceiling"],
            clusters=clusters, level=level, seed=seed, unit="share of the gap",
        )  # fmt: skip
    pairs = {_named("gain", name): ("weak", name) for name in students} | {"gap": ("weak", "ceiling")}
    if "confidence" in arms:
        pairs["confidence_change"] = ("student", "confidence")
    for metric, (one, other) in pairs.items():
        metrics[metric] = seeded_difference(
            right[one], right[other], clusters=clusters, level=level, better="higher", unit="text"
        )
    for name, table in right.items():
        metrics[f"{name}_accuracy"] = seeded_mean(
            table, clusters=clusters, level=level, better="higher", unit="text"
        )
    wrong = found.weak != found.truth
    for name in (*students, "ceiling"):
        same = (arms[name] == found.weak).astype(np.float64)
        metrics[f"agreement/{name}"] = seeded_mean(
            same, clusters=clusters, level=level, better="none", unit="text"
        )
        metrics[f"error_agreement/{name}"] = seeded_mean(
            np.where(wrong, same, np.nan), clusters=clusters, level=level, better="lower",
            unit="text on which the supervisor errs",
        )  # fmt: skip
    return metrics


def caveats(
    task: Task, found: Predictions, metrics: Mapping[str, Estimate], prior: Classes
) -> tuple[str, ...]:
    """What the figures do not show; ``prior`` holds how often each class is among the weak labels, (K,)."""
    seeds, texts = found.student.shape
    rare = min(Counter(row.label for row in task.student).items(), key=lambda item: item[1])
    errors = int((found.weak != found.truth).any(0).sum())
    told = [
        "a weak model stands for people here: their errors may be easier to imitate, or harder",
        "what the strong model saw in its own training may hold the true labels: that would look like "
        "generalisation",
        "no step was chosen by true labels; another learning rate or number of epochs may move PGR",
        f"intervals cover these {texts} texts and {seeds} seeds, not other tasks or models",
    ]
    if texts < FEW_TEXTS:
        told.append(f"only {texts} test texts: accuracies have wide intervals")
    if rare[1] < FEW_OF_CLASS:
        told.append(f"class '{rare[0]}' has only {rare[1]} texts to learn from")
    if errors < FEW_ERRORS:
        told.append(f"the supervisor errs on only {errors} test texts: agreement on errors says little")
    true = np.bincount(task.truth(task.student).numpy(), minlength=len(task.classes)) / len(task.student)
    off = np.abs(prior / prior.sum() - true)
    if found.confidence is not None and off.max() > _OFF:
        told.append(
            "the confidence loss keeps the weak labels' class shares, and that of "
            f"'{task.classes[off.argmax()]}' is off by {off.max():.2f}"
        )
    high = metrics["ceiling_accuracy"].high
    low = metrics["weak_accuracy"].low
    if high is not None and low is not None and high < low:
        told.append(
            "the ceiling is below the supervisor: the strong model is not trained well enough to be one"
        )
    return tuple(told)


def _named(metric: str, arm: str) -> str:
    return metric if arm == "student" else f"{metric}_{arm}"
