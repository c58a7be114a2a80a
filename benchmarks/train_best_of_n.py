"""The best-of-n estimator at N = 12,600 against the one in exact whole numbers, as published studies run it.

Both start from proxy and gold scores of N samples a prompt and end with the mean gold reward for each n. The
peer follows github.com/tlc4418/llm_optimization (src/bon/bon_sampling.py), in one process and with its sort:

- *default*: ``scipy.special.comb(..., exact=True)``, both binomials anew for every sample;
- *best*: ``math.comb``, and the binomial that is the same for all samples computed once.

Equal means within 1e-9 of the gold rewards' standard deviation, which is 1. There are no ties, which the peer
does not average. Its study also asks for n up to 12,500; there whole numbers take minutes for each n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from _race import Row, finish, is_quick, make_row, race, say
from numpy.typing import NDArray
from scipy.special import comb

from calibrant.stats.best_of_n import expected, powers_of_two

SAMPLES, PROMPTS, TARGET = 12_600, 8, 20.0
TOLERANCE = 1e-9

Floats = NDArray[np.float64]


def scores() -> tuple[Floats, Floats]:
    """Proxy and gold (P, N), correlated as a fair proxy's are."""
    rng = np.random.default_rng(0)
    proxy = rng.standard_normal((PROMPTS, SAMPLES))
    return proxy, 0.6 * proxy + 0.8 * rng.standard_normal(proxy.shape)


def ours(proxy: Floats, gold: Floats, ns: Sequence[int]) -> list[float]:
    """Mean gold for each n."""
    return [float(mean) for mean in expected(proxy, gold, ns).mean(0)]


def peer(
    proxy: Floats, gold: Floats, ns: Sequence[int], coefficients: Callable[[int, int], list[float]]
) -> list[float]:
    """Mean gold for each n from coefficients in whole numbers."""
    ranked = np.take_along_axis(gold, proxy.argsort(1), 1)
    size = gold.shape[1]
    return [float((np.array(coefficients(size, n)) * ranked[:, n - 1 :]).sum(1).mean()) for n in ns]


def default(size: int, n: int) -> list[float]:
    """Both binomials for every sample."""
    return [comb(i - 1, n - 1, exact=True) / comb(size, n, exact=True) for i in range(n, size + 1)]


def best(size: int, n: int) -> list[float]:
    """The quicker function, and one of the two binomials once."""
    total = math.comb(size, n)
    return [math.comb(i - 1, n - 1) / total for i in range(n, size + 1)]


def compare(most: int, pairs: int) -> list[Row]:
    """Both rows for n = 1, 2, 4, ... ``most``."""
    proxy, gold = scores()
    ns = powers_of_two(most)
    mine = partial(ours, proxy, gold, ns)
    found, rows = mine(), []
    for label, way in (("scipy.special.comb, exact", default), ("math.comb, exact, hoisted", best)):
        theirs = partial(peer, proxy, gold, ns, way)
        apart = max(abs(a - b) for a, b in zip(found, theirs(), strict=True))
        say(f"{label}: means differ by at most {apart:.1e}")
        assert apart <= TOLERANCE, f"{label}: means differ by {apart:.1e}"
        name = f"best-of-n estimator, N = {SAMPLES:,}, n = 1 to {most:,}, against {label}"
        rows.append(make_row(name, race(mine, theirs, pairs), equal=True, target=TARGET))
    return rows


def main() -> None:
    """One round up to n = 256, or seven up to n = 1,024."""
    finish(compare(256, 1) if is_quick(__doc__) else compare(1024, 7))


if __name__ == "__main__":
    main()
