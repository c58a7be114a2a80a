"""Reading a sample: numbers with their gaps, clusters, and what clustering costs in sample size."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from calibrant.core import Estimate, InputError, NumericalError

Better: TypeAlias = Literal["higher", "lower", "none"]
Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.intp]
Number: TypeAlias = float | bool | None


def check_level(level: float) -> None:
    """Raise InputError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise InputError(
            f"level must lie strictly between 0 and 1, got {level!r}",
            hint="write a 95% interval as level=0.95, not 95",
        )


def numbers(values: Sequence[Number], name: str) -> Floats:
    """Return ``values`` as float64 (n,), NaN where a value is missing (None).

    Raises:
        NumericalError: a value that was given is itself NaN or infinite.
        InputError: a value is not a number.
    """
    read = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
            raise InputError(
                f"{name}[{i}] is a {type(value).__name__}, not a number: {value!r}",
                hint="give True, False or a number, and None where the answer is missing",
            )
        read[i] = float(value)
        if not math.isfinite(read[i]):
            raise NumericalError(
                f"{name}[{i}] is {value!r}",
                hint="find out why the score broke; where that cannot be known, pass None (missing)",
            )
    return read


def cluster_codes(clusters: Sequence[str] | None, n: int) -> Codes | None:
    """Return the cluster of each unit as a code from 0, or None when units are independent.

    An empty name is its own cluster, as in ``Goal.cluster``.

    Raises:
        InputError: the number of names differs from ``n``.
    """
    if clusters is None:
        return None
    if len(clusters) != n:
        raise InputError(
            f"{n} values came with {len(clusters)} cluster names",
            hint="give one cluster name per value, in the same order",
        )
    seen: dict[Hashable, int] = {}
    # The position is the key of a nameless unit: an int never equals a str.
    codes = [seen.setdefault(name or i, len(seen)) for i, name in enumerate(clusters)]
    return np.array(codes, dtype=np.intp) if len(seen) < n else None


def cluster_of(codes: Codes) -> Codes:
    """Codes of the units that stayed, renumbered without holes."""
    return np.unique(codes, return_inverse=True)[1].astype(np.intp)


def cluster_count(codes: Codes | None) -> int | None:
    """Number of clusters for the Estimate; None when units are independent."""
    return None if codes is None else int(codes.max()) + 1


def effective_size(values: Floats, codes: Codes | None, level: float) -> float:
    """Number of independent units that would know the mean of ``values`` (n,) as well as these do.

    Korn & Graubard 1998, Survey Methodology 24(2), 193-201: n / deff * (t[n-1] / t[f])^2, deff being the
    variance of the mean over clusters over s^2 / n. Never above n; deff is 1 where all values agree, since
    nothing then shows how clusters differ. Needs k >= 2 clusters.

    A cluster that holds much of the sample draws the mean to itself, so the linearised variance is too small
    and k - 1 degrees of freedom are too many (91 of 100 units in one cluster of ten: an interval at 95 % that
    held the truth in 25 %, or 0 %). So the variance is the jackknife's, a cluster left out at a time (Bell &
    McCaffrey 2002, Survey Methodology 28(2), 169-181), and f = Kish's number of clusters - 1, at least 1.
    With clusters of one size both are what Korn & Graubard have.
    """
    n = values.size
    if codes is None:
        return float(n)
    sizes = np.bincount(codes)
    k = sizes.size
    residuals = values - values.mean()
    spread = float((residuals**2).sum()) / (n * (n - 1))
    left_out = np.bincount(codes, weights=residuals) / (n - sizes)
    between = float((left_out**2).sum()) * (k - 1) / k
    deff = between / spread if spread > 0 else 1.0
    upper, freedom = (1 + level) / 2, max(1.0, agreeing_size(codes) - 1)
    shrink = float(stdtrit(n - 1, upper) / stdtrit(freedom, upper)) ** 2
    return float(min(n, n * shrink / deff)) if deff > 0 else float(n)


def least_size(least: Floats, most: Floats, codes: Codes | None, level: float) -> float:
    """About the smallest ``effective_size`` of a sample whose units lie between ``least`` and ``most`` (n,).

    Where the two differ a unit is missing. It is tried at its least, at its most, as the known units of its
    cluster lean, against them, which sets clusters apart, and next to them, which makes a cluster agree.
    """
    gaps = least != most
    if codes is None or not gaps.any():
        return effective_size(least, codes, level)
    known = np.maximum(np.bincount(codes, weights=~gaps), 1)
    lean = np.bincount(codes, weights=np.where(gaps, 0.0, least)) / known
    middle = float((least + most).mean() / 2 if gaps.all() else least[~gaps].mean())
    none, every = np.zeros(lean.size, bool), np.ones(lean.size, bool)
    tried = [
        np.where(up[codes], most, least) for up in (none, every, lean > middle, lean >= middle, lean < middle)
    ]
    tried.append(np.clip(np.floor(lean + 0.5)[codes], least, most))
    return min(effective_size(complete, codes, level) for complete in tried)


def agreeing_size(codes: Codes) -> float:
    """Kish's effective number of clusters: the sample size left if units of a cluster always agreed.

    (sum n_c)^2 / sum n_c^2 over the sizes n_c of the clusters (Kish 1965, "Survey Sampling").
    """
    sizes = np.bincount(codes)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def none_answered(n: int, answered: int, noun: str) -> str:
    """Why there is no value, or "" when there is one."""
    if answered:
        return ""
    return f"none of the {n} {noun}s was answered" if n else f"no {noun}s were given"


def sentence(parts: Sequence[str]) -> str:
    """Join the non-empty remarks of an estimate."""
    return "; ".join(part for part in parts if part)


def so_far(
    estimate: Estimate, settled: Estimate, reach: tuple[float, float], remark: str, noun: str
) -> Estimate:
    """``estimate`` with ``remark`` in its reason, and without a value where open units could move it too far.

    Too far is further than chance: half the width of the interval of the ``settled`` units alone. ``reach``
    is the least and the most that the value can become once nothing is open; ``noun`` is what it is called.
    """
    if estimate.value is not None:
        chance = ((settled.high or 0.0) - (settled.low or 0.0)) / 2
        moved = max(estimate.value - reach[0], reach[1] - estimate.value)
        if moved > chance:
            remark += f": no {noun} is given, for they could move {estimate.value:.3f} by {moved:.3f}"
            remark += f", and chance by {chance:.3f}"
            estimate = estimate.model_copy(update={"value": None})
    return estimate.model_copy(update={"reason": sentence([remark, estimate.reason])})
