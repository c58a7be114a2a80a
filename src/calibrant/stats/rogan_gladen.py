"""Rogan-Gladen correction of a rate for a judge's sensitivity and specificity, with their uncertainty.

With p the share that the judge calls yes, and sensitivity Se and specificity Sp known from labelled cases,

    rate = (p - (1 - Sp)) / (Se - (1 - Sp)), cut off at 0 and 1

(Rogan & Gladen 1978, American Journal of Epidemiology 107, 71-76). The interval is the melded one of Bayer,
Fay & Graubard 2022 (arXiv 2205.13494): each end is a quantile of the formula over Clopper-Pearson draws of
the three proportions, every one from its less favourable side.

1. Integrated numerically where there is one judge, so no seed; drawn where there are several.
2. Unless Se > 1 - Sp at the same level, the judge is uninformative: unknown, with (0, 1).
3. Below the judge's false-positive rate no correction helps; use ``two_phase`` there.
4. Where the judge says yes less often than its false positives alone should, the high end is conditional on
   that not being so: chance, or a calibration that fits badly, then never passes for a tight bound near 0
   (CLs; Read 2002, Journal of Physics G 28, 2693-2704). Where even that is incredible the high end takes no
   false positives at all. The low end likewise, with sensitivity.
5. It holds for the population of the labelled cases: the same target and attack family. A calibration on
   another model does not transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import betaincinv, ndtr

from calibrant.core import Estimate, InputError, JudgeErrors
from calibrant.stats._confidence import DRAWS, End, answers, effective_counts
from calibrant.stats._melded import ASIDE, HARDLY, melded_end, rates_of, why_blind
from calibrant.stats._sample import (
    Better,
    Floats,
    check_level,
    cluster_codes,
    cluster_count,
    none_answered,
    sentence,
)


class Counts(NamedTuple):
    """The judge's answers as counts, where the single ones are gone."""

    yes: int
    n: int
    """All that were asked, the missing ones included."""
    missing: int = 0
    """Those without a yes or a no."""


Answers: TypeAlias = Sequence[bool | None] | Counts


class Part(NamedTuple):
    """One stratum of a mixture, such as an attack family."""

    weight: float
    """Its share of the whole, up to a common factor."""
    outcomes: Answers
    """What the judge said."""
    errors: JudgeErrors | None
    """The judge's errors there; None where nobody has measured them."""
    clusters: Sequence[str] | None = None
    """Group of each outcome."""


def corrected_rate(
    outcomes: Answers,
    errors: JudgeErrors | None,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better = "lower",
    unit: str = "attempt",
) -> Estimate:
    """The true rate behind the judge's yes and no (n,).

    A missing answer (None) is a no for ``low`` and a yes for ``high``. ``clusters`` names groups of outcomes
    and shrinks n to Korn & Graubard's effective one (the number of clusters where all agree); the labelled
    cases behind ``errors`` are taken as independent. Without ``errors``, or with errors that are not credibly
    better than chance, it is unknown.

    Coverage at 95%, 10,000 runs a cell, 80 cells (rate 0 to .9, Se and Sp .7 to .99, 50 or 500 labelled cases
    of each kind, 100 or 1,000 answers): 98.1% on average, worst cell 95.8%.
    With 40 clusters of 10 (rate .02 to .4, correlation 0 or .3): 97.3%, worst 96.5%.

    Raises:
        InputError: an outcome that is not True, False or None; counts that cannot be; a bad level.
    """
    check_level(level)
    table = _read(outcomes, clusters, level)
    blind = why_blind(errors, (1 - level) / 2)
    low, high, aside = 0.0, 1.0, ""
    if errors is not None and not blind:
        low, over = melded_end(table.low, errors, "low", (1 - level) / 2)
        high, under = melded_end(table.high, errors, "high", (1 - level) / 2)
        aside = ASIDE if over or under else ""
    value, cut = _point(table, errors) if not blind else (None, "")
    empty = none_answered(table.n, table.n - table.missing, unit)
    method = "melded rogan-gladen" if clusters is None else "melded rogan-gladen, korn-graubard effective n"
    return Estimate(
        value=value, low=low, high=high, level=level, n=table.n, clusters=table.clusters,
        missing=table.missing, reason=sentence([empty, blind, cut, aside]), method=method,
        unit=unit, better=better,
    )  # fmt: skip


def corrected_mixture(
    parts: Sequence[Part], *, level: float = 0.95, better: Better = "lower", unit: str = "attempt"
) -> Estimate:
    """Weighted mean of corrected rates over strata, each with its judge's errors there.

    Parts with equal ``errors`` share one calibration, and so its draws; other calibrations are independent.
    Parts that name the same clusters (goals that several attacks share) are coupled by the correlation of
    their totals per cluster. A part without calibration has any rate from 0 to 1: the interval says so
    and ``value`` is None.

    Coverage at 95%, 10,000 runs a cell, 10 cells (three families at rates 0 to 1, one calibration or three):
    98.4% on average, worst 97.6%; with 30 goals in common, alike or not, 97.2% and 95.9% (2 cells).

    Raises:
        InputError: no parts, a weight below 0 or none above it; and see ``corrected_rate``.
    """
    check_level(level)
    weights = np.array([part.weight for part in parts], np.float64)
    if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise InputError(
            f"a mixture needs weights from 0, one of them above it, got {weights.tolist()}",
            hint="give each part its share of the whole, such as its number of goals",
        )
    tail = (1 - level) / 2
    tables = [_read(part.outcomes, part.clusters, level) for part in parts]
    blind = [why_blind(part.errors, tail) for part in parts]
    points = [
        (None, "") if why else _point(table, part.errors)
        for part, table, why in zip(parts, tables, blind, strict=True)
    ]
    values = [value for value, _ in points]
    weights = weights / weights.sum()
    low, over = _mixed(parts, tables, weights, "low", tail)
    high, under = _mixed(parts, tables, weights, "high", tail)
    unsure = [i for i, value in enumerate(values) if value is None and weights[i] > 0]
    cut = [f"part {i}: {remark}" for i, (_, remark) in enumerate(points) if remark]
    lost = [f"part {i}: {blind[i] or 'no answers'}" for i in unsure]
    known = [w * v for w, v in zip(weights, values, strict=True) if v is not None]
    return Estimate(
        value=None if unsure else float(sum(known)),
        low=low,
        high=high,
        level=level,
        n=sum(table.n for table in tables),
        clusters=_groups(tables, parts),
        missing=sum(table.missing for table in tables),
        reason=sentence([*lost, *cut, ASIDE if over or under else ""]),
        method="melded rogan-gladen, mixture",
        unit=unit,
        better=better,
    )


class _Table(NamedTuple):
    """The judge's counts for the formula."""

    low: tuple[float, float]
    """Yes and effective n with every missing answer a no."""
    high: tuple[float, float]
    """The same with every missing answer a yes."""
    share: float | None
    """Yes among the answered."""
    n: int
    missing: int
    clusters: int | None
    off: dict[str, float]
    """Cluster -> sum of its answers less the share; what parts with a cluster in common are coupled by."""


def _read(outcomes: Answers, clusters: Sequence[str] | None, level: float) -> _Table:
    """Counts for both ends."""
    if isinstance(outcomes, Counts):
        yes, n, missing = outcomes
        if min(yes, missing, n - yes - missing) < 0 or clusters is not None:
            raise InputError(
                f"{outcomes!r} with clusters {clusters!r}",
                hint="counts need yes + missing <= n; with clusters give the outcomes one by one",
            )
        share = yes / (n - missing) if n > missing else None
        return _Table((yes, n), (yes + missing, n), share, n, missing, None, {})
    seen = answers(outcomes, "outcomes")
    gaps = np.isnan(seen)
    codes = cluster_codes(clusters, seen.size)
    low, high = (effective_counts(np.where(gaps, fill, seen), codes, level) for fill in (0.0, 1.0))
    missing = int(gaps.sum())
    share = float(seen[~gaps].mean()) if missing < seen.size else None
    off: dict[str, float] = {}
    for name, answer in zip(clusters or (), seen, strict=clusters is not None):
        if name:
            off[name] = off.get(name, 0.0) + (0.0 if np.isnan(answer) else float(answer) - (share or 0.0))
    return _Table(low, high, share, seen.size, missing, cluster_count(codes), off)


def _groups(tables: list[_Table], parts: Sequence[Part]) -> int | None:
    """Independent groups over all parts; None where none is named."""
    names = {name for table in tables for name in table.off}
    alone = sum(
        table.n if part.clusters is None else sum(not name for name in part.clusters)
        for table, part in zip(tables, parts, strict=True)
    )
    return len(names) + alone if names else None


def _point(table: _Table, errors: JudgeErrors | None) -> tuple[float | None, str]:
    """The corrected rate, and a word where it was cut off."""
    if errors is None or table.share is None:
        return None, ""
    wrong = 1 - errors.cleared / errors.negatives
    raw = (table.share - wrong) / (errors.found / errors.positives - wrong)
    value = min(1.0, max(0.0, raw))
    return value, "" if value == raw else f"the correction gives {raw:.3f}, cut off at {value:.0f}"


def _mixed(
    parts: Sequence[Part], tables: list[_Table], weights: Floats, end: End, tail: float
) -> tuple[float, bool]:
    """One end of the weighted sum, from draws, and whether a calibration was set aside (``melded_end``)."""
    rng = np.random.default_rng(0)
    groups: dict[JudgeErrors, list[int]] = {}
    total, aside = np.zeros(DRAWS), False
    for i, part in enumerate(parts):
        if part.errors is None or why_blind(part.errors, tail):
            total += weights[i] * (end == "high")
        else:
            groups.setdefault(part.errors, []).append(i)
    normal = rng.standard_normal((DRAWS, len(parts))) @ _coupling(tables)
    shares = [
        _beta_at(z, *(table.low if end == "low" else table.high), end)
        for z, table in zip(normal.T, tables, strict=True)
    ]
    for errors, members in groups.items():
        line, top = (_drawn(rng, *parameters) for parameters in rates_of(errors, end))
        fits = [shares[i] >= line if end == "high" else shares[i] <= top for i in members]
        fit = np.all(fits, axis=0) | (top <= line)
        places = np.arange(DRAWS)
        if fit.mean() < HARDLY:
            aside = True
            line, top = (line * 0, top) if end == "high" else (line, top * 0 + 1)
        else:  # only impossible draws are replaced, so that the others stay coupled to other groups
            places[~fit] = rng.choice(np.flatnonzero(fit), int((~fit).sum()))
        gap = np.where(top > line, top - line, np.nan)
        # Cut off at 0 and 1 only after the sum: a sum of rates cut off one by one is too high near 0.
        floor, ceiling = (-1.0, 1.0) if end == "low" else (0.0, 2.0)
        for i in members:
            rates = np.clip((shares[i] - line) / gap, floor, ceiling)
            total += weights[i] * np.where(np.isnan(rates), floor if end == "low" else ceiling, rates)[places]
    if end == "low":
        return max(0.0, float(np.quantile(total, tail, method="lower"))), aside
    return min(1.0, float(np.quantile(total, 1 - tail, method="higher"))), aside


def _coupling(tables: list[_Table]) -> Floats:
    """Root (P, P) of the correlation between the parts' shares, from the clusters that they have in common.

    Never below 0; 1 between parts with a cluster in common where one of them never varies, since then
    nothing shows how much they share.
    """
    names = {name: j for j, name in enumerate(dict.fromkeys(name for t in tables for name in t.off))}
    off, held = np.zeros((2, len(tables), max(len(names), 1)))
    for i, table in enumerate(tables):
        for name, total in table.off.items():
            off[i, names[name]], held[i, names[name]] = total, 1.0
    spread = np.sqrt((off**2).sum(1))
    flat = spread < 1e-9
    correlation = (
        np.maximum(off @ off.T, 0.0) / np.where(flat, 1.0, spread)[:, None] / np.where(flat, 1.0, spread)
    )
    shared = (held @ held.T > 0) & (flat[:, None] | flat[None, :])
    correlation[shared] = 1.0
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray((root / np.sqrt((root**2).sum(1, keepdims=True))).T)


_SCORES = np.linspace(-7.0, 7.0, 701)


def _beta_at(scores: Floats, successes: float, n: float, end: End) -> Floats:
    """The draws of ``beta_draws`` that stand where the normal ``scores`` (DRAWS,) do, by interpolation."""
    yes, no = successes + (end == "high"), n - successes + (end == "low")
    if yes <= 1e-12 or no <= 1e-12:
        return np.full(DRAWS, float(no <= 1e-12))
    return np.asarray(np.interp(scores, _SCORES, betaincinv(yes, no, ndtr(_SCORES))))


def _drawn(rng: np.random.Generator, a: float, b: float) -> Floats:
    """Draws of Beta(a, b); a point where a parameter is 0."""
    return np.full(DRAWS, float(a > 0)) if a == 0 or b == 0 else rng.beta(a, b, DRAWS)
