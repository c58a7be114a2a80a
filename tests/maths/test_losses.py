"""Preference losses: parity vectors, slow loops, finite differences, invariances, a bandit in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from calibrant.maths.losses import dpo_sigmoid, nll


def _sums(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([sum(row) for row in rows], dtype=torch.float64)


# Two pairs of token log-probs, shared with TRL 1.16 (DPOTrainer._compute_loss, executed in float64).
CHOSEN = _sums([-1.2, -0.3, -2.0, -0.7], [-0.5, -0.9])
REJECTED = _sums([-0.8, -1.1], [-2.5, -0.2, -1.4])
REF_CHOSEN, REF_REJECTED = _sums([-5.0], [-1.1]), _sums([-1.5], [-4.4])
VECTOR = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)


def _case(n: int = 6) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(5)
    return [-20 * torch.rand(n, generator=source, dtype=torch.float64) for _ in range(4)]


def test_parity_with_trl() -> None:
    """Differences (0.8 + 0.4, -0.3 - 0.3) = (1.2, -0.6): mean of ln(1 + e^-0.6) and ln(1 + e^0.3)."""
    out = dpo_sigmoid(*VECTOR, beta=0.5)
    assert abs(float(out.loss.mean()) - 0.6459215975) <= 1e-9
    by_hand = [math.log1p(math.exp(-0.6)), math.log1p(math.exp(0.3))]
    assert out.loss.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert out.chosen_reward.tolist() == pytest.approx([0.4, -0.15], abs=1e-12)
    assert out.rejected_reward.tolist() == pytest.approx([-0.2, 0.15], abs=1e-12)


def test_agrees_with_the_slow_loop() -> None:
    beta, case = 0.3, _case()
    out = dpo_sigmoid(*case, beta)
    for i, (w, lose, rw, rl) in enumerate(zip(*(x.tolist() for x in case), strict=True)):
        sigma = 1 / (1 + math.exp(-beta * ((w - rw) - (lose - rl))))
        assert float(out.loss[i]) == pytest.approx(-math.log(sigma), abs=1e-12)
        assert float(out.chosen_reward[i]) == pytest.approx(beta * (w - rw), abs=1e-12)
        assert float(out.rejected_reward[i]) == pytest.approx(beta * (lose - rl), abs=1e-12)


def test_gradient_by_finite_differences() -> None:
    case = [x.requires_grad_() for x in _case()]
    assert torch.autograd.gradcheck(lambda *x: dpo_sigmoid(*x, 0.3).loss, case)


def test_gradient_in_closed_form() -> None:
    """Rafailov et al., section 4: d loss / d log pi_w = -beta sigma(r_l - r_w); rewards carry no gradient."""
    chosen, rejected, *reference = _case()
    out = dpo_sigmoid(chosen.requires_grad_(), rejected.requires_grad_(), *reference, 0.3)
    out.loss.sum().backward()
    weight = 0.3 * torch.sigmoid(out.rejected_reward - out.chosen_reward)
    assert chosen.grad is not None
    assert torch.allclose(chosen.grad, -weight, atol=1e-12)
    assert torch.allclose(rejected.grad, weight, atol=1e-12)
    assert not out.chosen_reward.requires_grad
    assert not out.rejected_reward.requires_grad


def test_swapping_sides_turns_the_sign() -> None:
    """loss(z) - loss(-z) = -z, since ln(1 + e^-z) = ln(1 + e^z) - z."""
    chosen, rejected, ref_chosen, ref_rejected = _case()
    out = dpo_sigmoid(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    back = dpo_sigmoid(rejected, chosen, ref_rejected, ref_chosen, 0.3)
    assert torch.equal(out.chosen_reward, back.rejected_reward)
    margin = out.chosen_reward - out.rejected_reward
    assert torch.allclose(out.loss - back.loss, -margin, atol=1e-12)


def test_a_common_shift_changes_nothing() -> None:
    """Whatever both replies share (a prompt's log-prob, say) cancels."""
    chosen, rejected, *reference = _case()
    whole = dpo_sigmoid(chosen, rejected, *reference, 0.3).loss
    assert torch.allclose(dpo_sigmoid(chosen - 7, rejected - 7, *reference, 0.3).loss, whole, atol=1e-12)


def test_policy_equal_to_reference_gives_ln_2() -> None:
    chosen, rejected, *_ = _case()
    out = dpo_sigmoid(chosen, rejected, chosen, rejected, 0.3)
    assert out.loss.tolist() == [math.log(2)] * len(chosen)
    assert not out.chosen_reward.any()


def test_far_margins_stay_finite() -> None:
    """The naive ln(sigmoid) is -inf here; the loss is linear."""
    far = torch.tensor([0.0, -4000.0], dtype=torch.float32, requires_grad=True)
    out = dpo_sigmoid(far, far.flip(0), torch.zeros(2), torch.zeros(2), 1.0)
    out.loss.sum().backward()
    assert out.loss.tolist() == [0.0, 4000.0]
    assert torch.isfinite(far.grad).all()


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_bandit_reaches_the_closed_form(beta: float) -> None:
    """Rafailov et al., equations 4 to 7: with every pair drawn by Bradley-Terry from a reward r, the
    population loss is least at pi* = pi_ref exp(r / beta) / Z. The expectation is exact, no sampling.
    """
    source = torch.Generator().manual_seed(2)
    reward = 0.5 * torch.randn(5, generator=source, dtype=torch.float64)
    reference = torch.randn(5, generator=source, dtype=torch.float64).log_softmax(0)
    logits = reference.clone().requires_grad_()
    first, second = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    share = torch.sigmoid(reward[first] - reward[second])  # P(first is preferred), equation 1

    def loss() -> torch.Tensor:
        policy = logits.log_softmax(0)
        pairs = dpo_sigmoid(policy[first], policy[second], reference[first], reference[second], beta)
        return (share * pairs.loss).mean()

    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    best = (reference + reward / beta).log_softmax(0)
    found = logits.detach().log_softmax(0)
    assert float((best.exp() * (best - found)).sum()) < 1e-6
    assert float((best.exp() * (best - reference)).sum()) > 1e-2  # it had to move


def test_nll_agrees_with_the_slow_loop() -> None:
    """Over tokens, not over rows: -(1 + 2 + 3) / 3, and not the mean of 1.5 and 3."""
    values = torch.tensor([[-1.0, -2.0, -9.0], [-9.0, -3.0, -9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert float(nll(values, mask)) == 2.0


def test_nll_gradient_by_finite_differences() -> None:
    values = torch.stack(_case()).requires_grad_()
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.autograd.gradcheck(lambda x: nll(x, mask), (values,))


def test_nll_ignores_what_is_masked() -> None:
    """Even a NaN, in the value and in the gradient; and nothing scored is 0, not 0 / 0."""
    values = torch.tensor([[-1.0, math.nan], [-3.0, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss = nll(values, mask)
    loss.backward()
    assert float(loss.detach()) == 2.0
    assert values.grad is not None
    assert values.grad.tolist() == [[-0.5, 0.0], [-0.5, 0.0]]
    assert float(nll(values.detach(), torch.zeros_like(mask))) == 0.0
