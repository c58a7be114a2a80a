"""Train a judge on human labels: a linear probe (logistic regression) on a model's hidden states.

A probe in the sense of Alain & Bengio 2016 (arXiv 1610.01644), used as a judge. It is immune to prompt
injection, costs one forward pass, and its errors are measured on replies to held-out prompts.

1. Features are the hidden states at one site, pooled over the reply, each standardised; the penalty is L2.
2. The threshold is the one with the highest sensitivity + specificity on held-out folds, chosen inside each
   fold's own training part for the printed errors: no printed number is in-sample.
3. Replies to one prompt are always in one fold.

    calibrant show measure.fit_judge
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from calibrant.core import Frozen, InputError, OpenLM, Quiet, Result, Run, point, technique
from calibrant.data.judge_folder import write_head
from calibrant.data.judge_head import JudgeHead
from calibrant.data.rows import Graded, GradedReplies
from calibrant.maths.logistic import Floats, logistic
from calibrant.measure.judge_card import error_rates
from calibrant.measure.judges._graded import check_rows
from calibrant.models.fitting import length
from calibrant.models.pooled import Pool, features, middle_site

CHUNK = 64
"""Replies between two looks at budget and progress."""


class FitJudge(Frozen):
    """Features and regression."""

    question: str = "did the behaviour happen?"
    """What the labels answer; the judge's verdicts carry it."""
    site: str = ""
    """Where hidden states are read, as in ``model.sites()``; "" is the residual stream after the middle
    block."""
    pool: Pool = "mean"
    """Over the reply's tokens: their mean, or the last one."""
    l2: float = Field(default=1.0, gt=0)
    """Penalty on the squared weights of standardised features, against a summed log-loss."""
    folds: int = Field(default=5, ge=2)
    """Parts for cross-validation."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of every interval."""


class FitJudgeResult(Result):
    """``sensitivity`` and ``specificity`` on held-out folds, overall and by target."""

    head: JudgeHead = Field(exclude=True, repr=False)
    """Also the artefact 'judge/', for ``measure.classifier_judge``."""


class Fitted(NamedTuple):
    """One regression with its standardisation."""

    mean: Floats
    std: Floats
    weight: Floats
    bias: float

    def odds(self, x: Floats) -> Floats:
        """Log-odds of rows (N, D)."""
        log_odds: Floats = ((x - self.mean) / self.std) @ self.weight + self.bias
        return log_odds


@technique(version=1)
def fit_judge(
    model: OpenLM, labels: GradedReplies, config: FitJudge = FitJudge(), run: Run = Quiet()
) -> FitJudgeResult:
    """Fit on all rows; report held-out folds. Rows that do not fit the context are left out and counted.

    Raises:
        InputError: no rows, or too few prompts of either label for held-out folds.
        CapabilityError: the model has no such site.
    """
    check_rows(labels.rows, labels.source)
    site = config.site or middle_site(model)
    vectors = _features(model, labels.rows, site, config.pool, run)
    usable = [i for i, row in enumerate(vectors) if row is not None]
    rows = [labels.rows[i] for i in usable]
    x = np.array([vectors[i] for i in usable], np.float64).reshape(len(usable), -1)
    y = np.array([row.label for row in rows], np.bool_)
    parts = folds(rows, config.folds, run.seed)
    answers: list[bool | None] = [None] * len(labels)
    for part in range(config.folds):
        inside = parts != part
        threshold = _threshold(x[inside], y[inside], parts[inside], config)
        fitted = fit(x[inside], y[inside], config.l2)
        for place in np.flatnonzero(~inside):
            answers[usable[place]] = bool(fitted.odds(x[place : place + 1])[0] >= threshold)
    threshold = float(expit(_threshold(x, y, parts, config)))
    whole = fit(x, y, config.l2)
    head = JudgeHead(
        question=config.question,
        model=model.identity.digest,
        site=site,
        pool=config.pool,
        threshold=min(max(threshold, 1e-9), 1 - 1e-9),
        labels=labels.digest,
        targets=tuple(sorted({row.target for row in rows})),
        n=len(rows),
        mean=tuple(whole.mean.tolist()),
        std=tuple(whole.std.tolist()),
        weight=tuple(whole.weight.tolist()),
        bias=whole.bias,
    )
    write_head(head, run.artifact("judge"))
    metrics = error_rates(labels.rows, answers, config.level)
    metrics["threshold"] = point(head.threshold, unit="probability", n=len(rows))
    metrics["left_out"] = point(1 - len(rows) / len(labels), unit="share of rows", n=len(labels))
    return FitJudgeResult(
        metrics=metrics,
        caveats=(
            "held-out folds are of the same targets and attacks: on others the errors are unknown",
            "the judge learns whatever goes with the labels, such as length or topic, not their meaning",
            "it is uncalibrated until measure.judge_card has seen it on labels that it was not fitted to",
        ),
        head=head,
    )


def fit(x: Floats, y: NDArray[np.bool_], l2: float) -> Fitted:
    """Standardise (a constant feature counts for nothing) and regress."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 1e-12 * (1 + np.abs(mean)), std, 1.0)
    weight, bias = logistic((x - mean) / std, y, l2)
    return Fitted(mean, std, weight, bias)


def folds(rows: Sequence[Graded], k: int, seed: int) -> NDArray[np.intp]:
    """Fold of each row (N,): replies to one prompt together, either label spread over all folds.

    Raises:
        InputError: fewer than two times ``k`` prompts of a label.
    """
    groups: dict[object, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.prompt, []).append(place)
    rng = random.Random(seed)
    shuffled = rng.sample(list(groups.values()), len(groups))
    shuffled.sort(key=lambda group: sum(rows[i].label for i in group) / len(group))
    parts = np.zeros(len(rows), np.intp)
    for turn, group in enumerate(shuffled):
        parts[group] = turn % k
    for label in (True, False):
        held = {int(parts[i]) for i, row in enumerate(rows) if row.label == label}
        if len(held) < k:
            raise InputError(
                f"{sum(row.label == label for row in rows)} replies are labelled "
                f"{'yes' if label else 'no'}, too few for {k} folds of prompts",
                hint="label more replies, or take fewer folds",
            )
    return parts


def youden(scores: Floats, y: NDArray[np.bool_]) -> float:
    """The cut with the highest sensitivity + specificity, in the middle between two scores; nearest 0 on
    ties."""
    order = np.unique(scores)
    cuts = np.concatenate([[order[0] - 1], (order[:-1] + order[1:]) / 2, [order[-1] + 1]])
    yes, no = np.sort(scores[y]), np.sort(scores[~y])
    sensitivity = 1 - np.searchsorted(yes, cuts) / len(yes)
    specificity = np.searchsorted(no, cuts) / len(no)
    best = np.flatnonzero(sensitivity + specificity >= (sensitivity + specificity).max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best]))]])


def _threshold(x: Floats, y: NDArray[np.bool_], parts: NDArray[np.intp], config: FitJudge) -> float:
    """Cut of the log-odds, from the scores that each fold gets from a fit on the others."""
    scores = np.zeros(len(y))
    for part in np.unique(parts):
        inside = parts != part
        scores[~inside] = fit(x[inside], y[inside], config.l2).odds(x[~inside])
    return youden(scores, y)


def _features(model: OpenLM, rows: Sequence[Graded], site: str, pool: Pool, run: Run) -> list[Floats | None]:
    vectors: list[Floats | None] = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        run.spend(tokens=sum(length(model, row.prompt, row.completion) for row in chunk))
        chats, replies = [row.prompt for row in chunk], [row.completion for row in chunk]
        vectors += features(model, chats, replies, site, pool)
        run.progress(len(vectors), len(rows), "reading replies")
    return vectors
