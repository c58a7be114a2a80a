"""The mean of scores of which some are known only within bounds, as where a measurement failed.

The ends hold every completion: the lower one has each such score at its least, the upper one at its most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calibrant.core import Estimate, unknown
from calibrant.stats._sample import Better, Floats, cluster_codes, cluster_count, numbers, sentence
from calibrant.stats.bootstrap import RESAMPLES, Bounds, at_the_ends, ends

_ALIKE = 1e-12


def bounded_mean(
    low: Sequence[float] | Floats,
    high: Sequence[float] | Floats,
    *,
    clusters: Sequence[str],
    bounds: Bounds,
    level: float = 0.95,
    better: Better,
    unit: str,
    null_value: float | None = None,
    drawn: tuple[Floats, Floats] | None = None,
) -> Estimate:
    """Mean of scores that lie between ``low`` and ``high`` (n,), with the interval of ``stats.mean``.

    ``value`` is the mean of the known scores (low = high), and ``missing`` counts the others; where these
    could move it further than chance, half the width of the known scores' own interval, it is None with the
    reason. ``drawn``: the means of ``low`` and of ``high`` in resamples (r,) of whatever the scores were
    calibrated on; an end is then no nearer than their percentile, so that the calibration's error is within.

    One cluster shows nothing of how clusters differ: ``unknown``.

    Raises:
        InputError: lengths differ, or a bad level. NumericalError: a score is NaN or infinite.
    """
    least, most = numbers(list(low), "low"), numbers(list(high), "high")
    codes = cluster_codes(clusters, least.size)
    if least.size == 0:
        return unknown(f"there is no {unit}", unit=unit)
    if (least.size if codes is None else cluster_count(codes)) == 1:
        return unknown("one cluster shows nothing of how clusters differ", n=least.size, unit=unit)
    known = most - least <= _ALIKE
    count = int(known.sum())
    value = math.fsum(least[known]) / count if count else None
    lower, upper, remark = ends((least, most), codes, level, bounds, RESAMPLES, 0)
    found = [bounds[0] if lower is None else lower, bounds[1] if upper is None else upper]
    if drawn is not None:
        tail = (1 - level) / 2
        found[0] = min(found[0], float(np.nanquantile(drawn[0], tail)))
        found[1] = max(found[1], float(np.nanquantile(drawn[1], 1 - tail)))
    if value is not None and count < least.size:
        value, lost = _moved(value, (least, most), known, clusters, bounds, level)
        remark = sentence([lost, remark])
    if value is not None:  # a mean that rounds beyond an end by a digit is that end
        found = [min(found[0], value), max(found[1], value)]
    name = "gaffke" if at_the_ends((least, most), bounds) else "cluster-bootstrap-t"
    return Estimate(
        value=value,
        low=max(found[0], bounds[0]),
        high=min(found[1], bounds[1]),
        level=level,
        n=least.size,
        clusters=cluster_count(codes),
        missing=least.size - count,
        reason=sentence(["none of the scores is known" if not count else "", remark]),
        method=name if drawn is None else f"{name}, recalibrated bootstrap",
        unit=unit,
        better=better,
        null_value=null_value,
    )


def _moved(
    value: float,
    worst: tuple[Floats, Floats],
    known: np.ndarray[tuple[int], np.dtype[np.bool_]],
    clusters: Sequence[str],
    bounds: Bounds,
    level: float,
) -> tuple[float | None, str]:
    """``value``, or None where what is missing could move it further than chance; and what to say of it."""
    names = [clusters[at] for at in np.flatnonzero(known).tolist()]
    alone = worst[0][known]
    lower, upper, _ = ends((alone, alone), cluster_codes(names, alone.size), level, bounds, RESAMPLES, 0)
    chance = ((bounds[1] if upper is None else upper) - (bounds[0] if lower is None else lower)) / 2
    moved = max(value - float(worst[0].mean()), float(worst[1].mean()) - value)
    lost = f"{int((~known).sum())} of {known.size} are known only within bounds"
    if moved <= chance:
        return value, lost
    return None, f"{lost}: they could move {value:.3f} by {moved:.3f}, and chance by {chance:.3f}"
