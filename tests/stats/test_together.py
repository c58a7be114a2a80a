"""rho: 1 where layers are independent, above where they share gaps; its interval covers."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.core import InputError
from calibrant.stats.together import failing_together


def drawn(way, n, size, shared, rates=(0.5, 0.6)):
    """(n, k) passes in clusters of ``size``; with probability ``shared`` one lot decides for all layers."""
    goals = n // size
    level = way.normal(size=goals).repeat(size)  # how hard a goal is, for its clusters
    same = way.random(n) < shared
    lots = way.random((n, len(rates)))
    lots[same] = lots[same, :1]
    shift = 0.15 * np.tanh(level)[:, None]
    return lots + shift < np.asarray(rates), [f"g{at}" for at in range(goals) for _ in range(size)]


@pytest.mark.parametrize(("size", "shared"), [(1, 0.0), (5, 0.0), (1, 0.5), (5, 0.5)])
def test_the_interval_covers(size, shared):
    """200 draws of 200 attempts a cell: 95 % intervals cover in at least 89 %, and a mean rho is no farther
    from the truth than its noise."""
    way = np.random.default_rng([size, int(10 * shared)])
    big, _ = drawn(way, 400_000, 1, shared)
    truth = big.all(1).mean() / big.mean(0).prod()
    covered, found = 0, []
    for _ in range(200):
        passes, clusters = drawn(way, 200, size, shared)
        one = failing_together(passes, clusters=clusters)
        covered += one.low <= truth <= one.high
        found.append(one.value)
    assert covered >= 178, covered
    assert abs(np.mean(found) - truth) < 0.03


def test_layers_that_share_every_gap_and_ones_that_complement_each_other():
    way = np.random.default_rng(0)
    one = way.random(300) < 0.5
    names = [str(at) for at in range(300)]
    assert failing_together(np.stack([one, one], 1), clusters=names).low > 1.5
    other = ~one | (way.random(300) < 0.1)
    assert failing_together(np.stack([one, other], 1), clusters=names).high < 0.6


@pytest.mark.parametrize(
    ("passes", "why"),
    [
        ([[1, 0], [1, 0]], "lets no attempt pass"),
        ([[1, 1], [1, 0]], "stops no attempt"),
        ([[1, 0], [0, 1]], "no attempt passes all"),
        ([[1, 1], [0, 0], [0, 0]], "one goal decides"),
    ],
)
def test_what_cannot_be_told(passes, why):
    found = failing_together(np.array(passes, bool), clusters=["a", "b", "c"][: len(passes)])
    assert found.value is None and why in found.reason


def test_shapes():
    with pytest.raises(InputError):
        failing_together(np.ones((3, 1), bool), clusters=["a"] * 3)
    assert failing_together(np.ones((0, 2), bool), clusters=[]).value is None
