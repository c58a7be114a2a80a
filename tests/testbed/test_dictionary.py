"""The planted dictionary has the frequencies that it says; its null has its covariance."""

from __future__ import annotations

import pytest
import torch

from calibrant.core import InputError
from calibrant.testbed.dictionary import gaussian_like, plant_dictionary


def test_rows_are_sums_of_directions_with_falling_frequencies():
    planted = plant_dictionary(16, 32, active=3.0, noise=0.0)
    rows, codes = planted.draw(50_000)
    torch.testing.assert_close(rows, codes @ planted.directions)
    torch.testing.assert_close(planted.directions.norm(dim=1), torch.ones(32))
    assert float((codes > 0).sum(1).float().mean()) == pytest.approx(3.0, abs=0.05)
    assert torch.allclose((codes > 0).float().mean(0), planted.chances, atol=0.01)
    assert (planted.chances[1:] < planted.chances[:-1]).all()
    assert float(codes[codes > 0].min()) >= 1.0
    assert torch.equal(planted.draw(10, seed=4)[0], planted.draw(10, seed=4)[0])


def test_look_alikes_and_the_null_have_its_covariance():
    planted = plant_dictionary(6, 12, active=2.0)
    rows, codes = planted.draw(200_000)
    cov = torch.cov(rows.T)
    null = gaussian_like(rows, 200_000)
    assert float((torch.cov(null.T) - cov).abs().max()) < 0.02
    torch.testing.assert_close(null.mean(0), rows.mean(0), atol=0.01, rtol=0)
    size = torch.var(codes, 0).sqrt()  # as ``alike`` works it out
    other = planted.alike(3)
    assert abs(float((other @ planted.directions.T).diagonal().mean())) < 0.5
    trace = float(size.square().sum())
    assert trace == pytest.approx(float(cov.trace()), rel=0.02)


def test_impossible_frequencies_are_refused():
    with pytest.raises(InputError, match="of the time"):
        plant_dictionary(4, 8, active=7.9, exponent=2.0)
    with pytest.raises(InputError, match="must be above 0"):
        plant_dictionary(4, 0)
