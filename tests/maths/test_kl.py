"""KL: estimators and penalties against the exact divergence of small distributions, and the controllers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from calibrant.maths import kl


def two(size: int = 4, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy (asks for gradients) and of its reference, float64."""
    source = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, size, generator=source, dtype=torch.float64)
    return draws[0].clone().requires_grad_(), draws[1]


def exact_gradient(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(kl.categorical_kl(policy, reference), policy)[0]


def test_a_divergence_by_hand() -> None:
    """pi = (1/2, 1/2), ref = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3."""
    policy, reference = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert float(kl.categorical_kl(policy, reference)) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-7)
    assert float(kl.categorical_kl(policy + 5, reference - 7)) == pytest.approx(0.1438410362, abs=1e-6)


def test_a_token_never_drawn_costs_nothing() -> None:
    policy, reference = torch.tensor([0.0, 0.0, -math.inf]), torch.tensor([0.0, 0.0, 0.0])
    assert float(kl.categorical_kl(policy, reference)) == pytest.approx(math.log(1.5), abs=1e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_values_by_hand(name: str) -> None:
    """d = ln 2: k1 = ln 2, k2 = ln(2)^2 / 2, k3 = 1/2 - 1 + ln 2."""
    expected = {"k1": 0.6931471806, "k2": 0.2402265070, "k3": 0.1931471806}[name]
    at = torch.tensor([-1.0], dtype=torch.float64)
    found = kl.estimate(name, at, at - math.log(2))
    assert float(found) == pytest.approx(expected, abs=1e-9)
    assert not found.requires_grad


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    policy, reference = two()
    p, ref = policy.detach().log_softmax(-1), reference.log_softmax(-1)
    exact = float(kl.categorical_kl(p, ref))
    means = {name: float((p.exp() * kl.estimate(name, p, ref)).sum()) for name in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, abs=1e-12)
    assert means["k3"] == pytest.approx(exact, abs=1e-12)
    assert abs(means["k2"] - exact) > 0.02


def test_which_gradient_each_penalty_has() -> None:
    """Every action weighed by its probability, held: k2 and k3+ have the KL's own, k3 its mirror's."""
    policy, reference = two()
    weights = policy.detach().softmax(-1)
    ref = reference.log_softmax(-1)
    found = {}
    for name in ("k2", "k3", "k3+"):
        loss = (weights * kl.penalty(name, policy.log_softmax(-1), ref)).sum()
        (found[name],) = torch.autograd.grad(loss, policy)
    exact = exact_gradient(policy, reference)
    (mirror,) = torch.autograd.grad(kl.categorical_kl(reference, policy), policy)
    torch.testing.assert_close(found["k2"], exact)
    torch.testing.assert_close(found["k3+"], exact)
    torch.testing.assert_close(found["k3"], mirror)
    assert not torch.allclose(found["k3"], exact, atol=0.05)


def test_k1_off_the_reward_is_k2_in_the_loss() -> None:
    """Policy gradient with -k1 as reward: sum_a pi k1 grad ln pi, the same as k2's and as the KL's own."""
    policy, reference = two()
    logs = policy.log_softmax(-1)
    cost = kl.estimate("k1", logs, reference.log_softmax(-1))
    (in_reward,) = torch.autograd.grad((logs.detach().exp() * cost * logs).sum(), policy)
    torch.testing.assert_close(in_reward, exact_gradient(policy, reference))


def test_k1_as_a_loss_would_be_no_penalty() -> None:
    policy, reference = two()
    logs = policy.log_softmax(-1)
    (gradient,) = torch.autograd.grad(
        (logs.detach().exp() * kl.k1(logs, reference.log_softmax(-1))).sum(), policy
    )
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert "k1" not in kl.PENALTIES


def test_k3_plus_shows_k3() -> None:
    policy, reference = two()
    logs, ref = policy.log_softmax(-1), reference.log_softmax(-1)
    torch.testing.assert_close(kl.penalty("k3+", logs, ref), kl.penalty("k3", logs, ref))


@pytest.mark.parametrize("name", ["k2", "k3", "k3+"])
@pytest.mark.parametrize("low", [-12.0, -60.0, -199.0])
def test_far_apart_nothing_overflows_and_the_pull_stays(name: str, low: float) -> None:
    """ref is e^199 times likelier: a clamp after the exponential gives NaN here, one before it no pull."""
    policy = torch.tensor([low], requires_grad=True)
    value = kl.penalty(name, policy, torch.tensor([-0.5]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert value.item() > 10
    assert torch.isfinite(policy.grad).all()
    assert policy.grad.item() < -10  # descent makes the token likelier, back towards the reference


def test_k1_is_never_cut() -> None:
    assert float(kl.estimate("k1", torch.tensor(-199.0), torch.tensor(-0.5))) == -198.5


def test_the_gradient_of_k3_by_finite_differences() -> None:
    policy = torch.linspace(-4, -0.1, 7, dtype=torch.float64).requires_grad_()
    reference = torch.full_like(policy, -1.3)
    assert torch.autograd.gradcheck(lambda x: kl.penalty("k3", x, reference), (policy,))
    assert torch.autograd.gradcheck(lambda x: kl.penalty("k2", x, reference), (policy,))


def test_no_gradient_reaches_the_reference() -> None:
    policy, reference = two()
    reference.requires_grad_()
    sum(kl.penalty(name, policy, reference).sum() for name in kl.PENALTIES).backward()
    assert reference.grad is None


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_by_enumeration(n: int) -> None:
    """100 equally likely replies without ties: the i-th best of them wins with (i^n - (i-1)^n) / 100^n."""
    size = 100_000
    ranks = torch.arange(1, size + 1, dtype=torch.float64) / size
    wins = ranks**n - (ranks - 1 / size) ** n
    exact = float((wins * (wins * size).log()).sum())
    assert kl.best_of_n_kl(n) == pytest.approx(exact, abs=2e-4)


def test_the_target_in_sequences() -> None:
    """KL 12 at target 6 is clipped to +0.2: after 100 of 1000 sequences the factor is 1.02."""
    controller = kl.AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    assert controller.after(1200.0, 100, 5000).coef == pytest.approx(0.1 * 1.02)
    assert controller.after(0.0, 100, 5000).coef == pytest.approx(0.1 * 0.98)
    assert controller.after(630.0, 100, 5000).coef == pytest.approx(0.1 * (1 + 0.05 * 0.1))  # 6.3 of 6
    assert controller.after(600.0, 100, 5000).coef == pytest.approx(0.1)


def test_the_target_in_tokens() -> None:
    controller = kl.AdaptiveKL(coef=0.1, target=0.1, horizon=1000, unit="token")
    assert controller.after(550.0, 100, 5000).coef == pytest.approx(0.1 * (1 + 0.1 * 0.1))  # 0.11 of 0.1
    assert controller.after(500.0, 100, 5000).coef == pytest.approx(0.1)


def test_a_controller_steers_to_its_target() -> None:
    """A world where KL = 1 / coef: from far off, the coefficient ends where KL is 4."""
    controller = kl.AdaptiveKL(coef=5.0, target=4.0, horizon=1000)
    for _ in range(500):
        controller = controller.after(100 / controller.coef, 100, 1000)
    assert 1 / controller.coef == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("controller", [kl.FixedKL(0.05), kl.AdaptiveKL(0.05, 6.0, 1000)])
def test_a_controller_goes_through_json(controller: kl.FixedKL | kl.AdaptiveKL) -> None:
    later = controller.after(1234.5, 64, 1000)
    assert controller.restored(json.loads(json.dumps(later.state()))) == later
    assert controller.coef == 0.05


def test_a_fixed_coefficient_stays() -> None:
    assert kl.FixedKL(0.05).after(1e9, 1, 1) == kl.FixedKL(0.05)
