"""Do two readers differ by more than each differs from itself? The disagreement beyond the noise floor.

Every case is read twice by both readers, in two *orders* (sides swapped, another seed). With readings a1, a2
of one reader and b1, b2 of the other, and a measure d of how far two readings differ,

    excess = [d(a1, b2) + d(b1, a2)] / 2 - [d(a1, a2) + d(b1, b2)] / 2

1. A reader held against itself has an excess of 0 in expectation, whatever its noise and its position bias:
   both parts compare a reading in the first order with one in the second.
2. If the two readers are exchangeable, swapping a2 with b2 turns every case's excess into its negative. So
   the sign-flip test of the mean is exact, cases of one cluster flipped together. (One pair of readers is
   tested exactly; many pairs share readings, so their p-values are joined by Holm, which needs no more.)
3. It is linear, so it has no bias of small samples, which entropies of a few readings have: with d = "they
   are different", it is the mutual information's analogue for quadratic entropy (Rao 1982, Theor. Pop. Biol.
   21).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calibrant.core import Estimate, InputError
from calibrant.stats.bootstrap import mean
from calibrant.stats.max_statistic import max_sign_flip

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


def excess(
    values: Sequence[float | None], *, clusters: Sequence[str], unit: str, better: str = "none"
) -> Estimate:
    """Mean of ``values`` (n,) as ``excesses`` gives them, missing ones at -1 and at 1 in the bounds."""
    return mean(
        values,
        clusters=clusters,
        bounds=(-1.0, 1.0),
        better="lower" if better == "lower" else "none",
        unit=unit,
        null_value=0.0,
    )


def excess_p(values: Sequence[float | None], *, clusters: Sequence[str], tests: int = 1) -> float:
    """p-value that the mean is 0, by sign flips of whole clusters; a missing value counts as 0.

    ``tests``: how many p-values will be joined by Holm, so that enough patterns are drawn to reach 1 %.
    """
    known = [0.0 if value is None else value for value in values]
    if not any(known):
        return 1.0
    return float(max_sign_flip([known], clusters=clusters, draws=max(2000, 400 * tests))[0])
