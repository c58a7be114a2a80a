"""A bandit of three tokens, where the answer is known: pi* = ref exp(r / beta) / Z (Rafailov et al., eq. 4).

Every expectation is an exact sum over actions, in float64, so that a method either arrives or is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calibrant.maths.advantages import leave_one_out
from calibrant.maths.kl import AdaptiveKL, categorical_kl, estimate, penalty
from calibrant.maths.kto import kto, reference_point
from calibrant.maths.losses import sigmoid
from calibrant.maths.pair_sums import PairSums
from calibrant.maths.policy_losses import clipped_surrogate

BETA = 0.7
REF = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
REWARD = torch.tensor([1.0, 0.2, -0.6], dtype=torch.float64)
BEST = (REF + REWARD / BETA).log_softmax(-1)


def flow(loss: Callable[[Tensor], Tensor], steps: int = 1000, rate: float = 1.0) -> Tensor:
    """Log-probs (3,) at the end of plain gradient descent that starts at the reference."""
    logits = REF.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1)), logits)
        with torch.no_grad():
            logits -= rate * gradient
    return logits.detach().log_softmax(-1)


def arrived(found: Tensor) -> None:
    torch.testing.assert_close(found, BEST, rtol=0, atol=1e-6)
    kl = float((BEST.exp() * (BEST - REF)).sum())
    assert float(categorical_kl(found, REF)) == pytest.approx(kl, abs=1e-6)
    assert kl == pytest.approx(0.2955634940, abs=1e-9)


def rewarded(logs: Tensor) -> Tensor:
    """r - beta k1 of each action, (3,)."""
    return REWARD - BETA * estimate("k1", logs, REF)


def ppo(logs: Tensor) -> Tensor:
    """One action a state: the advantage is the reward less the state's value. Weighed by pi_old = pi."""
    weights = logs.detach().exp()
    score = rewarded(logs)
    advantages = score - (weights * score).sum()
    return (weights * clipped_surrogate(logs, logs, advantages, low=0.2, high=0.2).loss).sum()


def ppo_with_penalty(name: str) -> Callable[[Tensor], Tensor]:
    """The KL as a loss in place of a reward."""

    def loss(logs: Tensor) -> Tensor:
        weights = logs.detach().exp()
        advantages = REWARD - (weights * REWARD).sum()
        surrogate = clipped_surrogate(logs, logs, advantages, low=0.2, high=0.2).loss
        return (weights * (surrogate + BETA * penalty(name, logs, REF))).sum()

    return loss


def rloo(logs: Tensor) -> Tensor:
    """All nine pairs of samples, each weighed by its probability."""
    weights = logs.detach().exp()
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    score = rewarded(logs)
    advantages = leave_one_out(torch.stack([score[first], score[second]], dim=1))
    pair = -(advantages * torch.stack([logs[first], logs[second]], dim=1)).mean(1)
    return (weights[first] * weights[second] * pair).sum()


def dpo(logs: Tensor) -> Tensor:
    """Every ordered pair, won with the Bradley-Terry probability of its rewards."""
    wins = torch.sigmoid(REWARD[:, None] - REWARD[None]).flatten()
    chosen, rejected = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    ones = torch.ones(9, dtype=torch.float64)
    pairs = PairSums(logs[chosen], logs[rejected], REF[chosen], REF[rejected], ones, ones)
    return (wins * sigmoid(pairs, BETA)).sum()


@pytest.mark.parametrize(
    "loss",
    [ppo, ppo_with_penalty("k2"), ppo_with_penalty("k3+"), rloo, dpo],
    ids=["ppo, k1 in reward", "ppo, k2 in loss", "ppo, k3+ in loss", "rloo", "dpo"],
)
def test_each_method_reaches_the_best_policy(loss: Callable[[Tensor], Tensor]) -> None:
    arrived(flow(loss))


def test_k3_as_a_loss_ends_elsewhere() -> None:
    """Its gradient is that of KL(ref || pi): the flow ends where r - beta (1 - ref / pi) is level."""
    found = flow(ppo_with_penalty("k3"))
    assert float((found.exp() - BEST.exp()).abs().max()) > 0.02
    level = REWARD - BETA * (1 - (REF - found).exp())
    assert float(level.max() - level.min()) < 1e-6


def test_several_epochs_on_one_batch_arrive_as_well() -> None:
    """pi_old stands still for four steps, so that the ratio leaves 1 and the clip has a say at times."""
    logits, held = REF.clone().requires_grad_(), 0
    for _ in range(900):
        old = logits.detach().log_softmax(-1)
        score = rewarded(old)
        advantages = score - (old.exp() * score).sum()
        for _ in range(4):
            logs = logits.log_softmax(-1)
            out = clipped_surrogate(logs, old, advantages, low=0.02, high=0.02)
            (gradient,) = torch.autograd.grad((old.exp() * out.loss).sum(), logits)
            held += int(out.clipped.sum())
            with torch.no_grad():
                logits -= 1.0 * gradient
    assert held > 0
    arrived(logits.detach().log_softmax(-1))


def test_the_best_policy_has_the_best_objective() -> None:
    """E r - beta KL of pi* is beta ln Z, and no policy near it has more."""
    log_z = torch.logsumexp(REF + REWARD / BETA, -1)
    objective = lambda logs: float((logs.exp() * REWARD).sum() - BETA * categorical_kl(logs, REF))  # noqa: E731
    assert objective(BEST) == pytest.approx(float(BETA * log_z), abs=1e-12)
    source = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = (BEST + 0.1 * torch.randn(3, generator=source, dtype=torch.float64)).log_softmax(-1)
        assert objective(other) <= objective(BEST)


def test_an_adaptive_coefficient_finds_its_kl() -> None:
    """Whatever the start, the policy ends at the KL that was asked for."""
    logits, controller = REF.clone().requires_grad_(), AdaptiveKL(coef=5.0, target=0.1, horizon=2000)
    for _ in range(3000):
        logs = logits.log_softmax(-1)
        weights = logs.detach().exp()
        score = REWARD - controller.coef * estimate("k1", logs, REF)
        (gradient,) = torch.autograd.grad(-(weights * score * logs).sum(), logits)
        with torch.no_grad():
            logits -= 0.3 * gradient
        controller = controller.after(64 * float(categorical_kl(logs.detach(), REF)), 64, 64)
    assert float(categorical_kl(logits.detach(), REF)) == pytest.approx(0.1, rel=1e-3)


def kto_with(wins: Tensor) -> Callable[[Tensor], Tensor]:
    """Replies drawn from the reference, each liked with probability ``wins``; z0 is the exact KL."""

    def loss(logs: Tensor) -> Tensor:
        ratios = logs - REF
        z0 = reference_point((logs.exp() * ratios).sum()[None])
        liked = kto(ratios, torch.ones(3, dtype=torch.bool), z0, BETA)
        disliked = kto(ratios, torch.zeros(3, dtype=torch.bool), z0, BETA)
        return (REF.exp() * (wins * liked + (1 - wins) * disliked)).sum()

    return loss


def test_kto_sorts_but_does_not_weigh() -> None:
    """Its loss is linear in sigma, with slope 1 - 2 p: no share of dislikes has a level of its own.

    What most dislike falls for ever, ever slower: it passes pi* and does not stop there.
    """
    wins = torch.sigmoid(2 * REWARD)
    early, late = flow(kto_with(wins), steps=600), flow(kto_with(wins), steps=1800)
    for found in (early, late):
        assert (found - REF)[0] > 0 > (found - REF)[2]
    assert late[2] < early[2] < BEST[2] - 0.5


def test_kto_without_a_preference_stands_still() -> None:
    torch.testing.assert_close(flow(kto_with(torch.full((3,), 0.5, dtype=torch.float64)), 200), REF)
