"""The head at scored tokens: plain autograd in float64 is the truth, for values and gradients."""

from __future__ import annotations

import pytest
import torch

from calibrant.maths import head
from calibrant.maths.head import head_logprobs, logits_logprobs


def drawn(bias):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(11, generator=rng, dtype=torch.float64, requires_grad=True) if bias else None
    return hidden, weight, shift, torch.randint(0, 11, (7,), generator=rng)


def plain(hidden, weight, bias, targets, temperature):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    table = (logits / temperature).log_softmax(-1)
    return table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("limit", [10**9, 30, 1], ids=["whole", "slices of two", "one by one"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entropy", [True, False])
def test_values_and_gradients_are_those_of_autograd(monkeypatch, limit, bias, entropy):
    monkeypatch.setattr(head, "LIMIT", limit)
    given = drawn(bias)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    grads = []
    for route in (
        lambda: head_logprobs(*given, 0.7, entropy),
        lambda: logits_logprobs(given[0] @ given[1].T + (given[2] if bias else 0), given[3], 0.7),
        lambda: plain(*given, 0.7),
    ):
        for tensor in given[:3]:
            if tensor is not None:
                tensor.grad = None
        logprobs, spread = route()
        ((weights * logprobs).sum() + (float(entropy) * weights.flip(0) * spread).sum()).backward()
        values = [logprobs.detach(), spread.detach() * float(entropy)]
        grads.append(values + [tensor.grad.clone() for tensor in given[:3] if tensor is not None])
    for fast, half, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(half, slow, atol=1e-12, rtol=1e-12)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[400.0, 0.0], [0.0, -400.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], requires_grad=True)
    logprobs, spread = head_logprobs(hidden, weight, None, torch.tensor([2, 1]), entropy=True)
    assert logprobs.tolist() == [-800.0, -400.0]  # two ways to be certain of another token
    (logprobs.sum() + spread.sum()).backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_half_precision_states_give_float32():
    hidden, weight, _, targets = drawn(False)
    found, _ = head_logprobs(hidden.bfloat16(), weight.float(), None, targets)
    slow, _ = plain(hidden, weight, None, targets, 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), slow, atol=0.05, rtol=0.05)
    found.sum().backward()
    assert weight.grad.dtype == torch.float64
