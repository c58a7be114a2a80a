"""Representation rerouting: both terms and their gradients by a slow route, and the weights of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from calibrant.maths.rerouting import alignment, distance, weights


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(trained, before):
    """ReLU of the cosine and the distance of two lists of floats, by the formulas."""
    dot = sum(a * b for a, b in zip(trained, before, strict=True))
    norms = [math.sqrt(sum(a * a for a in one)) for one in (trained, before)]
    apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(trained, before, strict=True)))
    return max(0.0, dot / norms[0] / norms[1]), apart


def test_both_terms_by_the_formulas():
    now, then = drawn(0, 4, 3, 7), drawn(1, 4, 3, 7)
    cosines, apart = alignment(now, then), distance(now, then)
    assert (cosines == 0).any() and (cosines > 0).any()
    for place in [(i, j) for i in range(4) for j in range(3)]:
        wanted = slow(now[place].tolist(), then[place].tolist())
        assert (cosines[place].item(), apart[place].item()) == pytest.approx(wanted, abs=1e-12)


def test_gradients_by_differences():
    now, then = drawn(2, 6, 5).requires_grad_(), drawn(3, 6, 5)
    assert torch.autograd.gradcheck(alignment, (now, then))
    assert torch.autograd.gradcheck(distance, (now, then))


@pytest.mark.parametrize("term", [alignment, distance])
def test_where_nothing_has_moved_there_is_no_gradient(term):
    """Why training begins from adapters that are drawn: both terms are flat, or have a kink, at the start."""
    then = drawn(4, 3, 5)
    now = then.clone().requires_grad_()
    term(now, then).sum().backward()
    assert now.grad.abs().max() < 1e-12


def test_half_precision_is_widened():
    now, then = drawn(5, 2, 64).bfloat16(), drawn(6, 2, 64).bfloat16()
    for term in (alignment, distance):
        found = term(now, then)
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(term(now.double(), then.double()).tolist(), rel=1e-6)


def test_weights_of_the_paper():
    """alpha (1 - t / 2T) falls to alpha / 2, alpha t / 2T rises to it."""
    assert weights(1, 150, 10.0) == pytest.approx((10 * 299 / 300, 10 / 300))
    assert weights(150, 150, 10.0) == (5.0, 5.0)
    assert weights(3, 7, 0.0) == (0.0, 0.0)
    assert all(sum(weights(t, 9, 2.0)) == pytest.approx(2.0) for t in range(1, 10))
