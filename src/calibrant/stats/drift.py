"""Drift of a rate in an endless stream: evidence that may be looked at after every value.

The null: given what came before, each value in [0, 1] has a mean between ``low`` and ``high``. Under it the
evidence is a nonnegative supermartingale that starts at 1, so by Ville's inequality (1939) the probability
that it *ever* reaches 1 / alpha is at most alpha: however long the stream, and however often it is looked at.

1. A bet on a mean q above ``high`` multiplies its capital by 1 + k (x - high), k = (q - high) / (high (1 -
   high)); a bet below ``low`` likewise. For x of 0 and 1 this is the likelihood ratio of q. Waudby-Smith &
   Ramdas 2024, JRSS B 86(1), 1-27 (arXiv 2010.09686), section 4; Shekhar & Ramdas 2023, IEEE Trans. Inf.
   Theory (arXiv 2112.09162).
2. Drift may begin at any step s. Capital p(s), of 1 in all, waits until then: E(t) = sum over s <= t of
   p(s) prod over s <= i <= t of (1 + k (x(i) - m)), plus what still waits; m is the end that is bet against.
   As a recursion, capital = (capital + p(t)) (1 + k (x(t) - m)): time and memory do not grow with s.
3. The capital is split evenly over a grid of q, by log-odds, and over both directions.

Without the weights p(s) the sum over s is the e-detector of Shin, Ramdas & Rinaldo 2023 (arXiv 2203.03532):
it bounds the *average run length* between false alarms by 1 / alpha from below, and on an endless stream it
rings falsely for certain. The weights cost log 1 / p(s) of evidence, and bound the *probability* of any false
alarm.

A reference rate that was estimated comes with an error of its own: ``reference_of`` gives an interval
that misses it with probability ``miss``; evidence of 1 / alpha is then a false alarm with probability
miss + alpha at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from calibrant.core import InputError
from calibrant.stats._sample import Floats
from calibrant.stats.proportion import proportion_interval

Direction = Literal["both", "up", "down"]

SHIFTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Log-odds by which q lies beyond the reference."""
PACE = 100
"""Steps in which half as much capital is placed as in the first stretch; see ``waiting``."""
BLOCK = 64
"""Steps at once; a step multiplies capital by exp(-3) to exp(3), the largest shift, so none overflows."""
CEILING = 1e200
"""Capital of a bet that goes on from block to block at most: less than there is, so no false alarm."""


class _Bets(NamedTuple):
    weights: Floats
    """(J, 1) shares of the capital, 1 in all."""
    stakes: Floats
    """(J, 1) k of each bet."""
    centres: Floats
    """(J, 1) the mean that it bets against."""


def waiting(steps: NDArray[Any] | float) -> Floats:
    """Capital not yet placed after so many steps: 1 / log2(2 + t / PACE).

    It falls to 0 so slowly that p(s) is about 1 / (s log(s)^2): drift that begins late costs little more.
    """
    return np.asarray(1.0 / np.log2(2.0 + np.asarray(steps, np.float64) / PACE))


def reference_of(successes: int, n: int, miss: float, direction: Direction = "both") -> tuple[float, float]:
    """Interval that misses the rate behind ``successes`` of ``n`` with probability ``miss`` or less.

    Clopper & Pearson 1934; for one direction only that end is bounded, and the other is the share itself.

    Raises:
        InputError: counts that cannot be, or a miss outside (0, 1).
    """
    if not 0.0 < miss < 1.0:
        raise InputError(f"miss must lie strictly between 0 and 1, got {miss!r}", hint="give alpha / 2")
    if direction == "both":
        return proportion_interval(successes, n, 1 - miss)
    ends = proportion_interval(successes, n, 1 - 2 * miss) if miss < 0.5 else (0.0, 1.0)
    share = successes / n if n else 0.5
    return (share, ends[1]) if direction == "up" else (ends[0], share)


def evidence(
    values: Sequence[float] | Floats, low: float, high: float, direction: Direction = "both"
) -> Floats:
    """Evidence after each of ``values`` (n,), or of each of several streams (m, n), that a mean left
    [low, high].

    Raises:
        InputError: a value outside [0, 1] or NaN; bounds that are none, or leave nothing to find.
    """
    seen = _checked(values)
    bets = _bets(low, high, direction)
    streams = np.ascontiguousarray(np.atleast_2d(seen).T)
    still = waiting(np.arange(len(streams) + 1))
    capital = np.zeros((len(bets.weights), streams.shape[1]))
    found = np.empty(streams.shape)
    for start in range(0, len(streams), BLOCK):
        part = slice(start, min(start + BLOCK, len(streams)))
        won = np.cumprod(1 + bets.stakes * (streams[part, None] - bets.centres), axis=0)  # (B, J, m)
        placed = (still[:-1] - still[1:])[part, None, None] * np.ones_like(won)
        placed[1:] /= won[:-1]
        held = won * (capital + np.cumsum(placed, axis=0))
        found[part] = (bets.weights * held).sum(1) + still[1:][part, None]
        capital = np.minimum(held[-1], CEILING)
    return found[:, 0] if seen.ndim == 1 else np.ascontiguousarray(found.T)


def evidence_as_defined(
    values: Sequence[float] | Floats, low: float, high: float, direction: Direction = "both"
) -> Floats:
    """The same for one stream (n,), term by term as in the formula of point 2: slow, to check against."""
    seen = _checked(values)
    bets = _bets(low, high, direction)
    found = []
    for end in range(1, seen.size + 1):
        total = float(waiting(end))
        for weight, stake, centre in zip(*(column[:, 0] for column in bets), strict=True):
            for start in range(1, end + 1):
                won = math.prod(1 + stake * (x - centre) for x in seen[start - 1 : end])
                total += weight * float(waiting(start - 1) - waiting(start)) * won
        found.append(total)
    return np.array(found)


def began(values: Sequence[float] | Floats, low: float, high: float, direction: Direction = "both") -> int:
    """The step, from 0, from which on drift explains ``values`` (n,) best: the start and the bet of the
    largest product, as in CUSUM (Page 1954, Biometrika 41, 100-115). A point estimate without an interval.

    Raises:
        InputError: see ``evidence``; there is no value.
    """
    seen = _checked(values)
    if not seen.size:
        raise InputError("no value has come", hint="give the values up to the alarm")
    bets = _bets(low, high, direction)
    sums = np.cumsum(np.log1p(bets.stakes * (seen[None] - bets.centres)), axis=1)
    before = np.concatenate([np.zeros((len(sums), 1)), sums[:, :-1]], axis=1)
    best = int(np.argmax(sums[:, -1] - before.min(1)))
    return int(before[best].argmin())


def _bets(low: float, high: float, direction: Direction) -> _Bets:
    if not 0.0 <= low <= high <= 1.0:
        raise InputError(
            f"a reference needs 0 <= low <= high <= 1, got {low!r} and {high!r}",
            hint="give one rate twice, or the ends of an interval",
        )
    if direction not in ("both", "up", "down"):
        raise InputError(f"unknown direction {direction!r}", hint="use 'both', 'up' or 'down'")
    sides = []
    if direction != "down" and 0.0 < high < 1.0:
        sides.append((expit(logit(high) + np.array(SHIFTS)), high))
    if direction != "up" and 0.0 < low < 1.0:
        sides.append((expit(logit(low) - np.array(SHIFTS)), low))
    if not sides:
        raise InputError(
            f"no rate is {'above or below' if direction == 'both' else direction + ' from'} a reference of "
            f"{low:g} to {high:g}",
            hint="declare a rate between 0 and 1, such as the largest that is tolerated",
        )
    count = len(SHIFTS) * len(sides)
    stakes = np.concatenate([(q - m) / (m * (1 - m)) for q, m in sides])
    centres = np.repeat([m for _, m in sides], len(SHIFTS))
    return _Bets(np.full((count, 1), 1 / count), stakes[:, None], centres[:, None])


def _checked(values: Sequence[float] | Floats) -> Floats:
    seen = np.asarray(values, np.float64)
    if seen.ndim not in (1, 2):
        raise InputError(f"values have {seen.ndim} dimensions", hint="give one stream, or a row a stream")
    if not ((seen >= 0) & (seen <= 1)).all():  # NaN is neither
        raise InputError("a value is not between 0 and 1", hint="leave out what is missing, and count it")
    return seen
