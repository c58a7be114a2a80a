"""Advantages: brute force in plain floats, parity vectors, and what must not leak."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from calibrant.maths.advantages import gae, group_normalised, leave_one_out, whiten


def table(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def slow_gae(rewards, values, gamma, lam, last):
    """A_t = sum_k (gamma lam)^k d_(t+k), each sum from scratch."""
    ahead = [*values, last][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, ahead, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_the_shared_vector() -> None:
    """r = (.1, -.2, 1), V = (.5, .4, .3), lambda .95: d = (0, -.3, .7); A_1 = -.3 + .95 * .7 = .365."""
    found = gae(
        table([0.1, -0.2, 1]), table([0.5, 0.4, 0.3]), torch.ones(1, 3, dtype=torch.bool), gamma=1, lam=0.95
    )
    torch.testing.assert_close(found, table([0.34675, 0.365, 0.7]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_against_brute_force_with_gaps_anywhere(seed: int) -> None:
    """Steps stand at random places of a row (padding left, right and between), masked ones hold NaN."""
    rng = random.Random(seed)
    gamma, lam, width = rng.choice([1.0, 0.9]), rng.choice([1.0, 0.95, 0.0]), 9
    rows = [sorted(rng.sample(range(width), n)) for n in (1, 4, 9, 6, 0)]
    draw = lambda n: [rng.uniform(-2, 2) for _ in range(n)]  # noqa: E731
    rewards, values, last = [draw(len(r)) for r in rows], [draw(len(r)) for r in rows], draw(len(rows))
    tables = torch.full((2, len(rows), width), math.nan, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    expected = torch.zeros(len(rows), width, dtype=torch.float64)
    for i, places in enumerate(rows):
        mask[i, places] = True
        tables[0, i, places] = torch.tensor(rewards[i], dtype=torch.float64)
        tables[1, i, places] = torch.tensor(values[i], dtype=torch.float64)
        slow = slow_gae(rewards[i], values[i], gamma, lam, last[i])
        expected[i, places] = torch.tensor(slow, dtype=torch.float64)
    found = gae(*tables, mask, gamma=gamma, lam=lam, bootstrap=torch.tensor(last, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_lambda_1_is_the_return_less_the_value() -> None:
    rewards, values = table([1, 2, 3]), table([5, 7, 9])
    found = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1, lam=1)
    torch.testing.assert_close(found, table([6 - 5, 5 - 7, 3 - 9]))


def test_a_mask_shifted_by_one_is_another_result() -> None:
    """The test above can fail: one more step at the end, and its value is bootstrapped from."""
    rewards, values = table([0.1, 1.0, 0.0]), table([0.5, 0.4, 3.0])
    right = torch.tensor([[True, True, False]])
    one = gae(rewards, values, right, gamma=1, lam=0.95)
    other = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1, lam=0.95)
    assert (one[0, :2] - other[0, :2]).abs().min() > 0.1


def test_cut_off_is_not_ended() -> None:
    """r = 1, V = 2: ended, A = 1 - 2; cut off with 3 ahead, A = 1 + .9 * 3 - 2."""
    one = (table([1.0]), table([2.0]), torch.ones(1, 1, dtype=torch.bool))
    assert float(gae(*one, gamma=0.9, lam=0.95)) == pytest.approx(-1.0)
    assert float(gae(*one, gamma=0.9, lam=0.95, bootstrap=torch.tensor([3.0]).double())) == pytest.approx(1.7)


def test_no_steps_at_all() -> None:
    empty = torch.zeros(2, 0)
    assert gae(empty, empty, empty.bool(), gamma=1, lam=0.95).shape == (2, 0)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_by_the_standard_library(shift_mean: bool, unbiased: bool) -> None:
    values = table([3.0, -1.0, math.nan], [4.5, math.inf, 2.0])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    kept = [3.0, -1.0, 4.5, 2.0]
    spread = statistics.stdev(kept) if unbiased else statistics.pstdev(kept)
    mean = statistics.mean(kept)
    expected = [(x - mean) / spread + (0 if shift_mean else mean) for x in kept]
    found = whiten(values, mask, shift_mean=shift_mean, unbiased=unbiased)
    assert found[mask].tolist() == pytest.approx(expected, abs=1e-7)
    assert found[~mask].tolist() == [0.0, 0.0]


def test_the_two_flavours_differ_on_small_batches() -> None:
    values, mask = table([3.0, -1.0, 4.5, 2.0]), torch.ones(1, 4, dtype=torch.bool)
    one, other = (whiten(values, mask, shift_mean=True, unbiased=u) for u in (True, False))
    assert float((one - other).abs().max()) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("unbiased", [True, False])
def test_whitening_one_entry_or_none(unbiased: bool) -> None:
    one = whiten(table([5.0, 1.0]), torch.tensor([[True, False]]), shift_mean=True, unbiased=unbiased)
    none = whiten(table([5.0]), torch.tensor([[False]]), shift_mean=False, unbiased=unbiased)
    assert one.tolist() == [[0.0, 0.0]]
    assert none.tolist() == [[0.0]]


def test_leave_one_out_by_hand() -> None:
    """(1, 3, 8): 1 - 5.5, 3 - 4.5, 8 - 2."""
    torch.testing.assert_close(leave_one_out(table([1, 3, 8])), table([-4.5, -1.5, 6.0]))


def test_leave_one_out_has_an_independent_baseline() -> None:
    """A change of one reward moves its own advantage by all of it, its peers' by 1 / (K - 1)."""
    rewards = table([1, 3, 8, 0]).requires_grad_()
    for i in range(4):
        (row,) = torch.autograd.grad(leave_one_out(rewards)[0, i], rewards, retain_graph=True)
        expected = torch.full((1, 4), -1 / 3, dtype=torch.float64)
        expected[0, i] = 1.0
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize(("unbiased", "spread"), [(True, statistics.stdev), (False, statistics.pstdev)])
def test_group_normalisation_by_the_standard_library(unbiased, spread) -> None:
    rows = [[1.0, 3.0, 8.0], [0.5, 0.5, 2.0]]
    everyone = [x for row in rows for x in row]
    for scale in ("group", "batch", "none"):
        expected = [
            [
                (x - statistics.mean(row))
                / {"group": spread(row) + 0.01, "batch": spread(everyone) + 0.01, "none": 1.0}[scale]
                for x in row
            ]
            for row in rows
        ]
        found = group_normalised(table(*rows), scale=scale, unbiased=unbiased, eps=0.01)
        torch.testing.assert_close(found, table(*expected))


ALIKE = [0.1, 0.1 + 3e-8, 0.1 - 2e-8]
"""One score, worked out in three ways: two units in the last place of float32 apart."""


def test_a_spread_that_is_rounding_is_never_divided_by() -> None:
    """Scores that differ in their last bits are equal; ten times further apart they are not."""
    rows = torch.tensor([ALIKE, [1.0, 3.0, 8.0]])
    for found in (
        leave_one_out(rows),
        *(group_normalised(rows, scale=s) for s in ("group", "batch", "none")),
    ):
        assert found[0].tolist() == [0, 0, 0]
        assert found[1].abs().min() > 0
    one, mask = rows[:1], torch.ones(1, 3, dtype=torch.bool)
    assert whiten(one, mask, shift_mean=True, unbiased=True).tolist() == [[0, 0, 0]]
    held = whiten(one, mask, shift_mean=False, unbiased=True)
    assert held[0].tolist() == pytest.approx([0.1] * 3, rel=1e-6)
    apart = torch.tensor([[0.1, 0.1 + 3e-6, 0.1 - 2e-6]])
    assert group_normalised(apart, scale="group", eps=1e-9).abs().max() > 1
    assert whiten(apart, mask, shift_mean=True, unbiased=True, eps=0.0).abs().max() > 1


def test_differences_of_large_numbers_are_judged_by_these() -> None:
    """Returns of 100 less values of 100 leave 1e-5 that means nothing; alone, 1e-5 may mean something."""
    left, mask = torch.tensor([[1e-5, -1e-5, 2e-5]]), torch.ones(1, 3, dtype=torch.bool)
    options = {"shift_mean": True, "unbiased": True, "eps": 0.0}
    assert whiten(left, mask, size=torch.tensor(100.0), **options).abs().max() == 0
    assert whiten(left, mask, **options).abs().max() > 1


def test_equal_rewards_give_no_signal() -> None:
    for scale in ("group", "batch", "none"):
        assert group_normalised(table([2.0, 2.0], [2.0, 2.0]), scale=scale).abs().max() == 0
