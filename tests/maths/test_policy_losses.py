"""Policy losses: a slow loop, the four corners of the clip, gradients, and steps cut into micro-batches."""

from __future__ import annotations

import math
import random

import pytest
import torch

from calibrant.maths.policy_losses import AGGREGATIONS, Window, clipped_surrogate, value_loss


def batch(rows: int = 5, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs (4, R, T) of which the first asks for gradients, and a mask with rows of many lengths."""
    source = torch.Generator().manual_seed(seed)
    numbers = torch.randn(4, rows, width, generator=source, dtype=torch.float64)
    lengths = torch.tensor([1 + i % width for i in range(rows)])
    return numbers, torch.arange(width)[None] < lengths[:, None]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.5, 2.0, -2.4, True),  # up, and already high enough: held at 1.2
        (0.5, 2.0, -1.0, False),  # up, from below: nothing holds it
        (1.5, -2.0, 3.0, False),  # down, from above: nothing holds it
        (0.5, -2.0, 1.6, True),  # down, and already low enough: held at 0.8
        (1.0, 2.0, -2.0, False),
    ],
)
def test_the_corners_of_the_clip(ratio: float, advantage: float, expected: float, clipped: bool) -> None:
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    out = clipped_surrogate(
        new, torch.zeros(1).double(), torch.tensor([advantage]).double(), low=0.2, high=0.2
    )
    assert out.loss.item() == pytest.approx(expected, abs=1e-12)
    assert bool(out.clipped) is clipped
    (gradient,) = torch.autograd.grad(out.loss.sum(), new)
    assert float(gradient) == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-12)


def test_a_higher_upper_clip_moves_only_that_side() -> None:
    logs = torch.tensor([1.25, 0.5]).log()
    out = clipped_surrogate(logs, torch.zeros(2), torch.tensor([1.0, -1.0]), low=0.2, high=0.28)
    assert out.loss.tolist() == pytest.approx([-1.25, 0.8])


def test_the_first_step_is_a_plain_policy_gradient() -> None:
    numbers, _ = batch()
    logs = numbers[0].requires_grad_()
    out = clipped_surrogate(logs, logs, numbers[1], low=0.2, high=0.2)
    (gradient,) = torch.autograd.grad(out.loss.sum(), logs)
    torch.testing.assert_close(gradient, -numbers[1])
    assert not out.clipped.any()


def test_a_huge_ratio_stays_finite() -> None:
    new = torch.tensor([0.0, 0.0], requires_grad=True)
    out = clipped_surrogate(new, torch.full((2,), -500.0), torch.tensor([1.0, -1.0]), low=0.2, high=0.2)
    out.loss.sum().backward()
    assert torch.isfinite(out.loss).all()
    assert torch.isfinite(new.grad).all()


def test_the_value_loss_by_a_slow_loop() -> None:
    numbers, _ = batch(seed=1)
    values, old, returns = numbers[:3]
    out = value_loss(values, old, returns, clip=0.3)
    for v, o, r, found, held in zip(
        *(x.flatten().tolist() for x in (values, old, returns, out.loss, out.clipped)), strict=True
    ):
        near = min(max(v, o - 0.3), o + 0.3)
        assert found == pytest.approx(0.5 * max((v - r) ** 2, (near - r) ** 2), abs=1e-12)
        assert held == ((near - r) ** 2 > (v - r) ** 2)
    plain = value_loss(values, old, returns, clip=None)
    torch.testing.assert_close(plain.loss, 0.5 * (values - returns) ** 2)
    assert not plain.clipped.any()


def test_gradients_by_finite_differences() -> None:
    numbers, _ = batch(rows=2, width=3, seed=2)
    new, old, advantages = (0.2 * numbers[0]).requires_grad_(), 0.2 * numbers[1], numbers[2]
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, advantages, low=0.2, high=0.2).loss, (new,)
    )
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, advantages, clip=0.2).loss, (new,))


def test_no_gradient_reaches_what_was_collected() -> None:
    numbers, _ = batch()
    new, old, other = (x.clone().requires_grad_() for x in numbers[:3])
    loss = clipped_surrogate(new, old, other, low=0.2, high=0.2).loss.sum()
    (loss + value_loss(new, old, other, clip=0.2).loss.sum()).backward()
    assert new.grad is not None
    assert old.grad is other.grad is None


def test_aggregations_by_hand() -> None:
    """Rows (1, 2, 3) and (6): 12 / 4; (2 + 6) / 2; 12 / (2 * 10); the micro-batch's own 12 / 4."""
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, math.inf]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    window = Window(tokens=4, sequences=2, longest=10)
    found = {name: float(share(values, mask, window)) for name, share in AGGREGATIONS.items()}
    assert found == pytest.approx(
        {"token_mean": 3.0, "sequence_mean": 4.0, "constant": 0.6, "micro_token_mean": 3.0}
    )


def gradient_in_parts(name: str, parts: list[list[int]]) -> torch.Tensor:
    """Gradient of the clipped surrogate, row groups one after the other."""
    numbers, mask = batch(rows=7)
    new = (0.3 * numbers[0]).requires_grad_()
    window = Window(tokens=int(mask.sum()), sequences=7, longest=6, parts=len(parts))
    for rows in parts:
        out = clipped_surrogate(new[rows], 0.3 * numbers[1][rows], numbers[2][rows], low=0.2, high=0.2)
        AGGREGATIONS[name](out.loss, mask[rows], window).backward()
    assert new.grad is not None
    return new.grad


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("seed", range(4))
def test_any_split_gives_the_same_gradient(name: str, seed: int) -> None:
    rng = random.Random(seed)
    order = rng.sample(range(7), 7)
    cuts = sorted(rng.sample(range(1, 7), seed))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 7], strict=True)]
    torch.testing.assert_close(gradient_in_parts(name, parts), gradient_in_parts(name, [list(range(7))]))


def test_the_one_that_depends_on_the_cut() -> None:
    whole = gradient_in_parts("micro_token_mean", [list(range(7))])
    torch.testing.assert_close(whole, gradient_in_parts("token_mean", [list(range(7))]))
    assert not torch.allclose(whole, gradient_in_parts("micro_token_mean", [[0, 1], [2, 3, 4, 5, 6]]))


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_a_micro_batch_without_a_token_adds_nothing(name: str) -> None:
    """Replies that are all masked: 0, and a gradient of 0, not 0 / 0."""
    values = torch.tensor([[1.0, math.nan], [3.0, math.inf]], dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 2, dtype=torch.bool)
    share = AGGREGATIONS[name](values, mask, Window(tokens=5, sequences=4, longest=2, parts=2))
    assert float(share.detach()) == 0.0
    (gradient,) = torch.autograd.grad(share, values)
    assert gradient.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_micro_batch_of_one_token_is_that_token() -> None:
    values, mask = torch.tensor([[2.0, 5.0]]), torch.tensor([[False, True]])
    window = Window(tokens=4, sequences=2, longest=10)
    assert float(AGGREGATIONS["micro_token_mean"](values, mask, window)) == 5.0
    assert float(AGGREGATIONS["sequence_mean"](values, mask, window)) == 2.5


def test_micro_batches_share_a_step_evenly() -> None:
    """2 and 6 are a micro-batch's mean of 4, which is half of a step of two."""
    values, mask = torch.tensor([[2.0, 6.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert float(AGGREGATIONS["micro_token_mean"](values, mask, Window(9, 4, 9, parts=2))) == 2.0
