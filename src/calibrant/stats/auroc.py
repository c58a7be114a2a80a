"""Area under the ROC curve: the chance that a positive row scores above a negative one, with its interval.

Pairs count only within a block (a fold of cross-validation), since scores of two fits need not have one zero:
pooled over folds they are biased downwards (Parker et al. 2007, BMC Bioinformatics 8, 326). A tie is half.

The interval is of the linearised values (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837-845) by
the cluster bootstrap-t of ``calibrant.stats.mean``. Where rows belong to two kinds of clusters at once, the
squared half widths of both are added and that of their crossing taken off (Cameron, Gelbach & Miller 2011,
JBES 29, 238-249); an end is never nearer than either's own. Where few rows carry all the spread, as near 1,
an open end becomes that of either label's placements, which lie between 0 and 1 (see ``stats.mean``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrant.core import Estimate, InputError, NumericalError, unknown
from calibrant.stats._sample import Better, Floats
from calibrant.stats.bootstrap import ALIKE, mean

Names = Sequence[Sequence[str]]
"""Kinds of clusters: for each, the name of every row's ("" is its own); at most two."""
UNIT = "text"


def auroc(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    blocks: ArrayLike | None = None,
    clusters: Names = (),
    level: float = 0.95,
) -> Estimate:
    """AUROC of ``scores`` (n,) for ``labels`` (n,), pairs within ``blocks`` (n,) only.

    Without a value where no block holds both labels.

    Raises:
        InputError: lengths differ, or more than two kinds of clusters.
        NumericalError: a score is not finite.
    """
    pairs = _met(scores, labels, blocks)
    if pairs.value is None:
        return unknown("no block of rows holds both labels", n=pairs.y.size, unit=UNIT)
    found = crossed(pairs.linear.tolist(), clusters, level=level, null_value=0.5)
    low, high, method, reason = found.low, found.high, found.method, found.reason
    if low is None or high is None:
        reason = ALIKE
        rows = [_of_label(pairs, label, clusters, level) for label in (True, False)]
        least, most = (
            min(one.low or 0.0 for one in rows),
            max(1.0 if one.high is None else one.high for one in rows),
        )
        low, high, method = least if low is None else low, most if high is None else high, rows[0].method
    ends = {"low": min(max(low, 0.0), pairs.value), "high": max(min(high, 1.0), pairs.value)}
    told = {"value": pairs.value, "method": f"{method}, AUROC", "reason": reason}
    return found.model_copy(update=told | ends)


def area(scores: ArrayLike, labels: ArrayLike, blocks: ArrayLike | None = None) -> float | None:
    """AUROC without an interval; None where no block holds both labels.

    Raises:
        InputError, NumericalError: see ``auroc``.
    """
    return _met(scores, labels, blocks).value


def auroc_gain(
    scores: ArrayLike,
    others: ArrayLike,
    labels: ArrayLike,
    *,
    blocks: ArrayLike | None = None,
    clusters: Names = (),
    level: float = 0.95,
) -> Estimate:
    """AUROC of ``scores`` less that of ``others`` on the same rows.

    Raises:
        InputError, NumericalError: see ``auroc``.
    """
    mine, theirs = _met(scores, labels, blocks), _met(others, labels, blocks)
    if mine.value is None or theirs.value is None:
        return unknown("no block of rows holds both labels", n=mine.y.size, unit=UNIT)
    found = crossed((mine.linear - theirs.linear).tolist(), clusters, level=level, null_value=0.0)
    low, high, reason = found.low, found.high, found.reason
    if low is None or high is None:
        reason = ALIKE
        one, other = (
            auroc(s, labels, blocks=blocks, clusters=clusters, level=(1 + level) / 2)
            for s in (scores, others)
        )
        low = (one.low or 0.0) - (other.high or 0.0) if low is None else low
        high = (one.high or 0.0) - (other.low or 0.0) if high is None else high
    ends = {"low": max(low, -1.0), "high": min(high, 1.0)}
    told = {"value": mine.value - theirs.value, "method": f"{found.method}, AUROC", "reason": reason}
    return found.model_copy(update=told | ends)


def crossed(
    values: Sequence[float],
    clusters: Names,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
    null_value: float | None = None,
    better: Better = "higher",
    unit: str = UNIT,
) -> Estimate:
    """``stats.mean`` where rows belong to none, one or two kinds of clusters.

    Raises:
        InputError: more than two kinds.
    """
    if len(clusters) > 2:
        raise InputError(f"{len(clusters)} kinds of clusters", hint="give two at most")
    kinds: list[Sequence[str] | None] = list(clusters) or [None]
    if len(clusters) == 2:
        pairs = zip(*clusters, strict=True)
        kinds.append([f"{one}\0{other}" if one and other else "" for one, other in pairs])
    options: dict[str, Any] = {"level": level, "bounds": bounds, "null_value": null_value}
    found = [mean(values, clusters=names, better=better, unit=unit, **options) for names in kinds]
    if len(found) == 1:
        return found[0]
    first = min(found[:2], key=lambda one: one.clusters or one.n)
    if first.value is None:
        return first
    low = _end([first.value - one.low if one.low is not None else math.inf for one in found])
    high = _end([one.high - first.value if one.high is not None else math.inf for one in found])
    floor, ceiling = bounds or (-math.inf, math.inf)
    ends = [max(first.value - low, floor), min(first.value + high, ceiling)]
    closed = [end if math.isfinite(end) else None for end in ends]
    reason = next((one.reason for one in found[:2] if one.reason), "")
    update = {"low": closed[0], "high": closed[1], "reason": reason, "method": f"two-way {first.method}"}
    return first.model_copy(update=update)


def _end(widths: Sequence[float]) -> float:
    """How far an end is, from how far it is by either kind of clusters, and by both at once."""
    one, other, both = widths
    if math.inf in (one, other):
        return math.inf
    crossing = both**2 if math.isfinite(both) else 0.0
    return math.sqrt(max(one**2, other**2, one**2 + other**2 - crossing))


class _Pairs(NamedTuple):
    """Each row against those of the other label in its block."""

    won: Floats
    """(n,) pairs in order; a tie is half."""
    met: Floats
    """(n,) pairs."""
    y: NDArray[np.bool_]

    @property
    def value(self) -> float | None:
        """AUROC."""
        return float(self.won[self.y].sum() / self.met[self.y].sum()) if self.met.any() else None

    @property
    def linear(self) -> Floats:
        """(n,) values whose mean is the AUROC, and whose spread is its own."""
        value = self.value or 0.0
        values: Floats = value + self.y.size * (self.won - value * self.met) / self.met[self.y].sum()
        return values


def _of_label(pairs: _Pairs, label: bool, clusters: Names, level: float) -> Estimate:
    """Interval of the mean placement of one label's rows, each from 0 to 1, so never open."""
    rows = np.flatnonzero((pairs.y == label) & (pairs.met > 0)).tolist()
    some = [[names[i] for i in rows] for names in clusters]
    return crossed((pairs.won[rows] / pairs.met[rows]).tolist(), some, level=level, bounds=(0.0, 1.0))


def _met(scores: ArrayLike, labels: ArrayLike, blocks: ArrayLike | None) -> _Pairs:
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    b = np.zeros(y.size, np.intp) if blocks is None else np.asarray(blocks)
    if s.ndim != 1 or not s.shape == y.shape == b.shape:
        raise InputError("scores, labels and blocks differ in length", hint="give one of each a row")
    if not np.isfinite(s).all():
        raise NumericalError("a score is NaN or infinite", hint="find out why the fit broke")
    won, met = np.zeros(y.size), np.zeros(y.size)
    for block in np.unique(b):
        yes, no = np.flatnonzero((b == block) & y), np.flatnonzero((b == block) & ~y)
        for mine, theirs, sign in ((yes, no, 1.0), (no, yes, -1.0)):
            order = np.sort(sign * s[theirs])
            at = sign * s[mine]
            below, up_to = np.searchsorted(order, at, "left"), np.searchsorted(order, at, "right")
            won[mine], met[mine] = (below + up_to) / 2, len(theirs)
    return _Pairs(won, met, y)
