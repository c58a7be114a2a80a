"""Expected reward of best-of-n, for many n at once, from one set of N >= n samples per prompt.

With the N samples of a prompt in ascending order of the proxy, the i-th is the best of a random subset of
size n with probability C(i-1, n-1) / C(N, n), so that

    E[gold of the best of n] = sum over i of C(i-1, n-1) / C(N, n) gold_(i)

is unbiased (Nakano et al. 2021, arXiv 2112.09332, appendix I; used by Gao et al. 2022, arXiv 2210.10760).

1. The weights are made in log space: at N = 12,600 the binomial coefficients have thousands of digits.
2. Samples that tie in the proxy share the weight of their ranks: the exact mean over random tie-breaking.
3. Uncertainty is over prompts: each prompt gives one number for each n, and prompts are bootstrapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from calibrant.core import Estimate, InputError, NumericalError
from calibrant.stats._sample import Better, Floats
from calibrant.stats.bootstrap import mean


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the sampled model: ln n - (n-1)/n, in nats.

    Exact where no two samples can tie, an upper bound otherwise (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return [2**k for k in range(most.bit_length())]


def weights(size: int, n: int) -> Floats:
    """Probability (size,) that the sample of each proxy rank, lowest first, is the best of ``n`` of them.

    Computed downwards from ln w_N = ln(n/N) by ln w_i - ln w_{i+1} = ln(1 - (n-1)/i), which loses less to
    rounding than differences of lgamma: 1e-13 relative at N = 12,600.

    Raises:
        InputError: not 1 <= n <= size.
    """
    if not 1 <= n <= size:
        raise InputError(
            f"best of {n} cannot be read from {size} samples",
            hint="draw more samples, or ask for a smaller n",
        )
    falls = np.log1p(-(n - 1) / np.arange(size - 1, n - 1, -1))  # from rank N down to rank n
    logs = math.log(n / size) + np.concatenate([[0.0], np.cumsum(falls)])
    return np.concatenate([np.zeros(n - 1), np.exp(logs[::-1])])


def expected(proxy: Any, scores: Any, ns: Sequence[int]) -> Floats:
    """Expected score (P, len(ns)) of the proxy's best of n random samples.

    ``proxy`` and ``scores`` are (P, N): N samples for each of P prompts. ``scores`` is the gold reward, or
    the proxy itself.

    Raises:
        InputError: the shapes differ or are not (P, N), or not 1 <= n <= N.
        NumericalError: a score is NaN or infinite.
    """
    ranks, values = _table(proxy, "proxy"), _table(scores, "scores")
    if ranks.shape != values.shape:
        raise InputError(
            f"proxy scores are {ranks.shape} and the other scores {values.shape}",
            hint="give both for the same samples of the same prompts, in the same order",
        )
    columns = [weights(ranks.shape[1], n) for n in ns]
    return _tied(ranks, values) @ np.array(columns).T


def best_of_n(
    proxy: Any,
    scores: Any,
    ns: Sequence[int],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    better: Better = "higher",
) -> list[Estimate]:
    """``expected`` averaged over prompts, one Estimate for each n, with a bootstrap-t over prompts.

    ``clusters`` names the group of each prompt (P,) where prompts are not independent.

    Raises:
        InputError, NumericalError: see ``expected`` and ``mean``.
    """
    scores_at_n = expected(proxy, scores, ns)
    return [
        mean(column.tolist(), clusters=clusters, level=level, seed=seed, better=better, unit="prompt")
        for column in scores_at_n.T
    ]


def _tied(ranks: Floats, values: Floats) -> Floats:
    """``values`` (P, N) in ascending order of ``ranks``, each replaced by the mean over its tie."""
    order = np.argsort(ranks, axis=1, kind="stable")
    ranks, values = np.take_along_axis(ranks, order, 1), np.take_along_axis(values, order, 1)
    new = np.ones(ranks.shape, dtype=bool)
    new[:, 1:] = ranks[:, 1:] != ranks[:, :-1]
    if new.all():
        return values
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=new.size)
    means = np.add.reduceat(values.ravel(), starts) / sizes
    return np.repeat(means, sizes).reshape(values.shape)


def _table(given: Any, name: str) -> Floats:
    """(P, N) float64 with at least one sample, all finite."""
    table = np.asarray(given, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(
            f"{name} has shape {table.shape}, not (prompts, samples)",
            hint="give one row of equally many samples a prompt, at least one",
        )
    bad = np.argwhere(~np.isfinite(table))
    if bad.size:
        row, column = bad[0]
        raise NumericalError(
            f"{name}[{row}, {column}] is {table[row, column]}",
            hint="find out why the score broke, or leave that prompt out and count it as missing",
        )
    return table
