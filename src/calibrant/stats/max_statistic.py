"""Which of many correlated effects differ from 0: a sign-flip permutation test on the largest statistic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from calibrant.core import InputError
from calibrant.stats._sample import Floats, cluster_codes


def max_sign_flip(
    effects: ArrayLike, *, clusters: Sequence[str] | None = None, draws: int = 2000, seed: int = 0
) -> Floats:
    """p-values (C,) of C effects measured on the same N examples, corrected for looking at all of them.

    The chance that *any* effect that is 0 gets a p of at most 5 % is 5 %, however the effects hang together
    (Westfall & Young 1993; Nichols & Holmes 2002, Human Brain Mapping 15, 1-25). Each draw flips the signs of
    whole examples, clusters together, at all effects alike; the statistic is |mean| over its standard error.
    Under the null an effect is as likely to be x as -x. Where there are no more than ``draws`` patterns, all
    of them are taken. No p is below ``least_p``.

    Args:
        effects: (C, N) one row an effect, one column an example.
        clusters: (N,) names; examples of one cluster are flipped together.
        draws: sign patterns; the observed one is one more.
        seed: of the draws.

    Raises:
        InputError: effects that are no table, not finite, or fewer than 99 draws.
    """
    table = np.asarray(effects, np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise InputError(
            "effects must be a table of finite numbers, a row an effect", hint="leave out what failed"
        )
    if draws < 99:
        raise InputError(f"{draws} draws are too few for a p-value", hint="give 999 or more")
    codes = cluster_codes(clusters, table.shape[1])
    groups = np.arange(table.shape[1]) if codes is None else codes
    count = int(groups.max()) + 1
    signs = _patterns(count, draws, seed)
    sums = np.zeros((count, len(table)))
    np.add.at(sums, groups, table.T)
    squares = (sums**2).sum(0)
    # Flips leave the sum of squares, so |t| rises with |sum| / root of it: no need of the variance.
    largest = np.abs(signs @ sums) / np.sqrt(np.where(squares > 0, squares, np.inf))
    observed, top = largest[0], largest.max(1)
    found: Floats = (top[:, None] >= observed * (1 - 1e-12)).mean(0)
    return found


def max_norm_flip(effects: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Floats:
    """p-values (C,) that C mean vectors, over the same N examples, differ from 0: as ``max_sign_flip``.

    The statistic is the length of the mean over its root mean square under flips, which is known:
    |sum x_i| / sqrt(sum |x_i|^2). For D = 1 it gives what ``max_sign_flip`` gives.

    Args:
        effects: (C, N, D) a vector an example.
        draws: sign patterns; the observed one is one more. All patterns, where there are no more.
        seed: of the draws.

    Raises:
        InputError: effects that are no such table, not finite, or fewer than 99 draws.
    """
    table = np.asarray(effects, np.float64)
    if table.ndim != 3 or not table.size or not np.isfinite(table).all():
        raise InputError(
            "effects must be finite vectors, (effects, examples, D)", hint="leave out what failed"
        )
    if draws < 99:
        raise InputError(f"{draws} draws are too few for a p-value", hint="give 999 or more")
    signs = _patterns(table.shape[1], draws, seed)
    found = np.zeros((len(signs), len(table)))
    for at, vectors in enumerate(table):  # lengths by inner products: N may be far below D
        inner = vectors @ vectors.T
        whole = np.trace(inner)
        if whole > 0:
            squares = np.einsum("si,ij,sj->s", signs, inner / whole, signs, optimize=True)
            found[:, at] = np.sqrt(np.maximum(squares, 0.0))
    observed, top = found[0], found.max(1)
    chances: Floats = (top[:, None] >= observed * (1 - 1e-12)).mean(0)
    return chances


def _patterns(count: int, draws: int, seed: int) -> Floats:
    """Signs (patterns, count), the observed one first: all there are, or it and so many draws."""
    if 2**count <= draws:
        return np.array(list(product((1.0, -1.0), repeat=count)))
    rng = np.random.default_rng(seed)
    return np.vstack([np.ones(count), rng.choice((-1.0, 1.0), (draws, count))])


def least_p(units: int, draws: int = 2000) -> float:
    """The least p-value that ``max_sign_flip`` can give for so many examples, or clusters of them."""
    return 2.0 ** (1 - units) if 2**units <= draws else 1 / (draws + 1)
