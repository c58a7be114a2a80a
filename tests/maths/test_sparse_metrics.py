"""Metrics with known answers."""

from __future__ import annotations

import pytest
import torch

from calibrant.maths.sparse_coding import Shape, SparseCoder
from calibrant.maths.sparse_metrics import Tally

N, D = 400, 8


def rows(scale=1.0, offset=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * (torch.randn(N, D, generator=generator) + offset)


def identity():
    """f = (x+, x-)."""
    coder = SparseCoder(Shape("relu", D, D, 2 * D, shifted=False))
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    coder.encoder.data.copy_(both)
    coder.decoder.data.copy_(both)
    return coder


def tally(y, found, pattern=None, groups=None, parts=(N,), width=2 * D):
    out = Tally(5, D, width)
    groups = torch.arange(N) % 5 if groups is None else groups
    at = 0
    for size in parts:
        some = slice(at, at + size)
        if pattern is None:
            where, values = identity().codes(y[some])
        else:
            where, values = pattern
        out.add(groups[some], y[some], found[some], where, values)
        at += size
    return out


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0, 1e3])
def test_the_identity_has_no_error_at_any_scale(scale):
    """Holds against SAELens#518: scaled input was compared with unscaled output."""
    y = rows(scale)
    found = tally(y, identity()(y))
    assert found.value("mse") == 0.0
    assert found.value("explained_variance") == 1.0
    assert found.value("gamma") == pytest.approx(1.0)
    assert found.value("l2_ratio") == pytest.approx(1.0)
    assert found.value("l0") == D


def test_predicting_the_mean_explains_nothing():
    """Holds against SAELens#659, PR#443 and SAEBench#76. Also where the mean is large: sums are float64."""
    for offset in (0.0, 3.0, 1000.0):
        y = rows(offset=offset)
        found = tally(y, y.double().mean(0).expand(N, D))
        assert found.value("explained_variance") == pytest.approx(0.0, abs=1e-6)


def test_neither_batches_nor_doubled_rows_matter():
    """Holds against SAELens PR#711: doubled rows, the same MSE."""
    y = rows()
    whole, cut = tally(y, 0.5 * y), tally(y, 0.5 * y, parts=(7, 93, 300))
    for name in ("mse", "explained_variance", "l0", "l2_ratio", "gamma"):
        assert whole.value(name) == pytest.approx(cut.value(name), rel=1e-12)
    twice = Tally(5, D, 2 * D)
    for _ in range(2):
        twice.add(torch.arange(N) % 5, y, 0.5 * y, *identity().codes(y))
    assert twice.value("mse") == pytest.approx(whole.value("mse"), rel=1e-12)


def test_shrinkage_is_gamma():
    """x^ = c x: gamma = c, and so is the ratio of lengths."""
    y = rows()
    for c in (0.25, 0.9, 1.5):
        found = tally(y, c * y)
        assert found.value("gamma") == pytest.approx(c, rel=1e-6)
        assert found.value("l2_ratio") == pytest.approx(c, rel=1e-6)


def test_ratios_add_up_over_groups():
    """By hand in float64; a group without rows is left out."""
    y = rows(seed=3)
    groups = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))
    found = y + 0.1 * rows(offset=0.0, seed=4)
    sums = tally(y, found, groups=groups)
    error = (y.double() - found.double()).square().sum(1)
    spread = (y.double() - y.double().mean(0)).square().sum(1)
    above, below = sums.ratios()["unexplained"]
    assert len(above) == 4
    for g in range(4):
        assert float(above[g]) == pytest.approx(float(error[groups == g].sum()), rel=1e-9)
        assert float(below[g]) == pytest.approx(float(spread[groups == g].sum()), rel=1e-9)
    assert sums.value("explained_variance") == pytest.approx(1 - float(error.sum() / spread.sum()), rel=1e-9)


def test_density_and_dead_features():
    y = rows(offset=10.0)  # nothing is negative
    found = tally(y, y)
    assert found.density.tolist() == [1.0] * D + [0.0] * D
    assert found.dead.tolist() == [False] * D + [True] * D


def test_a_constant_has_no_explained_variance():
    y = torch.ones(N, D)
    assert tally(y, y).value("explained_variance") != tally(y, y).value("explained_variance")
