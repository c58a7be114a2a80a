"""GCG's arithmetic against nanoGCG's own lines, closed forms and slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch.testing import assert_close

from calibrant.maths.gcg import (
    agreement,
    distinct,
    first_change,
    kept,
    mellowmax,
    sample,
    target_losses,
    token_gradient,
)


def nanogcg(ids, grad, width, top_k, replace, forbidden):
    """``sample_ids_from_grad`` of nanoGCG 0.3.0, line by line; it draws from the global generator."""
    original = ids.repeat(width, 1)
    grad = grad.clone()
    grad[:, forbidden] = float("inf")
    top = (-grad).topk(top_k, dim=1).indices
    places = torch.argsort(torch.rand((width, len(ids))))[..., :replace]
    ranks = torch.randint(0, top_k, (width, replace, 1))
    values = torch.gather(top[places], 2, ranks).squeeze(2)
    return original.scatter_(1, places, values)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 90, (7,), generator=generator)
    return ids, torch.randn(7, 90, generator=generator), torch.tensor([3, 5, 8, 89])


@pytest.mark.parametrize(("seed", "replace", "top_k"), [(0, 1, 20), (7, 3, 86), (2**40, 7, 1)])
def test_the_draws_are_nanogcgs(drawn, seed, replace, top_k):
    ids, grad, forbidden = drawn
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = nanogcg(ids, grad, 64, top_k, replace, forbidden)
    before, generator = grad.clone(), torch.Generator().manual_seed(seed)
    ours = sample(ids, grad, forbidden, width=64, top_k=top_k, replace=replace, generator=generator)
    assert torch.equal(ours, theirs)
    assert torch.equal(grad, before)


def test_draws_come_from_the_best_allowed_ids_and_change_no_more_than_asked(drawn):
    ids, grad, forbidden = drawn
    generator = torch.Generator().manual_seed(0)
    rows = sample(ids, grad, forbidden, width=500, top_k=4, replace=2, generator=generator)
    assert ((rows != ids).sum(1) <= 2).all()
    for place in range(len(ids)):
        order = [i for i in grad[place].argsort().tolist() if i not in forbidden.tolist()]
        assert set(rows[:, place].tolist()) - {int(ids[place])} <= set(order[:4])


def test_a_tiny_vocabulary_offers_what_it_has():
    """Of five ids two are forbidden; nanoGCG would draw them where top_k is above three."""
    ids, grad = torch.tensor([0, 1]), torch.zeros(2, 5)
    generator = torch.Generator().manual_seed(0)
    rows = sample(ids, grad, torch.tensor([3, 4, 4]), width=300, top_k=256, replace=9, generator=generator)
    assert set(rows.flatten().tolist()) == {0, 1, 2}


def test_the_token_gradient_is_the_one_hots():
    """d/dx f(x W) = f' W^T for one-hot x."""
    table = torch.randn(11, 4, dtype=torch.float64)
    choice = torch.nn.functional.one_hot(torch.tensor([2, 9, 2]), 11).double().requires_grad_()
    spelt = (choice @ table).detach().requires_grad_()
    (slow,) = torch.autograd.grad((choice @ table).pow(3).sum(), choice)
    (flow,) = torch.autograd.grad(spelt.pow(3).sum(), spelt)
    assert_close(token_gradient(flow, table), slow)


def test_losses_are_the_mean_cross_entropy_and_say_what_is_likeliest():
    logits = torch.randn(5, 3, 4000)
    target = torch.tensor([7, 3999, 0])
    logits[2, torch.arange(3), target] = 50.0
    logits[4, torch.arange(2), target[:2]] = 50.0
    losses, reached = target_losses(logits, target, None)
    slow = torch.stack([torch.nn.functional.cross_entropy(row, target) for row in logits.double()])
    assert_close(losses.double(), slow, atol=1e-5, rtol=0)
    assert reached.tolist() == [False, False, True, False, False]


def test_losses_of_half_precision_are_float32():
    logits = torch.randn(2, 3, 50).to(torch.bfloat16)
    losses, _ = target_losses(logits, torch.tensor([1, 2, 3]), None)
    slow = target_losses(logits.float(), torch.tensor([1, 2, 3]), None)[0]
    assert losses.dtype == torch.float32 and torch.equal(losses, slow)


def test_mellowmax_lies_between_mean_and_maximum():
    values = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    assert_close(mellowmax(values, 1e-6), torch.tensor([3.0], dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(mellowmax(values, 500.0), torch.tensor([6.0], dtype=torch.float64), atol=1e-2, rtol=0)
    assert_close(mellowmax(values, 1.0)[0].item(), math.log((math.e + math.e**2 + math.e**6) / 3))


def test_mellowmax_losses_read_logits():
    """As in nanoGCG: of minus the target's logits, not of its log-probs."""
    logits = torch.tensor([[[1.0, 4.0], [2.0, 0.0]]])
    losses, _ = target_losses(logits, torch.tensor([1, 0]), 1.0)
    assert_close(losses.item(), math.log((math.exp(-4) + math.exp(-2)) / 2), rtol=1e-5, atol=0)


def test_first_change_and_distinct_rows():
    ids = torch.tensor([1, 2, 3])
    rows = torch.tensor([[1, 2, 3], [9, 2, 3], [1, 2, 4], [1, 7, 8], [9, 2, 3]])
    assert first_change(rows, ids).tolist() == [3, 0, 2, 1, 0]
    few, back = distinct(rows)
    assert len(few) == 4 and torch.equal(few[back], rows)


def test_agreement_is_spearmans_moved_to_0_to_1():
    one, other = torch.tensor([1.0, 3.0, 3.0, 8.0, 2.0]), torch.tensor([2.0, 5.0, 4.0, 9.0, 9.0])
    slow = (1 + spearmanr(one.numpy(), other.numpy()).statistic) / 2
    assert agreement(one, other) == pytest.approx(slow)
    assert agreement(one, one) == pytest.approx(1)
    assert agreement(one, -one) == pytest.approx(0)


@pytest.mark.parametrize("one", [torch.tensor([1.0]), torch.tensor([2.0, 2.0, 2.0])])
def test_without_ranks_to_compare_a_draft_is_neither_trusted_nor_refused(one):
    assert agreement(one, torch.arange(float(len(one)))) == 0.5


def test_how_many_the_target_reads():
    """(1 - alpha) B / R of B = 512 with R = 8: 64 at alpha 0, 32 at .5, never none, never more than B."""
    assert [kept(alpha, 512, 8) for alpha in (0.0, 0.5, 1.0)] == [64, 32, 1]
    assert kept(0.0, 3, 1) == 3
