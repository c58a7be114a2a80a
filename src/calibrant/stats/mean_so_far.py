"""The mean of scores of which some are open, without a value where those could move it more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrant.core import Estimate
from calibrant.stats._sample import Better, sentence, so_far
from calibrant.stats.bootstrap import Bounds, mean


def mean_so_far(
    values: Sequence[float | None],
    *,
    clusters: Sequence[str] | None = None,
    bounds: Bounds,
    better: Better,
    unit: str,
) -> Estimate:
    """``mean``, without a point value where the open scores (None) could move it more than sampling error.

    As ``rate_so_far``: what is open is not like what is not. Of two samples one failed and one scored 1: a
    mean of 1.0 would hide the half that nobody knows. ``bounds`` is the range that a score can take.

    Raises:
        InputError, NumericalError: see ``mean``.
    """
    estimate = mean(values, clusters=clusters, bounds=bounds, better=better, unit=unit)
    settled = [place for place, value in enumerate(values) if value is not None]
    if len(settled) in (0, len(values)):
        return estimate
    groups = None if clusters is None else [clusters[place] for place in settled]
    known = [value for value in values if value is not None]
    alone = mean(known, clusters=groups, bounds=bounds, better=better, unit=unit)
    if (alone.low, alone.high) == bounds:
        few = f"{len(known)} of {len(values)} {unit}s scored, and they bound nothing: no mean is given"
        return estimate.model_copy(update={"value": None, "reason": sentence([few, estimate.reason])})
    total, n = math.fsum(known), len(values)
    reach = tuple((total + estimate.missing * end) / n for end in bounds)
    return so_far(
        estimate,
        alone,
        (reach[0], reach[1]),
        f"{len(known)} of {n} {unit}s scored, {estimate.missing} open",
        "mean",
    )
