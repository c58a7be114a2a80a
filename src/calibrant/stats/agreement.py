"""Inter-rater agreement, label noise, and the accuracy ceiling that noise implies.

Pairwise agreement and Gwet's AC1 (2008, British J. of Math. and Stat. Psychology 61, 29-48); Krippendorff's
alpha, nominal (2011, "Computing Krippendorff's alpha-reliability"). Intervals bootstrap items. A tie is a
label like any other: it is never split into two half votes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr

from calibrant.core import Estimate, InputError, unknown
from calibrant.core.errors import nearest
from calibrant.stats._sample import Codes, Floats, check_level, sentence
from calibrant.stats.bootstrap import RESAMPLES, check_resamples, mean


class Ratings(NamedTuple):
    """Ratings, one a place: whose item (V,), by which rater (V,), which label (V,), each as a code from 0."""

    item: Codes
    rater: Codes
    label: Codes
    items: tuple[str, ...]
    """Names of the items, in the order of their codes; each has at least one rating."""
    raters: tuple[str, ...]
    """Names of the raters."""
    labels: tuple[str, ...]
    """All labels that could be given, used or not."""


def ratings(given: Iterable[tuple[str, str, str]], labels: Sequence[str]) -> Ratings:
    """Read (item, rater, label) triples. A rater without a rating of an item has no triple for it.

    The order of the triples never matters: items and raters are sorted by name.

    Raises:
        InputError: fewer than two labels to choose from, or a label that is none of them.
    """
    triples = list(given)
    if len(set(labels)) < 2:
        raise InputError(
            f"agreement needs at least two labels to choose from, got {list(labels)}",
            hint="name every label that a rater could have given, used or not",
        )
    place = {name: code for code, name in enumerate(dict.fromkeys(labels))}
    for item, rater, label in triples:
        if label not in place:
            raise InputError(
                f"rater '{rater}' gave item '{item}' the label '{label}'{nearest(label, place)}",
                hint=f"labels: {', '.join(place)}",
            )
    items = sorted({item for item, _, _ in triples})
    raters = sorted({rater for _, rater, _ in triples})
    of_item, of_rater = ({name: code for code, name in enumerate(names)} for names in (items, raters))
    codes = np.array(
        sorted((of_item[i], of_rater[r], place[name]) for i, r, name in triples), dtype=np.intp
    ).reshape(-1, 3)
    return Ratings(codes[:, 0], codes[:, 1], codes[:, 2], tuple(items), tuple(raters), tuple(place))


def counts(rated: Ratings) -> Floats:
    """How often each item got each label, (N items, K labels).

    Raises:
        InputError: a rater rated an item twice: intra-rater agreement is measured separately.
    """
    pairs = rated.item * max(1, len(rated.raters)) + rated.rater
    seen, times = np.unique(pairs, return_counts=True)
    if (times > 1).any():
        item, rater = divmod(int(seen[times > 1][0]), len(rated.raters))
        raise InputError(
            f"rater '{rated.raters[rater]}' rated item '{rated.items[item]}' more than once",
            hint="keep one rating of each item by each rater; compare repeats separately",
        )
    n, k = len(rated.items), len(rated.labels)
    return np.bincount(rated.item * k + rated.label, minlength=n * k).reshape(n, k).astype(np.float64)


def agreement(rated: Ratings, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Probability that two random raters of an item give it the same label; mean over items.

    Items with a single rating say nothing about agreement; ``reason`` counts them. Interval: bootstrap-t
    over items.
    """
    table = counts(rated)
    agreed = _agreed(table)
    several = table.sum(axis=1) >= 2
    if not several.any():
        return _nothing(rated)
    estimate = mean(
        agreed[several].tolist(),
        level=level, seed=seed, better="higher", unit="item", bounds=(0.0, 1.0),
    )  # fmt: skip
    return estimate.model_copy(update={"reason": sentence([_alone(several), estimate.reason])})


def krippendorff_alpha(
    rated: Ratings, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Krippendorff's alpha for nominal labels: 1 - observed / expected disagreement; 0 is chance.

    Missing ratings are allowed. Unknown where everybody always gave one and the same label: chance agreement
    is then complete, and whether raters distinguish the labels is not identifiable.
    """
    table = counts(rated)
    several = table.sum(axis=1) >= 2
    rows = table[several]
    size = rows.sum(axis=1, keepdims=True)
    # Coincidences on the diagonal of a unit: sum_k n_uk (n_uk - 1) / (m_u - 1).
    columns = np.hstack([rows, (rows * (rows - 1)).sum(axis=1, keepdims=True) / np.maximum(size - 1, 1)])
    if not several.any():
        return _nothing(rated)
    return _over_items(columns, _alpha, _alone(several), level, resamples, seed)


def gwet_ac1(rated: Ratings, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Gwet's AC1: chance-corrected agreement, with a chance term that stays small where one label
    prevails."""
    table = counts(rated)
    size = table.sum(axis=1, keepdims=True)
    several = size[:, 0] >= 2
    if not several.any():
        return _nothing(rated)
    shares = table / size
    columns = np.hstack([shares, _agreed(table)[:, None], several[:, None].astype(np.float64)])
    return _over_items(columns, _ac1, _alone(several), level, resamples, seed)


def label_noise(rated: Ratings, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Rate at which one label differs from the truth that the raters' consensus points to.

    Model: each rating is wrong with the same probability e, independently, and wrong ratings spread evenly
    over the other K - 1 labels. Two ratings of an item then agree with probability (1 - e)^2 + e^2 / (K - 1),
    so

        e = (K - 1) / K * (1 - sqrt((K A - 1) / (K - 1)))        K = 2: (1 - sqrt(2 A - 1)) / 2

    for the pairwise agreement A. The interval is that of A, carried over. Raters who differ in skill change
    little; errors that raters share (a hard item, a common bias) agree with each other and are not seen, so
    the true rate may be higher. Agreement below chance puts e at its ceiling (K - 1) / K.
    """
    agreed = agreement(rated, level=level, seed=seed)
    if agreed.value is None:
        return agreed
    k = len(rated.labels)

    def noise(share: float) -> float:
        return (k - 1) / k * (1 - math.sqrt(max(0.0, (k * share - 1) / (k - 1))))

    low, high = agreed.low, agreed.high
    return agreed.model_copy(
        update={
            "value": noise(agreed.value),
            "low": None if high is None else noise(high),
            "high": None if low is None else noise(low),
            "method": f"from pairwise agreement, {agreed.method}",
            "better": "lower",
        }
    )


def accuracy_ceiling(noise: Estimate, votes: Sequence[int] = (1,)) -> Estimate:
    """What a perfect reward model scores on held-out labels, each the majority of some votes.

    Args:
        noise: the rate at which one vote is wrong, of two sides; see ``label_noise``.
        votes: how many decided votes each label was made of. One each: 1 - noise. An even number may end
            in a draw, which makes no label.
    """
    if noise.value is None:
        return noise.model_copy(update={"better": "none"})
    sizes, times = np.unique(np.asarray(votes), return_counts=True)

    def right(wrong: float) -> float:
        won = bdtr((sizes - 1) // 2, sizes, wrong)
        lost = bdtr((sizes - 1) // 2, sizes, 1 - wrong)
        return float((times * won / (won + lost)).sum() / times.sum())

    return noise.model_copy(
        update={
            "value": right(noise.value),
            "low": None if noise.high is None else right(noise.high),
            "high": None if noise.low is None else right(noise.low),
            "better": "none",
        }
    )


def _agreed(table: Floats) -> Floats:
    """Share of the pairs of ratings of each item that agree, (N,); 0 where there is no pair."""
    size = table.sum(axis=1)
    shares: Floats = (table * (table - 1)).sum(axis=1) / np.maximum(size * (size - 1), 1)
    return shares


def _alpha(sums: Floats) -> Floats:
    """Alpha of each row of sums (B, K + 1): labels in use, then coincidences on the diagonal."""
    used, same = sums[:, :-1], sums[:, -1]
    n = used.sum(axis=1)
    expected = 1 - (used * (used - 1)).sum(axis=1) / (n * (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 1e-12, 1 - (1 - same / n) / expected, np.nan)


def _ac1(sums: Floats) -> Floats:
    """AC1 of each row of sums (B, K + 2): label shares, agreement, items with two ratings or more."""
    share = sums[:, :-2] / sums[:, :-2].sum(axis=1, keepdims=True)
    chance = (share * (1 - share)).sum(axis=1) / (share.shape[1] - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficient: Floats = (sums[:, -2] / sums[:, -1] - chance) / (1 - chance)
    return coefficient


def _over_items(
    columns: Floats,
    statistic: Callable[[Floats], Floats],
    remark: str,
    level: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """``statistic`` of the column sums (N, C), with a bootstrap interval that draws whole items again.

    Percentiles of the deviations on both sides. A resample in which the statistic has no value counts as
    the worst one at either end.
    """
    check_level(level)
    check_resamples(resamples)
    # Equal items are one kind with a multiplicity, in sorted order: quick, and the order never matters.
    kinds, times = np.unique(columns, axis=0, return_counts=True)
    n = int(times.sum())
    value = float(statistic((times @ kinds)[None])[0])
    if math.isnan(value):
        why = "every rating is the same label, so whether raters distinguish the labels is not identifiable"
        return unknown(sentence([why, remark]), n=n, unit="item").model_copy(update={"better": "higher"})
    drawn = np.random.default_rng(seed).multinomial(n, times / n, size=resamples)
    resampled = statistic(drawn @ kinds)
    tail = (1 - level) / 2
    low = float(np.quantile(np.nan_to_num(resampled, nan=-1.0), tail, method="inverted_cdf"))
    high = float(np.quantile(np.nan_to_num(resampled, nan=1.0), 1 - tail, method="inverted_cdf"))
    flat = "all items agree alike, so no interval was drawn" if len(kinds) == 1 or low == high else ""
    return Estimate(
        value=value,
        low=None if flat else min(low, value),
        high=None if flat else max(high, value),
        level=level,
        n=n,
        reason=sentence([remark, flat]),
        method="bootstrap over items",
        unit="item",
        better="higher",
        null_value=0.0,
    )


def _alone(several: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
    """How many items had no second rating."""
    alone = int((~several).sum())
    return f"{alone} of {several.size} items have a single rating and say nothing here" if alone else ""


def _nothing(rated: Ratings) -> Estimate:
    """No two raters of one item."""
    return unknown("no item was rated by two raters", n=len(rated.items), unit="item")
