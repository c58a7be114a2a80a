"""Intervals of probes hold chance where nothing is planted, with groups and without.

Features are noise, so no model is needed. 150 draws of each set-up: intervals that hold .5 in 93 % do so in
129 or more with 99.9 % probability. Without the labellings of no meaning they held it in 85 to 90 %.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from calibrant.core import Estimate, Quiet
from calibrant.data.rows import LabelledText, LabelledTexts
from calibrant.stats.alarms import _CERTAIN, alarms, probability
from calibrant.stats.auroc import auroc
from calibrant.stats.chance import by_group, dealt_again, widened, widened_gain
from calibrant.stats.folds import folds_of
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._probe_draws import chance
from calibrant.understand._probe_fits import linear
from calibrant.understand._probe_folds import best, held_out
from calibrant.understand.probe import Probing, probe

FIT = partial(linear, l2=1.0)


def noise(seed, rows, width, layers, groups):
    """Features (L, N, D), labels of half of the rows or groups, kinds; groups have features of their own."""
    lot = np.random.default_rng(seed)
    x = lot.normal(size=(layers, rows, width))
    if not groups:
        return torch.from_numpy(x), lot.permutation(np.arange(rows) < rows // 2), []
    each = rows // groups
    x += np.repeat(lot.normal(size=(layers, groups, width)), each, axis=1)
    labels = np.repeat(lot.permutation(np.arange(groups) < groups // 2), each)
    return torch.from_numpy(x), labels, [[f"g{row // each}" for row in range(rows)]]


def both(seed, *shape):
    """The interval of the nested AUROC, before and after."""
    x, labels, kinds = noise(seed, *shape)
    folds = folds_of(kinds, labels, 4, seed, inner=True)
    held = held_out(FIT, x, labels, folds)
    plain = auroc(held.nested, labels, blocks=folds.blocks, clusters=kinds)
    layer = best(held.scores, labels, folds.blocks)
    lots = dealt_again(labels, kinds, folds, seed)
    return plain, widened(plain, chance(FIT, x[layer], lots, folds).auroc)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(60, 8, 1, 0), (100, 64, 2, 0), (160, 32, 1, 40), (96, 32, 1, 16)])
def test_intervals_hold_chance_in_noise(shape):
    found = [both(seed, *shape)[1] for seed in range(150)]
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 129
    assert sum(one.low > 0.5 for one in found) <= 14  # 1 to 9 were seen, the most where a layer is chosen


def test_no_interval_gets_narrower_and_the_method_says_what_was_done():
    for seed in range(4):
        plain, wide = both(seed, 60, 8, 1, 0)
        assert wide.value == plain.value and wide.low <= plain.low and wide.high >= plain.high
        assert "labellings" in wide.method


def test_labels_stay_in_their_fold_and_groups_stay_whole():
    for groups in (0, 12):
        _, labels, kinds = noise(0, 96, 4, 1, groups)
        folds = folds_of(kinds, labels, 4, 0, inner=True)
        (dealt,) = dealt_again(labels, kinds, folds, 0)
        assert len({tuple(row) for row in dealt.tolist()}) > 10
        for part in range(4):
            inside = folds.of[0] == part
            assert (dealt[:, inside].sum(1) == labels[inside].sum()).all()
        if groups:
            assert all(len(set(row[start : start + 8])) == 1 for row in dealt for start in range(0, 96, 8))
            assert by_group(kinds[0], labels) == 12
            assert not by_group(kinds[0], ~labels ^ (np.arange(96) == 3))
            assert not by_group([""] * 96, labels)


def test_groups_that_carry_the_label_make_the_spread_larger():
    x, labels, kinds = noise(1, 160, 32, 1, 16)
    folds = folds_of(kinds, labels, 4, 1, inner=True)
    as_groups = chance(FIT, x[0], dealt_again(labels, kinds, folds, 1), folds)
    as_rows = chance(FIT, x[0], dealt_again(labels, [], folds, 1), folds)
    assert as_groups.auroc > 1.5 * as_rows.auroc and as_groups.accuracy > as_rows.accuracy > 0


def estimate(value, low, high):
    return Estimate(value=value, low=low, high=high, n=50, unit="text", method="m", level=0.95)


def test_the_spread_is_less_near_the_ends_and_an_unknown_stays_unknown():
    middle, end = (widened(estimate(v, v, v), 0.1) for v in (0.5, 0.98))
    assert middle.high - middle.low == pytest.approx(2 * 2.086 * 1.0247 * 0.1, rel=1e-3)
    assert end.value - end.low == pytest.approx((middle.value - middle.low) * 2 * (0.98 * 0.02) ** 0.5)
    assert end.high == 1.0
    assert widened(estimate(0.5, None, None), 0.1).low is None
    gain = widened_gain(estimate(0.0, 0.0, 0.0), (0.5, 0.03), (0.5, 0.04))
    assert gain.high == pytest.approx(2.086 * 1.0247 * 0.05, rel=1e-3) and gain.low == -gain.high
    assert widened_gain(estimate(0.9, 0.8, 1.0), (0.5, 0.3), (0.5, 0.4)).high == 1.0
    assert widened(estimate(0.5, 0.4, 0.6), 0.1, middle=1.0).low < 0.4  # one label nearly everywhere


def test_a_layer_that_never_varies_has_no_direction():
    config = Probing(site="mlp_out", random_model=False, controls=2, directions=10, ablated=8)
    rows = open_contrasts("induction", {"n": "40"}).rows
    texts = [LabelledText(id=row.id, prompt=row.clean, label=at % 2 == 0) for at, row in enumerate(rows)]
    metrics = probe(open_plant("induction", {}), LabelledTexts(rows=tuple(texts)), config, Quiet()).metrics
    assert metrics["ablation/excess"].value is None and "no direction" in metrics["ablation/excess"].reason
    assert metrics["auroc"].value == 0.5


def test_a_threshold_that_no_probability_can_hold_is_no_alarm():
    x, labels, _ = noise(0, 200, 4, 1, 0)
    folds = folds_of([], labels, 4, 0, inner=True)
    held = held_out(FIT, x, labels, folds)
    fine = alarms(held, 0, labels, folds, [], 0.05)
    assert fine["false_alarm_rate"].value is not None
    sure = held._replace(scores=held.scores * 1e4)
    found = alarms(sure, 0, labels, folds, [], 0.05)
    assert found["false_alarm_rate"].value is None and "raise l2" in found["detection_rate"].reason
    assert probability(_CERTAIN - 1) < probability(_CERTAIN) < 1 - 1e-12
