"""Token log-probs against a slow float64 loop, finite differences and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from calibrant.maths import logprobs
from calibrant.maths.logprobs import masked_sum, token_logprobs


def _case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(3, 5, 11, generator=source, dtype=torch.float64)
    return logits.to(dtype), torch.randint(0, 11, (3, 5), generator=source)


def _slow(logits: torch.Tensor, ids: torch.Tensor) -> list[list[float]]:
    """One token at a time, in Python floats."""
    rows = []
    for row, tokens in zip(logits.double().tolist(), ids.tolist(), strict=True):
        rows.append(
            [
                row[t][tokens[t + 1]] - math.log(sum(math.exp(x) for x in row[t]))
                for t in range(len(tokens) - 1)
            ]
        )
    return rows


def test_closed_form() -> None:
    """Equal logits over 4 tokens: every token has log-prob -log 4, whatever the common level."""
    found = token_logprobs(torch.full((1, 3, 4), 1000.0), torch.tensor([[0, 1, 3]]))
    assert torch.allclose(found, torch.full((1, 2), -math.log(4)), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)]
)
def test_agrees_with_the_slow_loop(dtype: torch.dtype, tolerance: float) -> None:
    """Half precision is exact too: the logits are rounded once, the arithmetic is not."""
    logits, ids = _case(dtype)
    found = token_logprobs(logits, ids)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(found.double(), torch.tensor(_slow(logits, ids)).double(), atol=tolerance)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = _case()
    whole = token_logprobs(logits, ids)
    monkeypatch.setattr(logprobs, "_CHUNK", 1)
    assert torch.equal(token_logprobs(logits, ids), whole)


def test_gradient_by_finite_differences() -> None:
    logits, ids = _case(torch.float64)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids), (logits.requires_grad_(),))


def test_later_tokens_have_no_say() -> None:
    """Entry t reads logits up to t and ids up to t + 1, nothing later."""
    logits, ids = _case()
    later = logits.clone()
    later[:, 3:] += torch.randn(3, 2, 11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(token_logprobs(logits, ids)[:, :3], token_logprobs(later, ids)[:, :3])


def test_masked_sum_stops_leaks() -> None:
    values = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 0.5, 0.25]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert masked_sum(values, mask).tolist() == [3.0, 0.75]


def test_masked_sum_of_nothing_is_zero() -> None:
    assert masked_sum(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).tolist() == [0.0, 0.0]
