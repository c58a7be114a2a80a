"""Sparse autoencoders on rows whose features are known, and on rows that have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t

from calibrant.core import InputError, NumericalError, Quiet
from calibrant.maths.sparse_coding import Shape, SparseCoder
from calibrant.stats.recovery import f1_scores, match
from calibrant.testbed.dictionary import gaussian_like, plant_dictionary
from calibrant.understand._sae_train import Descent, Rows, in_order, train

DESCENT = Descent(batch=512, tokens=300_000, dead_after=50_000)
COEFFICIENT = {"relu": 2.0, "jumprelu": 1.0}


def rows_of(data, batch, target=None, seed=0):
    target = data if target is None else target

    def order(epoch):
        return torch.randperm(len(data), generator=torch.Generator().manual_seed(100 * seed + epoch))

    at = in_order(len(data), batch, order)
    sizes = (float(x.double().square().sum(1).mean()) for x in (data, target))
    return Rows(lambda step: (data[at(step)], target[at(step)]), target.mean(0), *sizes)


def learned(data, variant="topk", seed=0, width=128, run=None, **changes):
    config = DESCENT.model_copy(update={"coefficient": COEFFICIENT.get(variant, 0.0), **changes})
    shape = Shape(variant, data.shape[1], data.shape[1], width, k=4)
    return train(shape, rows_of(data, config.batch, seed=seed), config, run or Quiet(seed), "key")


def test_a_planted_dictionary_is_found_and_a_gaussian_gives_nothing():
    """Smaller than the page's figures, which the slow tests make."""
    truth = plant_dictionary(24, 48, active=2.5)
    data, _ = truth.draw(20_000)
    held, codes = truth.draw(2000, seed=9)
    coder = learned(data, width=48, tokens=150_000)
    matched = match(truth.directions, coder.decoder)
    assert matched.mcc > 0.75
    assert np.nanmean(f1_scores(codes, coder.encode(held), matched)) > 0.5
    null = learned(gaussian_like(data, 20_000), width=48, tokens=150_000)
    chance = [match(truth.alike(seed), null.decoder).mcc for seed in range(20)]
    assert match(truth.directions, null.decoder).mcc < max(chance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "least"), [("topk", 0.85), ("batchtopk", 0.8), ("relu", 0.85), ("jumprelu", 0.8)]
)
def test_every_variant_finds_it_and_none_beats_chance_on_the_null(variant, least):
    """Three seeds: MCC over that of dictionaries with the same covariance, with an interval."""
    found, null, f1 = [], [], []
    for seed in range(3):
        truth = plant_dictionary(seed=seed)
        data, _ = truth.draw(40_000, seed=seed)
        held, codes = truth.draw(4000, seed=99 + seed)
        for sink, rows in ((found, data), (null, gaussian_like(data, 40_000, seed))):
            coder = learned(rows, variant, seed, tokens=300_000 if "topk" in variant else 1_000_000)
            matched = match(truth.directions, coder.decoder)
            chance = [match(truth.alike(s), coder.decoder).mcc for s in range(20)]
            sink.append(matched.mcc - float(np.mean(chance)))
            if sink is found:
                assert matched.mcc > least
                f1.append(float(np.nanmean(f1_scores(codes, coder.encode(held), matched))))
    reach = float(t.ppf(0.975, 2)) / 3**0.5  # of a 95 % interval, in standard deviations
    assert np.mean(found) - reach * np.std(found, ddof=1) > 0.3
    assert np.mean(null) - reach * np.std(null, ddof=1) <= 0.0
    assert min(f1) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["relu", "jumprelu"])
def test_l0_moves_with_its_coefficient(variant):
    """Holds against SAELens#494: JumpReLU's did not."""
    truth = plant_dictionary(32, 64, active=3.0)
    data, _ = truth.draw(20_000)
    active = []
    for coefficient in (0.1, 0.5, 2.0):
        coder = learned(data, variant, width=64, coefficient=coefficient, tokens=200_000)
        active.append(float((coder.encode(data[:2000]) > 0).sum(1).double().mean()))
    assert active[0] > 1.5 * active[1] > 1.5 * active[2] > 0


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "relu", "jumprelu"])
def test_dead_features_are_revived(variant):
    """A bias silences half of the features: with the auxiliary loss they come back, without it they stay."""
    data, _ = plant_dictionary(12, 24, active=2.0).draw(4000)
    data = data * (12 / data.square().sum(1).mean()).sqrt()
    shares = []
    for auxiliary in (0.0, 1 / 32):
        coder, idle = SparseCoder(Shape(variant, 12, 12, 24, k=2)), torch.zeros(24)
        coder.bias.data[:12] = -20.0
        optimiser = torch.optim.Adam([p for p in coder.parameters() if p.requires_grad], lr=1e-2)
        for at in range(200):
            x = data[at * 128 % 3840 :][:128]
            losses = coder.losses(x, dead=idle > 1000, auxiliary=auxiliary, coefficient=0.2)
            optimiser.zero_grad()
            losses.loss.backward()
            optimiser.step()
            coder.project()
            idle = torch.where(losses.fired, 0, idle + 128)
        shares.append(float((coder.eval().encode(data) == 0).all(0).double().mean()))
    assert shares[0] >= 0.5
    assert shares[1] < 0.25


def test_a_transcoder_learns_a_map_between_widths():
    """y = relu(x A): better than any linear map, which its skip connection could be."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 6, generator=generator)
    y = (x @ torch.randn(6, 9, generator=generator)).relu() * 5 + 2
    shape = Shape("relu", 6, 9, 64, shifted=False, skip=True)
    config = DESCENT.model_copy(update={"coefficient": 0.001, "tokens": 200_000, "lr": 3e-3})
    coder = train(shape, rows_of(x, 512, y), config, Quiet(), "key")
    ones = torch.cat([x, torch.ones(len(x), 1)], 1)
    linear = (ones @ torch.linalg.lstsq(ones, y).solution - y).square().sum(1).mean()
    assert float((coder(x) - y).square().sum(1).mean() / linear) < 0.5


class Dies(Quiet):
    """Killed at a step."""

    def __init__(self, at, work):
        super().__init__(0, work)
        self.at = at

    def progress(self, done, total, note=""):
        if done == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "jumprelu"])
def test_a_killed_training_ends_with_the_same_bits(variant, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrant.models.checkpoint.EVERY", 0.0)
    data, _ = plant_dictionary(12, 24, active=2.0).draw(3000)
    small = {"width": 40, "tokens": 12_000, "batch": 256, "dead_after": 1000}
    whole = learned(data, variant, **small, run=Quiet(0, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        learned(data, variant, **small, run=Dies(21, tmp_path / "cut"))
    resumed = learned(data, variant, **small, run=Quiet(0, tmp_path / "cut"))
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_rows_reach_into_the_next_epoch():
    at = in_order(5, 3, lambda epoch: torch.arange(5) + 10 * epoch)
    assert [at(s).tolist() for s in range(4)] == [[0, 1, 2], [3, 4, 10], [11, 12, 13], [14, 20, 21]]
    assert len(in_order(2, 7, lambda epoch: torch.arange(2))(0)) == 7


def test_rows_of_zeros_and_of_nan_are_refused():
    with pytest.raises(InputError, match="all 0"):
        learned(torch.zeros(100, 4), width=8)
    bad = torch.ones(100, 4)
    bad[3] = float("inf")
    with pytest.raises((InputError, NumericalError)):
        learned(bad, width=8)
