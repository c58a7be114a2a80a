"""The share of something that is lost: a paired loss over what there was above chance, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrant.core import Estimate, InputError, unknown
from calibrant.stats._sample import Better
from calibrant.stats.paired import difference
from calibrant.stats.proportion import rate


def lost_share(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    chance: float,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    better: Better,
    unit: str,
) -> Estimate:
    """(p_before - p_after) / (p_before - chance) of the same items, both (n,) in one order.

    Where what there was is not above chance, nothing can be lost: no value, with that reason. The ends divide
    those of the paired difference (Tango) by those of the rate before, each at (1 + level) / 2, so that both
    hold at once in ``level`` of cases (Bonferroni): wider than need be, never narrower. A missing side counts
    at its worst in both.

    Raises:
        InputError: lengths differ, or chance is not a share below 1.
    """
    if not 0 <= chance < 1:
        raise InputError(f"chance = {chance}", hint="give the accuracy of a guess, a share below 1")
    both = (1 + level) / 2
    loss = difference(after, before, clusters=clusters, level=both, better=better, unit=unit)
    start = rate(before, clusters=clusters, level=both, better="higher", unit=unit)
    if start.value is None:
        return unknown(f"nothing is known of the rate before: {start.reason}", n=len(before), unit=unit)
    if start.low is None or start.low <= chance:
        reason = f"before, the interval of the rate reaches chance ({chance:g}): there is no skill to lose"
        return unknown(reason, n=len(before), unit=unit)
    complete = [pair for pair in zip(before, after, strict=True) if None not in pair]
    first = sum(bool(one) for one, _ in complete)
    kept = first - chance * len(complete)
    value = (first - sum(bool(other) for _, other in complete)) / kept if kept > 0 else None
    assert loss.low is not None and loss.high is not None and start.high is not None  # of yes or no they are
    ends = [end / (rate_ - chance) for end in (loss.low, loss.high) for rate_ in (start.low, start.high)]
    return Estimate(
        value=value, low=min(ends), high=max(ends), level=level, n=len(before), clusters=loss.clusters,
        missing=loss.missing, method="ratio of intervals, bonferroni", unit=unit, better=better,
        reason=loss.reason, null_value=0.0,
    )  # fmt: skip


def mean_of(parts: Sequence[Estimate], *, better: Better, unit: str) -> Estimate:
    """Mean of independent estimates, each with the same weight; the parts are taken as given, not drawn.

    The interval combines theirs (MOVER, Zou & Donner 2008, eq. 5): mean - sqrt(sum (value - low)^2) / k, and
    so above. One part without a value or an interval makes it unknown: a mean of the rest is another number.
    """
    lost = [part for part in parts if None in (part.value, part.low, part.high)]
    if lost or not parts:
        reason = lost[0].reason if lost else "nothing was measured"
        return unknown(
            f"{len(lost)} of {len(parts)} parts are unknown: {reason}", n=max(1, len(parts)), unit=unit
        )
    values = [part.value or 0.0 for part in parts]
    value = math.fsum(values) / len(values)
    down = math.sqrt(math.fsum((v - (p.low or 0.0)) ** 2 for v, p in zip(values, parts, strict=True)))
    up = math.sqrt(math.fsum(((p.high or 0.0) - v) ** 2 for v, p in zip(values, parts, strict=True)))
    return Estimate(
        value=value, low=value - down / len(parts), high=value + up / len(parts), level=parts[0].level,
        n=sum(part.n for part in parts), missing=sum(part.missing for part in parts), method="mover",
        unit=unit, better=better, null_value=0.0,
    )  # fmt: skip
