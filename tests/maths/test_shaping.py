"""Where a score stands, penalties, moments: by hand, by slow loops, and what must not leak."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch

from calibrant.maths.shaping import (
    Moments,
    explained_variance,
    masks,
    missing_end,
    score_place,
    token_rewards,
)


def test_masks_spelt_out() -> None:
    """Replies of 1, 2 and 3 tokens in a table of 3 columns."""
    lengths = torch.tensor([1, 2, 3])
    plain, wider = masks(lengths, 3, after=False), masks(lengths, 3, after=True)
    tokens = [[True, False, False], [True, True, False], [True, True, True]]
    assert plain.tokens.tolist() == plain.steps.tolist() == wider.tokens.tolist() == tokens
    assert wider.steps.tolist() == [[True, True, False], [True, True, True], [True, True, True]]


def test_the_score_stands_on_the_last_token_or_behind_it() -> None:
    lengths = torch.tensor([1, 2, 3])
    assert score_place(lengths, 3, after=False).tolist() == [0, 1, 2]
    assert score_place(lengths, 3, after=True).tolist() == [1, 2, 2]  # the longest has no place behind it


def test_token_rewards_spelt_out() -> None:
    """Score 1 and 2, KL 0.5 a token at a price of 0.1; padding holds NaN."""
    kl = torch.tensor([[0.5, math.nan, math.nan], [0.5, 0.5, math.nan]])
    lengths, scores = torch.tensor([1, 2]), torch.tensor([1.0, 2.0])
    on = token_rewards(scores, kl, lengths, 0.1, after=False)
    torch.testing.assert_close(on, torch.tensor([[0.95, 0.0, 0.0], [-0.05, 1.95, 0.0]]))
    behind = token_rewards(scores, kl, lengths, 0.1, after=True)
    torch.testing.assert_close(behind, torch.tensor([[-0.05, 1.0, 0.0], [-0.05, -0.05, 2.0]]))
    torch.testing.assert_close(on.sum(), behind.sum())


def test_a_missing_end_is_subtracted_or_put_in_place() -> None:
    """Scores -3 and -3, one cut off, penalty 1: -4 or -1; for negative scores the two pull apart."""
    scores, ended = torch.tensor([-3.0, -3.0]), torch.tensor([True, False])
    assert missing_end(scores, ended, 1.0, replace=False).tolist() == [-3.0, -4.0]
    assert missing_end(scores, ended, 1.0, replace=True).tolist() == [-3.0, -1.0]


def test_explained_variance() -> None:
    """Right but for a shift: 1; a constant: 0; twice the truth: 0; nothing to explain: NaN."""
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert float(explained_variance(returns + 5, returns, mask)) == pytest.approx(
        1.0
    )  # a shift is no variance
    assert float(explained_variance(torch.zeros(1, 4), returns, mask)) == pytest.approx(0.0)
    assert float(explained_variance(2 * returns, returns, mask)) == pytest.approx(0.0)
    assert math.isnan(float(explained_variance(returns, torch.ones(1, 4), mask)))


def test_moments_are_those_of_all_scores() -> None:
    parts = [[1.0, 2.0, 4.0], [10.0], [-3.0, 0.5]]
    everything = [x for part in parts for x in part]
    moments = Moments()
    for part in parts:
        moments = moments.after(torch.tensor(part))
    assert moments.n == 6
    assert moments.mean == pytest.approx(statistics.mean(everything))
    assert moments.squares / moments.n == pytest.approx(statistics.pvariance(everything))
    found = moments.normalised(torch.tensor(everything))
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(1.0, abs=1e-6)


def test_moments_far_from_zero_keep_their_digits() -> None:
    moments = Moments()
    for _ in range(100):
        moments = moments.after(torch.tensor([1e8 - 1, 1e8 + 1], dtype=torch.float64))
    assert moments.squares / moments.n == pytest.approx(1.0, rel=1e-6)


def test_moments_go_through_json() -> None:
    moments = Moments().after(torch.tensor([0.1, 0.7, 1.3]))
    assert Moments.restored(json.loads(json.dumps(moments.state()))) == moments


def test_a_spread_that_is_rounding_is_not_scaled_up() -> None:
    """Scores that differ in their last bits: none stands out, and there is no variance to explain."""
    scores = torch.tensor([0.1, 0.1 + 3e-8, 0.1 - 2e-8])
    assert Moments().after(scores).normalised(scores).tolist() == [0, 0, 0]
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert math.isnan(float(explained_variance(scores[None], scores[None], mask)))
    apart = torch.tensor([0.1, 0.2, 0.3])
    assert Moments().after(apart).normalised(apart).abs().max() > 1
    assert float(explained_variance(apart[None], apart[None], mask)) == pytest.approx(1.0)
