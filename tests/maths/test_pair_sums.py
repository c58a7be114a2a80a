"""What a pair is worth: rewards, divergences, and sums by token."""

from __future__ import annotations

import math

import pytest
import torch

from calibrant.maths.losses import sigmoid
from calibrant.maths.pair_sums import (
    PairSums,
    alpha_score,
    desensitised,
    diverged,
    implicit_rewards,
    js_score,
    on_policy_weight,
    reference_free,
)

CHOSEN = torch.tensor([[-1.2, -0.3, -2.0, -0.7], [-0.5, -0.9, 0.0, 0.0]], dtype=torch.float64)
REJECTED = torch.tensor([[-0.8, -1.1, 0.0], [-2.5, -0.2, -1.4]], dtype=torch.float64)
COUNTS = torch.tensor([4, 2]), torch.tensor([2, 3])


@pytest.fixture
def vector():
    """Two pairs, shared with TRL 1.16: s_w = (0.8, -0.3), s_l = (-0.4, 0.3)."""
    reference = torch.tensor([[-5.0, -1.1], [-1.5, -4.4]], dtype=torch.float64)
    return PairSums(CHOSEN.sum(1), REJECTED.sum(1), *reference, *COUNTS)


def test_ratios_and_differences(vector):
    assert vector.chosen_ratio.tolist() == pytest.approx([0.8, -0.3], abs=1e-12)
    assert vector.rejected_ratio.tolist() == pytest.approx([-0.4, 0.3], abs=1e-12)
    assert vector.difference.tolist() == pytest.approx([1.2, -0.6], abs=1e-12)
    assert vector.mean_difference.tolist() == pytest.approx(
        [0.8 / 4 + 0.4 / 2, -0.3 / 2 - 0.3 / 3], abs=1e-12
    )


def test_rewards_carry_no_gradient(vector):
    live = vector._replace(policy_chosen=vector.policy_chosen.clone().requires_grad_())
    chosen, rejected = implicit_rewards(live, 0.5)
    assert chosen.tolist() == pytest.approx([0.4, -0.15], abs=1e-12)
    assert rejected.tolist() == pytest.approx([-0.2, 0.15], abs=1e-12)
    assert not chosen.requires_grad


def test_without_a_reference_the_policy_stands_alone(vector):
    alone = reference_free(vector)
    assert torch.equal(alone.chosen_ratio, vector.policy_chosen)
    assert torch.equal(alone.rejected_ratio, vector.policy_rejected)


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        ("reverse_kl", 0.6459215975),
        ("forward_kl", 0.6615311982),
        ("js", 0.6688874382),
        ("alpha", 0.6550494332),
    ],
)
def test_parity_with_trl(vector, divergence, value):
    """The sigmoid loss at beta 0.5; alpha = 0.5 by the formula, since TRL stops on float64 there."""
    assert abs(float(sigmoid(diverged(vector, divergence, 0.5), 0.5).mean()) - value) <= 1e-9


def test_scores_by_their_definition():
    """f'(t): 1 - 1 / t, ln(2 t / (1 + t)), (t^(a - 1) - 1) / (a - 1); all are 0 at t = 1."""
    t = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    assert alpha_score(t.log(), 0.0).tolist() == pytest.approx([1 - 1 / x for x in t.tolist()], abs=1e-12)
    assert js_score(t.log()).tolist() == pytest.approx([math.log(2 * x / (1 + x)) for x in t.tolist()])
    assert alpha_score(t.log(), 0.3).tolist() == pytest.approx(
        [(x**-0.7 - 1) / -0.7 for x in t.tolist()], abs=1e-12
    )


def test_alpha_goes_over_into_the_reverse_kl():
    ratio = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.equal(alpha_score(ratio, 1.0), ratio)
    assert torch.allclose(alpha_score(ratio, 1 - 1e-5), ratio, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_alpha_score_stays_finite(dtype):
    ratio = torch.tensor([-4000.0, 0.0, 4000.0], dtype=dtype, requires_grad=True)
    found = alpha_score(ratio, 0.0)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(ratio.grad).all()


def test_desensitised_parity_with_trl(vector):
    """ld_alpha 0.3: tokens 3 and 4 of the first chosen reply, and token 3 of the second rejected one."""
    chosen = desensitised(CHOSEN, *COUNTS, 0.3)
    rejected = desensitised(REJECTED, *COUNTS[::-1], 0.3)
    assert chosen.tolist() == pytest.approx([-1.5 - 0.3 * 2.7, -1.4], abs=1e-12)
    assert rejected.tolist() == pytest.approx([-1.9, -2.7 - 0.3 * 1.4], abs=1e-12)
    found = sigmoid(vector._replace(policy_chosen=chosen, policy_rejected=rejected), 0.5).mean()
    assert abs(float(found) - 0.6787826672) <= 1e-9


def test_desensitised_at_its_ends():
    assert torch.allclose(desensitised(CHOSEN, *COUNTS, 1.0), CHOSEN.sum(1))
    assert torch.allclose(desensitised(CHOSEN, *COUNTS, 0.0), CHOSEN[:, :2].sum(1))


def test_on_policy_weight_by_the_slow_loop():
    """A token as likely as the mean draw (ln p = ln sum p^2) weighs 1; what is padded has no say."""
    source = torch.Generator().manual_seed(0)
    probs = torch.randn(2, 4, 5, generator=source, dtype=torch.float64).softmax(-1)
    picked = torch.randint(5, (2, 4), generator=source)
    logprobs = probs.gather(-1, picked[..., None]).squeeze(-1).log()
    collision = probs.square().sum(-1).log()
    logprobs[1, 2:] = math.nan
    found = on_policy_weight(logprobs.requires_grad_(), collision, torch.tensor([4, 2]))
    for row, n in enumerate((4, 2)):
        terms = [
            math.log(probs[row, t, picked[row, t]]) - math.log(sum(p * p for p in probs[row, t].tolist()))
            for t in range(n)
        ]
        assert float(found[row]) == pytest.approx(math.exp(sum(terms) / n), abs=1e-12)
    assert not found.requires_grad
