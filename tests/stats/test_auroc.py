"""AUROC: against brute force and scikit-learn, coverage with clusters of one kind and two, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from calibrant.core import InputError, NumericalError
from calibrant.stats import proportion_interval
from calibrant.stats.auroc import auroc, auroc_gain, crossed


def brute(scores, labels, blocks):
    won, pairs = 0.0, 0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            if blocks[i] == blocks[j]:
                won += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
                pairs += 1
    return won / pairs


def test_it_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    for _ in range(5):
        scores = rng.integers(0, 6, 50).astype(float)
        labels, blocks = rng.random(50) < 0.4, rng.integers(0, 4, 50)
        assert auroc(scores, labels, blocks=blocks).value == pytest.approx(brute(scores, labels, blocks))
        assert auroc(scores, labels).value == pytest.approx(roc_auc_score(labels, scores))


def test_its_spread_is_that_of_delong():
    """Half width against the variance of the placements, which the paper gives."""
    rng = np.random.default_rng(1)
    labels = rng.random(400) < 0.3
    scores = rng.normal(size=400) + labels
    found = auroc(scores, labels)
    above = np.array([np.mean(s > scores[~labels]) for s in scores[labels]])
    below = np.array([np.mean(s < scores[labels]) for s in scores[~labels]])
    error = np.sqrt(above.var(ddof=1) / above.size + below.var(ddof=1) / below.size)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def drawn(seed, kinds, spread=0.6, shift=0.8):
    """240 rows; templates (and tasks) move the score, labels alternate within each."""
    rng = np.random.default_rng(seed)
    at = np.arange(240)
    template, task = at % 20, at // 20
    labels = (template + task) % 2 == 0
    scores = rng.normal(size=240) + shift * labels
    for column in (template, task)[:kinds]:
        moves = spread * rng.normal(size=(20, 2))  # by label, so that clusters move the value itself
        scores += moves[column, labels.astype(int)]
    return scores, labels, [[str(x) for x in column] for column in (template, task)][:kinds]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [0, 1, 2])
def test_the_interval_covers(kinds):
    """Truth is the mean over draws. Were coverage .85, 100 draws would show less than 88 with 79 % power."""
    truth = np.mean([auroc(*drawn(5000 + seed, kinds)[:2]).value for seed in range(1500)])
    found = [auroc(s, y, clusters=names) for s, y, names in (drawn(seed, kinds) for seed in range(100))]
    held = sum(one.low <= truth <= one.high for one in found)
    assert proportion_interval(held, 100)[1] > 0.95 and held >= 88, held


def test_a_perfect_order_still_has_an_interval():
    labels = np.arange(40) < 10
    found = auroc(labels.astype(float), labels)
    assert found.value == found.high == 1 and 0.6 < found.low < 0.75  # ten rows agree
    assert auroc(labels.astype(float), labels, clusters=[["a", "b"] * 20]).low < found.low


def test_two_kinds_of_clusters_are_no_narrower_than_either():
    scores, labels, names = drawn(3, 2)
    both = auroc(scores, labels, clusters=names)
    for one in names:
        alone = auroc(scores, labels, clusters=[one])
        assert both.low <= alone.low + 1e-12 and both.high >= alone.high - 1e-12


def test_a_gain_is_a_difference_of_the_same_rows():
    scores, labels, names = drawn(4, 1, shift=2.0)
    rng = np.random.default_rng(0)
    near, noise = scores + 0.01 * rng.normal(size=240), rng.normal(size=240)
    close, far = (auroc_gain(scores, other, labels, clusters=names) for other in (near, noise))
    assert close.high - close.low < 0.02 and far.low > 0
    assert far.value == pytest.approx(auroc(scores, labels).value - auroc(noise, labels).value)


def test_what_cannot_be_ranked_is_unknown_or_refused():
    none = auroc([1.0, 2.0], [True, False], blocks=[0, 1])
    assert none.value is None and "no block" in none.reason
    with pytest.raises(InputError, match="differ in length"):
        auroc([1.0], [True, False])
    with pytest.raises(NumericalError, match="NaN"):
        auroc([np.nan, 1.0], [True, False])
    with pytest.raises(InputError, match="3 kinds"):
        crossed([1.0, 2.0], [["a", "b"]] * 3)
