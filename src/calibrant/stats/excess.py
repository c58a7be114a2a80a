"""Do two readers differ by more than each differs from itself? The disagreement beyond the noise floor.

Every case is read twice by both readers, in two *orders* (sides swapped, another seed). With readings a1, a2
of one reader and b1, b2 of the other, and a measure d of how far two readings differ,

    excess = [d(a1, b2) + d(b1, a2)] / 2 - [d(a1, a2) + d(b1, b2)] / 2

1. A reader held against itself has an excess of 0 in expectation, whatever its noise and its position bias:
   both parts compare a reading in the first order with one in the second.
2. If the two readers are exchangeable (same meaning *and* same noise), swapping a2 with b2 turns every case's
   excess into its negative. So the sign-flip test of the mean is exact, cases of one cluster flipped
   together. Many pairs of readers share readings; their p-values are joined by Holm, which needs no more.
3. Readers of one meaning whose noise differs have an excess of (q - q')^2, where q and q' are the shares in
   which they name the side that both mean: .04 if one errs in a fifth and the other never. So what matters
   must be larger than a margin, and no small excess is a finding.
4. A side that is always named first makes cases negative, which can hide an excess elsewhere. So its absence
   is no proof: ask also how often both readers are firm and differ (``firm``).
5. It is linear, so it has no bias of small samples, which entropies of a few readings have: with d = "they
   are different", it is the analogue of mutual information for quadratic entropy (Rao 1982, Theor. Pop.
   Biol. 21).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from calibrant.core import Estimate, InputError, NumericalError
from calibrant.stats._sample import Better, cluster_codes
from calibrant.stats.bootstrap import gaffke, mean
from calibrant.stats.compare import flip_totals

Reading = float | None
Looks = Sequence[tuple[Reading, Reading]]
"""(first order, second order) of every case; None: no reading came."""


def unequal(one: float, other: float) -> float:
    """1 where the readings are different."""
    return float(one != other)


def opposed(one: float, other: float) -> float:
    """1 where they name opposite sides: -1 against 1. 0 names none."""
    return float(one * other < 0)


def apart(one: float, other: float) -> float:
    """Distance of two readings from -1 to 1, from 0 to 1."""
    return abs(one - other) / 2


def excesses(one: Looks, other: Looks, differ: Callable[[float, float], float]) -> list[float | None]:
    """The excess of every case, from -1 to 1; None where a reading is missing.

    Raises:
        InputError: the readers have not read the same number of cases.
    """
    if len(one) != len(other):
        raise InputError(f"{len(one)} and {len(other)} cases were read", hint="let both read the same cases")
    found: list[float | None] = []
    for (a1, a2), (b1, b2) in zip(one, other, strict=True):
        if a1 is None or a2 is None or b1 is None or b2 is None:
            found.append(None)
            continue
        across = differ(a1, b2) + differ(b1, a2)
        found.append((across - differ(a1, a2) - differ(b1, b2)) / 2)
    return found


def firm(one: Looks, other: Looks, differ: Callable[[float, float], float]) -> list[bool | None]:
    """Whether both readers say the same in both orders, and differ from each other; None as in ``excesses``.

    Raises:
        InputError: the readers have not read the same number of cases.
    """
    known = excesses(one, other, differ)
    return [
        None if value is None else a[0] == a[1] and b[0] == b[1] and differ(a[0] or 0.0, b[0] or 0.0) > 0
        for value, a, b in zip(known, one, other, strict=True)
    ]


def excess(values: Sequence[float | None], *, clusters: Sequence[str], unit: str) -> Estimate:
    """Mean of ``values`` (n,) as ``excesses`` gives them, missing ones at -1 and at 1 in the bounds.

    The interval is Gaffke's: most values are 0, and a resample knows nothing of a sign that was not seen. Two
    readers of one rule, each right in .8, 40 to 280 cases: 0 to 4% of them leave out 0 (980 runs), where
    bootstrap-t did in 9 to 17%.
    """
    found = signed_mean(values, clusters=clusters, unit=unit, better="none")
    if found.value is None:
        return found
    seen = np.array([math.nan if value is None else value for value in values])
    worst = (np.where(np.isnan(seen), -1.0, seen), np.where(np.isnan(seen), 1.0, seen))
    codes = cluster_codes(clusters, seen.size)
    low, high = gaffke(worst, codes, found.level, (-1.0, 1.0))
    method = "gaffke" if codes is None else "cluster-gaffke"
    return found.model_copy(update={"low": low, "high": high, "method": method})


def signed_mean(
    values: Sequence[float | None],
    *,
    clusters: Sequence[str],
    unit: str,
    better: Better,
    level: float = 0.95,
) -> Estimate:
    """``stats.mean`` of values from -1 to 1, against 0."""
    return mean(
        values, clusters=clusters, level=level, bounds=(-1.0, 1.0), better=better, unit=unit, null_value=0.0
    )


def excess_p(values: Sequence[float | None], *, clusters: Sequence[str]) -> float:
    """Exact two-sided p-value that the mean is 0, by sign flips of whole clusters; a missing value counts as
    0.

    Where the mean is not above 0 it is 1: only an excess is looked for.

    Raises:
        InputError: lengths differ. NumericalError: a value is no multiple of a quarter, as ``excesses`` gives
        them.
    """
    known = np.array([0.0 if value is None else value for value in values])
    codes = cluster_codes(clusters, known.size)
    groups = np.arange(known.size) if codes is None else codes
    totals = 4 * np.bincount(groups, weights=known) if known.size else known
    whole = np.rint(totals)
    if not np.allclose(totals, whole, atol=1e-6):
        raise NumericalError("an excess is no multiple of a quarter", hint="give values of 'excesses'")
    return flip_totals(whole) if whole.sum() > 0 else 1.0
