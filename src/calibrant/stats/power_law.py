"""Best-of-n jailbreaking by a power law: -log ASR(N) = a N^-b, fitted, tested on itself, forecast.

Hughes et al. 2024 (arXiv 2412.03556, section 4) fit a straight line to log(-log ASR) against log N. Here:

1. The points are ASR@k for k = 1, 2, 4, ... up to the fewest attempts on a goal, without bias
   (``at_k``), each weighing alike. Points of 0 or 1 have no log-log and are left out.
2. Uncertainty is that of new goals: goals (or clusters of them) are weighed anew by Dirichlet(1, ..., 1), the
   Bayesian bootstrap (Rubin 1981, Annals of Statistics 9, 130-134), and the line is refitted. The percentiles
   are expanded by Student's t for few goals (Hesterberg 2015, American Statistician 69, 371-386).
3. The law is an assumption. It is called poor, and nothing is forecast, where the line misses a point by
   more than ``GAP``, or where, fitted without the last two octaves, it fails to forecast the last point.
   A test that passes is no proof: the tail beyond the data may bend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from calibrant.core import Estimate, Frozen, InputError
from calibrant.stats._sample import (
    Better,
    Codes,
    Floats,
    check_level,
    cluster_codes,
    cluster_count,
    sentence,
)
from calibrant.stats.at_k import any_of_k, at_worst, read_counts
from calibrant.stats.best_of_n import powers_of_two

GAP = 0.03
"""Largest difference between the law and a measured ASR@k that still passes."""
DRAWS = 2000


class PowerLaw(Frozen):
    """The fitted law and how well it fits."""

    a: Estimate
    """-log ASR(1) by the law."""
    b: Estimate
    """How fast ASR grows; 0 is not at all."""
    r2: float | None
    """Share of the variance of log(-log ASR) that the line explains; None where there is none."""
    gap: float | None
    """Largest difference between the law and a measured ASR@k."""
    ks: tuple[int, ...]
    """Where it was fitted."""
    asr: tuple[float, ...]
    """What was measured there."""
    poor: str
    """Why the law is not to be used, or ""."""
    forecasts: tuple[Estimate, ...]
    """ASR at each of the ``ns`` that were asked for; unknown where the law is poor."""


def power_law(
    counts: Sequence[tuple[int, ...]],
    ns: Sequence[int],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    better: Better = "lower",
    unit: str = "goal",
) -> PowerLaw:
    """Fit ``counts``, one ``Tries`` a goal (G,), and forecast ASR at each of ``ns``.

    Undetermined attempts are failures for the low ends and successes for the high ones; ``value`` leaves
    them out. ``clusters`` names groups of goals (G,), "" is its own cluster.

    Coverage of ASR@1000 from 64 attempts where the law is true and not called poor (in 5 to 7% of runs it
    is), at 95%, 10,000 runs a cell, 6 cells ((a, b) = (3, .3), (2, .2), (1, .2); 50 or 150 goals): 95.0% on
    average, worst 94.6%.

    Raises:
        InputError: counts that cannot be, an n below 1, lengths differ, a bad level.
    """
    check_level(level)
    table = read_counts(counts)
    if any(n < 1 for n in ns):
        raise InputError(f"a forecast needs n >= 1, got {list(ns)}", hint="ask for 100, 1000, ...")
    codes = cluster_codes(clusters, len(table))
    judged = table[:, 1] - table[:, 2]
    ks = powers_of_two(int(judged.min(initial=10**9))) if len(table) and judged.min() >= 1 else []
    template = Estimate(
        value=None, level=level, n=len(table), clusters=cluster_count(codes), unit=unit, better=better,
        missing=int((table[:, 2] > 0).sum()), method="power law, bayesian bootstrap",
    )  # fmt: skip
    sides = [_curves(table, ks, codes, seed, side) for side in ("middle", "low", "high")]
    poor = _unusable(sides[0], template)
    if poor:
        return _unknown(template, ks, sides[0], ns, poor)
    return _fitted(template, np.array(ks, float), sides, ns)


def _tail(template: Estimate) -> float:
    """The share of draws to leave out on each side."""
    goals = template.n if template.clusters is None else template.clusters
    t = float(stdtrit(goals - 1, (1 - template.level) / 2)) * math.sqrt(goals / (goals - 1))
    return float(ndtr(t))


def _curves(table: Floats, ks: Sequence[int], codes: Codes | None, seed: int, side: str) -> Floats:
    """ASR@k (1 + DRAWS, K): the estimate first, then under new weights of the goals."""
    judged = table[:, 1] - table[:, 2]
    if side == "middle":
        rows = [any_of_k(table[:, 0], judged, k) for k in ks]
    else:
        rows = [at_worst(table, k)[side == "high"] for k in ks]
    if not rows:
        return np.empty((1 + DRAWS, 0))
    rates = np.stack(rows, 1)
    groups = np.arange(len(table)) if codes is None else codes
    totals = np.stack([np.bincount(groups, weights=column) for column in (*rates.T, np.ones(len(table)))], 1)
    # Equal clusters share one draw of their total weight: cheaper, and order never matters.
    distinct, times = np.unique(np.round(totals, 12), axis=0, return_counts=True)
    sums = np.random.default_rng(seed).standard_gamma(times, (DRAWS, times.size)) @ distinct
    drawn = sums[:, :-1] / sums[:, -1:]
    return np.concatenate([rates.mean(0)[None], drawn])


def _unusable(curves: Floats, template: Estimate) -> str:
    """Why no line can be drawn at all, or ""."""
    if not curves.shape[1]:
        return f"some {template.unit} has no judged attempt, or there is none"
    if template.n < 2 or template.clusters == 1:
        return f"only one independent {template.unit}, so nothing shows how they differ"
    inner = int(((curves[0] > 0) & (curves[0] < 1)).sum())
    if inner < 4:
        return (
            f"{inner} of the points k = 1, 2, 4, ... lie between 0 and 1; a line that can be tested needs 4"
        )
    return ""


def _line(logs: Floats, curves: Floats) -> Floats:
    """Log a and b (R, 2) of each curve (R, K), by least squares over log k."""
    loglog = np.log(-np.log(np.clip(curves, 1e-12, 1 - 1e-12)))
    design = np.stack([np.ones_like(logs), -logs], 1)
    return np.asarray(loglog @ np.linalg.pinv(design).T)


def _law(lines: Floats, logs: Floats) -> Floats:
    """ASR (R, N) of each line at each log n."""
    return np.asarray(np.exp(-np.exp(lines[:, :1] - lines[:, 1:] * logs)))


def _fitted(template: Estimate, ks: Floats, sides: list[Floats], ns: Sequence[int]) -> PowerLaw:
    """Everything that is read off the lines."""
    usable = (sides[0][0] > 0) & (sides[0][0] < 1)
    logs, far = np.log(ks[usable]), np.log(np.array(ns, float))
    middle, low, high = (side[:, usable] for side in sides)
    lines = [_line(logs, side) for side in (middle, low, high)]
    fitted, measured = _law(lines[0][:1], logs)[0], middle[0]
    loglog = np.log(-np.log(measured))
    spread = float(((loglog - loglog.mean()) ** 2).sum())
    left = float(((loglog - np.log(-np.log(fitted))) ** 2).sum())
    gap = float(np.abs(fitted - measured).max())
    poor = _poor(logs, middle, gap, _tail(template))

    tail = _tail(template)

    def read(values: tuple[Floats, Floats, Floats]) -> Estimate:
        ends = float(np.quantile(values[1][1:], tail)), float(np.quantile(values[2][1:], 1 - tail))
        value = float(values[0][0])
        return template.model_copy(
            update={"value": value, "low": min(ends[0], value), "high": max(ends[1], value)}
        )

    laws = [_law(line, far) for line in lines]
    sure = tuple(read((laws[0][:, i], laws[1][:, i], laws[2][:, i])) for i in range(len(ns)))
    shut = template.model_copy(update={"low": 0.0, "high": 1.0, "reason": poor})
    # A worst case for ASR is one for neither coefficient, so all three sides vouch for each.
    return PowerLaw(
        a=_spanned(template, [np.exp(x[:, 0]) for x in lines], poor),
        b=_spanned(template, [x[:, 1] for x in lines], poor),
        r2=1 - left / spread if spread > 1e-12 else None,
        gap=gap,
        ks=tuple(int(k) for k in ks[usable]),
        asr=tuple(measured.tolist()),
        poor=poor,
        forecasts=tuple(shut for _ in ns) if poor else sure,
    )


def _spanned(template: Estimate, sides: list[Floats], remark: str) -> Estimate:
    """A coefficient: from the least low end to the greatest high end over the three sides."""
    tail = _tail(template)
    low = min(float(np.quantile(x[1:], tail)) for x in sides)
    high = max(float(np.quantile(x[1:], 1 - tail)) for x in sides)
    update = {"value": float(sides[0][0]), "low": low, "high": high, "better": "none", "reason": remark}
    return template.model_copy(update=update)


def _poor(logs: Floats, curves: Floats, gap: float, tail: float) -> str:
    """Why the law does not hold on its own points, or ""."""
    misfits = []
    if gap > GAP:
        misfits.append(f"the law misses a measured ASR@k by {gap:.3f}")
    early = _law(_line(logs[:-2], curves[:, :-2]), logs[-1:])[:, 0]
    off = early - curves[:, -1]
    low, high = np.quantile(off[1:], [tail, 1 - tail])
    if not low <= 0 <= high and abs(off[0]) > GAP / 3:
        misfits.append(f"fitted without its last two points it forecasts the last one {off[0]:+.3f} wrong")
    return sentence(misfits)


def _unknown(template: Estimate, ks: Sequence[int], curves: Floats, ns: Sequence[int], poor: str) -> PowerLaw:
    """No line at all."""
    shut = template.model_copy(update={"low": 0.0, "high": 1.0, "reason": poor})
    none = template.model_copy(update={"reason": poor, "better": "none"})
    return PowerLaw(
        a=none, b=none, r2=None, gap=None, ks=tuple(ks), asr=tuple(curves[0].tolist()), poor=poor,
        forecasts=tuple(shut for _ in ns),
    )  # fmt: skip
