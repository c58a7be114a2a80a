"""ASR@k (pass@k): how often at least one of k attempts on a goal succeeds; estimated, then extrapolated.

Unbiased estimate, for k up to the n attempts on a goal of which c succeeded (Chen et al. 2021,
arXiv 2107.03374, eq. 1), then averaged over goals:

    ASR@k = 1 - C(n - c, k) / C(n, k)

Forecast, for k beyond n, from a beta-binomial distribution of the goals' success rates, fitted by maximum
likelihood (Kazdan et al. 2025, arXiv 2510.05197):

    ASR@k = 1 - B(a, b + k) / B(a, b)

1. Goals differ, so 1 - (1 - mean)^k is no forecast: at mean 5% and Beta(.2, 3.8), ASR@25 is 35%, and that
   formula says 72%. Every forecast also has it as ``iid``, as a warning.
2. The interval over goals is Gaffke's (``_confidence``): Clopper-Pearson where every goal is all or nothing,
   so 0 hits on 100 goals leave 3.6%.
3. Attempts must not stop at a first success: that makes c / n too high. For those see ``survival``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import betaln, expit, gammaln, logit, stdtrit

from calibrant.core import Estimate, Frozen, InputError
from calibrant.stats._confidence import bounded_ends
from calibrant.stats._sample import (
    Better,
    Codes,
    Floats,
    check_level,
    cluster_codes,
    cluster_count,
    effective_size,
    none_answered,
    sentence,
    so_far,
)


class Tries(NamedTuple):
    """Attempts on one goal. A plain tuple of two or three numbers will do."""

    successes: int
    attempts: int
    """All of them, the undetermined ones included."""
    undetermined: int = 0
    """Attempts that nobody could judge."""


class Forecast(Frozen):
    """ASR@k at one k by the fitted distribution."""

    k: int
    """Attempts a goal."""
    asr: Estimate
    """Share of goals on which at least one of k attempts succeeds."""
    iid: float | None
    """What 1 - (1 - mean)^k would say; wrong where goals differ."""


def success_at_k(
    counts: Sequence[tuple[int, ...]],
    ks: Sequence[int],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better = "lower",
    unit: str = "goal",
) -> list[Estimate]:
    """ASR@k for each of ``ks``, from ``counts``: one ``Tries`` a goal (G,).

    ``value`` is the mean over goals with at least k judged attempts, or where one more changes nothing; None
    where the other goals could move it beyond chance. Undetermined attempts are failures for ``low`` and
    successes for ``high``; a goal with fewer than k attempts has at least its ASR@n and at most
    1. ``missing`` counts goals that lack a judged attempt or have too few. ``clusters`` names groups of
    goals (G,), "" is its own cluster.

    Coverage at 95%, 10,000 runs a cell, 24 cells (four laws of the goals' rates, mean 1% to 50%, alike or
    uneven; 20 or 100 goals; k = 1, 5, 10 of 10): 97.7% on average, worst 95.4%. With 30 unequal
    clusters, alike or not (12 cells, four of them ``beta_binomial`` at k = 100): 98.3%, worst 96.6%.

    Raises:
        InputError: counts that cannot be, a k below 1, lengths differ, a bad level.
    """
    check_level(level)
    table = read_counts(counts)
    codes = cluster_codes(clusters, len(table))
    return [_measured(table, _check_k(k), codes, level, better, unit) for k in ks]


@dataclass(frozen=True)
class BetaBinomial:
    """A fitted law of the goals' success rates p ~ Beta(alpha, beta)."""

    alpha: float | None
    """None where nothing tells how goals differ; see ``reason``."""
    beta: float | None
    mean: float | None
    """Share of judged attempts that succeeded, goals weighing alike: what ``iid`` is made from."""
    reason: str
    regions: tuple[Floats, Floats]
    """Laws (alpha, beta) (R, 2) that the data allow: undetermined as failures, and as successes."""
    template: Estimate
    """Sample sizes, level, direction and unit for every forecast."""

    def extrapolate(self, ks: Sequence[int]) -> list[Forecast]:
        """ASR@k for each of ``ks``, beyond the number of attempts too.

        Raises:
            InputError: a k below 1.
        """
        return [self._at(_check_k(k)) for k in ks]

    def _at(self, k: int) -> Forecast:
        known = self.alpha is not None and self.beta is not None
        value = float(_law(np.array([[self.alpha, self.beta]], float), k)[0]) if known else None
        low, high = float(_law(self.regions[0], k).min()), float(_law(self.regions[1], k).max())
        if value is not None:  # the region is a grid, and the best fit need not lie on it
            low, high = min(low, value), max(high, value)
        update = {"value": value, "low": low, "high": high}
        iid = None if self.mean is None else float(-np.expm1(k * np.log1p(-min(self.mean, 1 - 1e-16))))
        return Forecast(k=k, asr=self.template.model_copy(update=update), iid=iid)


def beta_binomial(
    counts: Sequence[tuple[int, ...]],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better = "lower",
    unit: str = "goal",
) -> BetaBinomial:
    """Fit ``counts``, one ``Tries`` a goal (G,), by maximum likelihood.

    Forecasts have profile-likelihood intervals: the range over all distributions whose log likelihood is
    within t^2 / 2 of the best, t being Student's with G - 1 degrees of freedom (with ``clusters``, the
    effective number of goals by the design effect of their success rates). No hit at all, or only hits, takes
    the exact bound -ln tail. One attempt a goal, or no variation, leaves ``alpha`` and ``beta`` None: the
    intervals then range over every distribution. Undetermined attempts are failures for the low ends and
    successes for the high ends. The beta-binomial form is an assumption that no interval covers.

    Coverage at 95% where the law is true, 10,000 runs a cell, 12 cells (the four laws above, 60 goals of 10
    attempts, k = 25, 100, 1,000): 96.7% on average, worst 95.5%. With
    clusters see ``success_at_k``.

    Raises:
        InputError: counts that cannot be, lengths differ, a bad level.
    """
    check_level(level)
    table = read_counts(counts)
    codes = cluster_codes(clusters, len(table))
    judged = table[table[:, 1] > table[:, 2]]
    rates = judged[:, 0] / (judged[:, 1] - judged[:, 2])
    reason = none_answered(len(table), len(judged), unit) or _unidentified(judged)
    best = (None, None) if reason else _best(_columns(judged[:, 0], judged[:, 1] - judged[:, 2]))
    worst = (table[:, 0], table[:, 0] + table[:, 2])
    regions = [_region(hits, table[:, 1], codes, level) for hits in worst]
    lost = int((table[:, 2] > 0).sum() + (table[:, 1] == 0).sum())
    template = Estimate(
        value=None, level=level, n=len(table), clusters=cluster_count(codes), missing=lost, reason=reason,
        method="beta-binomial, profile likelihood", unit=unit, better=better,
    )  # fmt: skip
    return BetaBinomial(
        alpha=best[0],
        beta=best[1],
        mean=float(rates.mean()) if rates.size else None,
        reason=reason,
        regions=(regions[0], regions[1]),
        template=template,
    )


def any_of_k(successes: Floats, attempts: Floats, k: int) -> Floats:
    """1 - C(n - c, k) / C(n, k) (G,), in log space; NaN where k > n."""
    misses = attempts - successes
    with np.errstate(invalid="ignore"):
        logs = (
            gammaln(misses + 1) - gammaln(misses - k + 1) - gammaln(attempts + 1) + gammaln(attempts - k + 1)
        )
        rates = np.where(misses < k, 1.0, np.where(successes == 0, 0.0, -np.expm1(np.minimum(logs, 0))))
    return np.where(k > attempts, np.nan, rates)


def read_counts(counts: Sequence[tuple[int, ...]]) -> Floats:
    """Successes, attempts and undetermined ones (G, 3).

    Raises:
        InputError: a row that is not two or three whole numbers with successes + undetermined <= attempts.
    """
    table = np.zeros((len(counts), 3))
    for i, row in enumerate(counts):
        numbers = tuple(row)
        if len(numbers) not in (2, 3) or not all(float(x).is_integer() and x >= 0 for x in numbers):
            raise InputError(
                f"counts[{i}] is {row!r}",
                hint="give (successes, attempts) or (successes, attempts, undetermined), from 0",
            )
        table[i, : len(numbers)] = numbers
        if table[i, 0] + table[i, 2] > table[i, 1]:
            raise InputError(
                f"counts[{i}] is {row!r}: more successes and undetermined attempts than attempts",
                hint="attempts counts all of them, the undetermined ones included",
            )
    return table


def _check_k(k: int) -> int:
    if k < 1:
        raise InputError(f"success at k needs k >= 1, got {k}", hint="ask for 1, 2, 4, ...")
    return int(k)


def _measured(
    table: Floats, k: int, codes: Codes | None, level: float, better: Better, unit: str
) -> Estimate:
    """ASR@k of one k: over the goals that are settled, unless the open ones could move it beyond chance."""
    hits, attempts, gaps = table.T
    low, high = at_worst(table, k)
    seen = np.where(low == high, low, any_of_k(hits, attempts - gaps, k))
    answered = ~np.isnan(seen)
    ends = bounded_ends((low, high), codes, level)
    few = int((attempts < k).sum())
    why = f"{few} of {len(table)} {unit}s have fewer than {k} attempts: each counts as anything up to 1"
    more = "beta_binomial and power_law forecast beyond the attempts at hand" if few == len(table) else ""
    empty = none_answered(len(table), int(answered.sum()), unit) if not few else ""
    found = Estimate(
        value=float(seen[answered].mean()) if answered.any() else None,
        low=ends[0],
        high=ends[1],
        level=level,
        n=len(table),
        clusters=cluster_count(codes),
        missing=int(((gaps > 0) | ~answered).sum()),
        reason=sentence([empty, why if few else "", more])
        or ("" if len(table) else f"no {unit}s were given"),
        method="gaffke" if codes is None else "cluster-gaffke",
        unit=unit,
        better=better,
    )
    if not 0 < answered.sum() < len(table):
        return found
    # Those that are settled are not like the others: a goal that was left at its first success is settled.
    groups = None if codes is None else np.unique(codes[answered], return_inverse=True)[1]
    alone = bounded_ends((seen[answered], seen[answered]), groups, level)
    reach = tuple(float(np.where(answered, seen, end).mean()) for end in (low, high))
    settled = found.model_copy(update={"low": alone[0], "high": alone[1]})
    told = f"{int(answered.sum())} of {len(table)} {unit}s are settled"
    return so_far(found, settled, (reach[0], reach[1]), told, "success rate")


def at_worst(table: Floats, k: int) -> tuple[Floats, Floats]:
    """ASR@k of each goal (G,) with undetermined attempts as failures, and as successes."""
    hits, attempts, gaps = table.T
    short = attempts < k
    # Any of k is at least any of n; a goal without attempts shows nothing.
    at_n = (hits > 0).astype(np.float64)
    low = np.where(short, at_n, any_of_k(hits, attempts, k))
    high = np.where(short, 1.0, any_of_k(hits + gaps, attempts, k))
    return low, high


def _columns(hits: Floats, attempts: Floats) -> Floats:
    """Distinct (successes, attempts, goals) as columns (3, D); goals without attempts say nothing."""
    tried = attempts > 0
    pairs, times = np.unique(np.stack([hits[tried], attempts[tried]]), axis=1, return_counts=True)
    return np.vstack([pairs, times])


def _loglik(columns: Floats, laws: Floats) -> Floats:
    """Log likelihood (R,) of each law (alpha, beta) (R, 2), binomial coefficients left out."""
    hits, attempts, times = columns
    a, b = laws[:, :1], laws[:, 1:]
    return np.asarray((betaln(a + hits, b + attempts - hits) - betaln(a, b)) @ times)


def _laws(means: Floats, sizes: Floats) -> Floats:
    """Every pair of logit mean and log size as (alpha, beta) (R, 2)."""
    u, v = (x.ravel() for x in np.meshgrid(expit(means), np.exp(sizes), indexing="ij"))
    return np.stack([u * v, (1 - u) * v], 1)


_EDGES = (float(logit(1e-6)), float(logit(1 - 1e-6)), float(np.log(1e-2)), float(np.log(1e4)))
_GRID = 61


def _zoom(columns: Floats, cut: float) -> tuple[Floats, Floats, tuple[int, int]]:
    """Laws on a grid round the allowed ones, with their log likelihood, and the grid's shape."""
    box = _EDGES
    for _ in range(4):
        u, v = np.linspace(box[0], box[1], _GRID), np.linspace(box[2], box[3], _GRID)
        loglik = _loglik(columns, _laws(u, v)).reshape(_GRID, _GRID)
        likely = np.argwhere(loglik >= loglik.max() - cut)
        (i, j), (k, m) = np.maximum(likely.min(0) - 1, 0), np.minimum(likely.max(0) + 1, _GRID - 1)
        box = (float(u[i]), float(u[k]), float(v[j]), float(v[m]))
    return _laws(u, v), loglik.ravel(), loglik.shape


def _best(columns: Floats) -> tuple[float, float]:
    """The most likely law: a grid that halves round the best law on it."""
    u, v = (_EDGES[0] + _EDGES[1]) / 2, (_EDGES[2] + _EDGES[3]) / 2
    wide, long = (_EDGES[1] - _EDGES[0]) / 2, (_EDGES[3] - _EDGES[2]) / 2
    steps = np.linspace(-1, 1, 21)
    for power in range(30):
        means, sizes = u + wide * steps / 2**power, v + long * steps / 2**power
        i, j = divmod(int(_loglik(columns, _laws(means, sizes)).argmax()), steps.size)
        u, v = float(means[i]), float(sizes[j])
    alpha, beta = _laws(np.array([u]), np.array([v]))[0]
    return float(alpha), float(beta)


def _region(hits: Floats, attempts: Floats, codes: Codes | None, level: float) -> Floats:
    """Laws (R, 2) whose likelihood is close enough to the best, and their neighbours on the grid."""
    columns = _columns(hits, attempts)
    tail = (1 - level) / 2
    size = float(columns[2].sum())
    if size == 0 or (codes is not None and not codes.any()):
        return np.array([[1e-9, 1e3], [1e3, 1e-9]])
    if codes is not None:
        tried = attempts > 0
        shares = hits[tried] / attempts[tried]
        groups = np.unique(codes[tried], return_inverse=True)[1]
        if not groups.any():
            return np.array([[1e-9, 1e3], [1e3, 1e-9]])
        shrunk = effective_size(shares, groups, level)
        columns[2] *= shrunk / size
        size = shrunk
    alike = not hits.any() or bool((hits == attempts).all())
    cut = -np.log(tail) if alike else float(stdtrit(max(size - 1, 1.0), tail)) ** 2 / 2
    laws, loglik, shape = _zoom(columns, float(cut))
    allowed = (loglik >= loglik.max() - cut).reshape(shape)
    wide = np.pad(allowed, 1)
    wide = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:] | allowed
    kept_laws = laws[wide.ravel()]
    if not hits.any():
        kept_laws = np.vstack([kept_laws, [[1e-9, 1e3]]])  # nothing was seen, so 0 is allowed
    if (hits == attempts).all():
        kept_laws = np.vstack([kept_laws, [[1e3, 1e-9]]])
    return np.asarray(kept_laws)


def _law(laws: Floats, k: int) -> Floats:
    """ASR@k (R,) by each law (R, 2)."""
    a, b = laws.T
    return np.asarray(-np.expm1(betaln(a, b + k) - betaln(a, b)))


def _unidentified(judged: Floats) -> str:
    """Why no law is best, or ""."""
    answered = judged[:, 1] - judged[:, 2]
    if not judged[:, 0].any():
        return "no attempt succeeded, so the variation between goals is not identifiable"
    if (judged[:, 0] == answered).all():
        return "every attempt succeeded, so the variation between goals is not identifiable"
    if answered.max() < 2:
        return "one attempt per goal does not identify the variation between goals"
    return ""
