"""A rate read by an imperfect judge, corrected for its errors, their uncertainty carried through.

With p the share that the judge calls yes, and sensitivity Se and specificity Sp known from labelled cases,

    rate = (p - (1 - Sp)) / (Se - (1 - Sp)), cut off at 0 and 1

(Rogan & Gladen 1978, American Journal of Epidemiology 107, 71-76). The interval is the melded one of Bayer,
Fay & Graubard 2022 (arXiv 2205.13494): each end is a quantile of the formula over Clopper-Pearson draws of
the three proportions, every one from its less favourable side.

1. Integrated numerically where there is one judge, so no seed; drawn where there are several.
2. Unless Se > 1 - Sp is credible at the same level, the judge tells nothing: unknown, with (0, 1).
3. Below the judge's false-positive rate no correction can see. See ``two_phase`` for what helps there.
4. Where the judge says yes less often than its false positives alone should, the high end is conditional on
   that not being so: chance, or a calibration that fits badly, then never passes for a tight bound near 0
   (CLs; Read 2002, Journal of Physics G 28, 2693-2704). Where even that is incredible the high end takes no
   false positives at all. The low end likewise, with sensitivity.
5. It holds for what the labelled cases stand for: the same target and attack family. A judge calibrated on
   another model is not corrected by this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import betainc, betaincinv

from calibrant.core import Estimate, InputError, JudgeErrors
from calibrant.stats._confidence import DRAWS, End, answers, beta_draws, effective_counts
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

    Coverage at 95%, 10,000 runs a cell: COVERAGE-RG.

    Raises:
        InputError: an outcome that is not True, False or None; counts that cannot be; a bad level.
    """
    check_level(level)
    table = _read(outcomes, clusters, level)
    blind = _blind(errors, (1 - level) / 2)
    low, high, aside = 0.0, 1.0, ""
    if errors is not None and not blind:
        low, over = _end(table.low, errors, "low", (1 - level) / 2)
        high, under = _end(table.high, errors, "high", (1 - level) / 2)
        aside = _ASIDE if over or under else ""
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

    Parts with equal ``errors`` share one calibration, and so its draws; others are independent. A part that
    nobody can correct has any rate from 0 to 1: the interval says so and ``value`` is None.

    Coverage at 95%, 10,000 runs a cell: COVERAGE-MIX.

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
    blind = [_blind(part.errors, tail) for part in parts]
    points = [
        (None, "") if why else _point(table, part.errors)
        for part, table, why in zip(parts, tables, blind, strict=True)
    ]
    values = [value for value, _ in points]
    weights = weights / weights.sum()
    low, over = _mixed(parts, tables, weights, "low", tail)
    high, under = _mixed(parts, tables, weights, "high", tail)
    unsure = [i for i, value in enumerate(values) if value is None and weights[i] > 0]
    cut = [f"part {i}: {said}" for i, (_, said) in enumerate(points) if said]
    lost = [f"part {i}: {blind[i] or 'no answers'}" for i in unsure]
    known = [w * v for w, v in zip(weights, values, strict=True) if v is not None]
    return Estimate(
        value=None if unsure else float(sum(known)),
        low=low,
        high=high,
        level=level,
        n=sum(table.n for table in tables),
        clusters=None,
        missing=sum(table.missing for table in tables),
        reason=sentence([*lost, *cut, _ASIDE if over or under else ""]),
        method="melded rogan-gladen, mixture",
        unit=unit,
        better=better,
    )


class _Table(NamedTuple):
    """What the judge said, ready for the formula."""

    low: tuple[float, float]
    """Yes and effective n with every missing answer a no."""
    high: tuple[float, float]
    """The same with every missing answer a yes."""
    share: float | None
    """Yes among the answered."""
    n: int
    missing: int
    clusters: int | None


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
        return _Table((yes, n), (yes + missing, n), share, n, missing, None)
    seen = answers(outcomes, "outcomes")
    gaps = np.isnan(seen)
    codes = cluster_codes(clusters, seen.size)
    low, high = (effective_counts(np.where(gaps, fill, seen), codes, level) for fill in (0.0, 1.0))
    missing = int(gaps.sum())
    share = float(seen[~gaps].mean()) if missing < seen.size else None
    return _Table(low, high, share, seen.size, missing, cluster_count(codes))


def _check(errors: JudgeErrors) -> None:
    if not (0 <= errors.found <= errors.positives and 0 <= errors.cleared <= errors.negatives):
        raise InputError(
            f"errors of a judge that cannot be: {errors!r}",
            hint="found counts some of the positives, cleared some of the negatives",
        )


def _rates(errors: JudgeErrors, end: End) -> tuple[tuple[float, float], tuple[float, float]]:
    """Beta parameters of the false-positive rate and the sensitivity: high ones make the rate low."""
    wrong = errors.negatives - errors.cleared
    up = end == "low"
    return (
        (wrong + up, errors.negatives - wrong + (not up)),
        (errors.found + up, errors.positives - errors.found + (not up)),
    )


_HARDLY = 0.01
"""Share of possible draws below which data and calibration contradict each other."""
_ASIDE = (
    "the judge's answers hardly fit its calibration, so the interval sets the error that does not fit aside"
)
_LEGENDRE, _WEIGHTS = np.polynomial.legendre.leggauss(40)
# Probabilities at which the judge's rates are taken, dense at both ends, where the tails are.
_NODES, _WEIGHTS = (
    (1 + np.sin(np.pi / 2 * _LEGENDRE)) / 2,
    _WEIGHTS * np.pi / 4 * np.cos(np.pi / 2 * _LEGENDRE),
)


def _quantiles(a: float, b: float) -> Floats:
    """Beta(a, b) at the nodes; a point where a parameter is 0."""
    if a == 0 or b == 0:
        return np.full_like(_NODES, float(a > 0))
    return np.asarray(betaincinv(a, b, _NODES))


def _blind(errors: JudgeErrors | None, tail: float) -> str:
    """Why the judge cannot be corrected, or ""."""
    if errors is None:
        return "nobody has measured this judge's errors here"
    _check(errors)
    # The unfavourable sides: the upper false-positive rate against the lower sensitivity.
    wrong, _ = _rates(errors, "low")
    _, found = _rates(errors, "high")
    line = _quantiles(*wrong)
    useless = (
        1.0 if found[0] == 0 else float(_WEIGHTS @ betainc(*found, line)) if found[1] else float(line[0] == 1)
    )
    if useless <= tail:
        return ""
    return (
        f"the judge found {errors.found} of {errors.positives} positives and cleared {errors.cleared} of "
        f"{errors.negatives} negatives: not credibly better than chance"
    )


def below(rate: float, counts: tuple[float, float], sides: tuple[Floats, Floats], end: End) -> float:
    """Share of the melded draws of one end that lie at or below ``rate`` in [0, 1].

    ``counts`` are yes and n; ``sides`` the judge's two rates at the nodes (``sides_of``).
    """
    line, top = sides[0][:, None], sides[1][None, :]
    at = np.where(top > line, line + rate * (top - line), 0.0)
    yes, no = counts[0] + (end == "high"), counts[1] - counts[0] + (end == "low")
    if yes == 0:
        share = np.ones_like(at)
    elif no == 0:
        share = (at >= 1).astype(np.float64)
    else:
        share = betainc(yes, no, at)
    # A draw in which the judge is no better than chance allows every rate.
    return float(_WEIGHTS @ np.where(top > line, share, float(end == "low")) @ _WEIGHTS)


def sides_of(
    counts: tuple[float, float], errors: JudgeErrors, end: End
) -> tuple[tuple[Floats, Floats], float, bool]:
    """The judge's two rates at the nodes, the share of draws that are possible, and if errors were set aside.

    A draw is impossible where the judge says yes less often than its false positives alone would (high
    end), or more often than its sensitivity allows (low end). See point 4 above.
    """
    wrong, found = _rates(errors, end)
    sides = (_quantiles(*wrong), _quantiles(*found))
    possible = 1 - below(0.0, counts, sides, end) if end == "high" else below(1.0, counts, sides, end)
    if possible >= _HARDLY:
        return sides, possible, False
    sides = (np.zeros_like(_NODES), sides[1]) if end == "high" else (sides[0], np.ones_like(_NODES))
    return sides, 1.0, True


def _end(counts: tuple[float, float], errors: JudgeErrors, end: End, tail: float) -> tuple[float, bool]:
    """One end of the interval, and whether the calibration had to be set aside for it."""
    sides, possible, aside = sides_of(counts, errors, end)
    goal = tail * possible if end == "low" else 1 - tail * possible
    if below(0.0, counts, sides, end) >= goal:
        return 0.0, aside
    if below(1.0, counts, sides, end) <= goal:
        return 1.0, aside
    left, right = 0.0, 1.0
    for _ in range(36):  # to 1e-11
        middle = (left + right) / 2
        left, right = (left, middle) if below(middle, counts, sides, end) > goal else (middle, right)
    return (left + right) / 2, aside


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
    """One end of the weighted sum, from draws, and whether a calibration was set aside. See ``_end``."""
    rng = np.random.default_rng(0)
    groups: dict[JudgeErrors, list[int]] = {}
    total, aside = np.zeros(DRAWS), False
    for i, part in enumerate(parts):
        if part.errors is None or _blind(part.errors, tail):
            total += weights[i] * (end == "high")
        else:
            groups.setdefault(part.errors, []).append(i)
    for errors, members in groups.items():
        wrong, found = _rates(errors, end)
        line, top = _drawn(rng, wrong), _drawn(rng, found)
        shares = [beta_draws(rng, *(tables[i].low if end == "low" else tables[i].high), end) for i in members]
        fits = [share >= line if end == "high" else share <= top for share in shares]
        possible = np.flatnonzero(np.all(fits, axis=0) | (top <= line))
        if possible.size < _HARDLY * DRAWS:
            aside = True
            line, top = (line * 0, top) if end == "high" else (line, top * 0 + 1)
            possible = np.arange(DRAWS)
        kept = rng.choice(possible, DRAWS)
        gap = np.where(top > line, top - line, np.nan)
        # Cut off at 0 and 1 only after the sum: a sum of rates cut off one by one is too high near 0.
        floor, ceiling = (-1.0, 1.0) if end == "low" else (0.0, 2.0)
        for i, share in zip(members, shares, strict=True):
            rates = np.clip((share - line) / gap, floor, ceiling)
            total += weights[i] * np.where(np.isnan(rates), floor if end == "low" else ceiling, rates)[kept]
    if end == "low":
        return max(0.0, float(np.quantile(total, tail, method="lower"))), aside
    return min(1.0, float(np.quantile(total, 1 - tail, method="higher"))), aside


def _drawn(rng: np.random.Generator, parameters: tuple[float, float]) -> Floats:
    """Draws of Beta(a, b); a point where a parameter is 0."""
    a, b = parameters
    return np.full(DRAWS, float(a > 0)) if a == 0 or b == 0 else rng.beta(a, b, DRAWS)
