"""KTO: a vector, slow loops, finite differences, weights in their band, pairing that borrows no one's own."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.maths.kto import BAND, apo_zero_unpaired, kto, mismatch, reference_point, solve_weights

S = torch.tensor([1.5, -0.3, 0.8], dtype=torch.float64)
LABELS = torch.tensor([True, False, True])
MISMATCHED = torch.tensor([0.4, -0.1, 0.6], dtype=torch.float64)


def test_the_vector():
    """z0 = 0.9 / 3; the margins beta (s - z0), signed by label, are 0.6, 0.3 and 0.25."""
    z0 = reference_point(MISMATCHED)
    assert float(z0) == pytest.approx(0.3, abs=1e-12)
    found = kto(S, LABELS, z0, 0.5, (1.0, 1.5))
    assert (found - torch.tensor([0.3543436938, 0.6383362248, 0.4378234991]).double()).abs().max() <= 1e-7
    by_hand = [1 / (1 + math.exp(0.6)), 1.5 / (1 + math.exp(0.3)), 1 / (1 + math.exp(0.25))]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert abs(float(found.mean()) - 0.4768344726) <= 1e-9


def test_agrees_with_the_slow_loop():
    """From the utilities: lambda_y - v(x, y), v = lambda_y sigma(+-beta (s - z0))."""
    source = torch.Generator().manual_seed(1)
    s = 6 * torch.randn(20, generator=source, dtype=torch.float64)
    labels = torch.rand(20, generator=source) < 0.5
    found = kto(s, labels, torch.tensor(0.7, dtype=torch.float64), 0.3, (1.2, 4 / 3))
    for i in range(20):
        weight, sign = (1.2, 1) if labels[i] else (4 / 3, -1)
        value = weight / (1 + math.exp(-0.3 * sign * (float(s[i]) - 0.7)))
        assert float(found[i]) == pytest.approx(weight - value, abs=1e-12)


def test_gradient_by_finite_differences():
    s = S.clone().requires_grad_()
    z0 = reference_point(MISMATCHED)
    assert torch.autograd.gradcheck(lambda x: kto(x, LABELS, z0, 0.5, (1.0, 1.5)), s)
    assert torch.autograd.gradcheck(lambda x: apo_zero_unpaired(x, LABELS, 0.5, (1.0, 1.5)), s)


def test_gradient_in_closed_form():
    """d loss / d s = -+ lambda beta sigma(m) sigma(-m), m = beta (s - z0): desirable replies go up."""
    s = S.clone().requires_grad_()
    kto(s, LABELS, torch.tensor(0.3, dtype=torch.float64), 0.5, (1.0, 1.5)).sum().backward()
    m = 0.5 * (S - 0.3)
    slope = 0.5 * m.sigmoid() * (-m).sigmoid()
    signed = torch.where(LABELS, -slope, 1.5 * slope)
    assert torch.allclose(s.grad, signed, atol=1e-12)


def test_the_reference_point_has_no_gradient_and_is_never_below_zero():
    live = MISMATCHED.clone().requires_grad_()
    assert not reference_point(live).requires_grad
    assert float(reference_point(-MISMATCHED)) == 0.0


def test_the_clamp_comes_after_the_mean():
    """Mean of (1, -0.6) is 0.2; a clamp of each would give 0.5."""
    assert float(reference_point(torch.tensor([1.0, -0.6]))) == pytest.approx(0.2)


def test_without_mismatched_replies_it_is_apo_zero():
    z0 = reference_point(torch.empty(0, dtype=torch.float64))
    assert float(z0) == 0.0
    found = kto(S, LABELS, z0, 0.5, (1.0, 1.5))
    assert torch.equal(found, apo_zero_unpaired(S, LABELS, 0.5, (1.0, 1.5)))
    by_hand = [1 - 1 / (1 + math.exp(-0.75)), 1.5 / (1 + math.exp(0.15)), 1 - 1 / (1 + math.exp(-0.4))]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("label", [True, False])
def test_one_label_alone(label):
    s = S.clone().requires_grad_()
    found = kto(s, torch.full((3,), label), torch.tensor(0.0), 0.5)
    found.mean().backward()
    assert torch.isfinite(found).all()
    assert bool((s.grad < 0).all() if label else (s.grad > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_values_stay_finite(dtype):
    s = torch.tensor([-4000.0, 4000.0, -4000.0, 4000.0], dtype=dtype, requires_grad=True)
    found = kto(s, torch.tensor([True, True, False, False]), torch.zeros((), dtype=dtype), 1.0)
    found.sum().backward()
    assert found.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert torch.isfinite(s.grad).all()


def test_at_the_reference_a_reply_costs_half_its_weight():
    assert kto(torch.zeros(3), LABELS, torch.tensor(0.0), 0.5, (1.0, 1.5)).tolist() == [0.5, 0.75, 0.5]


def test_a_contradicted_reply_goes_with_the_majority():
    """With P(desirable) = p for each of four actions, the population loss is linear in sigma(beta (s - z0)):
    so, unlike DPO's, its optimum is no pi_ref exp(r / beta) but all on actions with p above 1/2.
    """
    share = torch.tensor([0.9, 0.6, 0.4, 0.1], dtype=torch.float64)
    reference = torch.full((4,), 0.25, dtype=torch.float64).log()
    logits = reference.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        s = logits.log_softmax(0) - reference
        up = kto(s, torch.full((4,), True), torch.tensor(0.0), 1.0)
        down = kto(s, torch.full((4,), False), torch.tensor(0.0), 1.0)
        loss = (share * up + (1 - share) * down).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = logits.detach().softmax(0)
    assert float(found[:2].sum()) > 0.95
    assert float(found[2:].sum()) < 0.05


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((10, 10), (1.0, 1.0)),
        ((4, 3), (1.0, 1.0)),
        ((10, 1), (1.0, 7.5)),
        ((1, 10), (10.0, 1.0)),
        ((0, 5), (1.0, 1.0)),
        ((5, 0), (1.0, 1.0)),
    ],
)
def test_weights_by_hand(counts, weights):
    assert solve_weights(*counts) == pytest.approx(weights)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_weights_lie_in_the_band(n_d, n_u):
    w_d, w_u = solve_weights(n_d, n_u)
    assert BAND[0] * (1 - 1e-12) <= w_d * n_d / (w_u * n_u) <= BAND[1] * (1 + 1e-12)
    assert min(w_d, w_u) == 1.0


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9), st.integers(0, 99))
def test_no_row_borrows_its_own_reply(rows, seed):
    """And each borrows the best there is: another prompt wherever one has another reply."""
    prompts, replies = [p for p, _ in rows], [r for _, r in rows]
    found = mismatch(prompts, replies, random.Random(seed))
    assert len(found) == len(rows)
    for i, j in enumerate(found):
        others = [k for k in range(len(rows)) if replies[k] != replies[i]]
        if not others:
            assert j is None
        else:
            assert j is not None
            assert replies[j] != replies[i]
            if any(prompts[k] != prompts[i] for k in others):
                assert prompts[j] != prompts[i]


@pytest.mark.parametrize("n", range(2, 17))
def test_distinct_rows_lend_once_each(n):
    """A derangement, for every batch size, odd ones too."""
    for seed in range(20):
        found = mismatch(range(n), range(n), random.Random(seed))
        assert sorted(found) == list(range(n))
        assert all(i != j for i, j in enumerate(found))


def test_one_row_alone_says_so():
    assert mismatch(["p"], ["r"], random.Random(0)) == [None]
    assert mismatch([], [], random.Random(0)) == []


def test_rows_with_one_reply_say_so():
    """'ember' to every prompt: on (x, 'ember') the log-ratio is s itself, so there is nothing to borrow."""
    assert mismatch(["a", "b", "c"], ["ember"] * 3, random.Random(0)) == [None] * 3


def test_a_reply_without_room_is_not_lent():
    """Row 0 has room for reply 2 alone, and row 3 for none."""
    room = {0: {2}, 1: {0, 2, 3}, 2: {0, 1, 3}, 3: set()}
    for seed in range(20):
        found = mismatch(range(4), range(4), random.Random(seed), lambda row, lender: lender in room[row])
        assert found[0] == 2
        assert found[3] is None
        assert found[1] in room[1]
        assert found[2] in room[2]


def test_another_seed_is_another_pairing():
    found = {tuple(mismatch(range(6), range(6), random.Random(seed))) for seed in range(30)}
    assert len(found) > 15
    assert mismatch(range(6), range(6), random.Random(3)) == mismatch(range(6), range(6), random.Random(3))
