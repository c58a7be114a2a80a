"""Losses under weak labels: by hand, by a slow route, and where the published code differs."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from calibrant.maths.weak_labels import confidence_loss, hardened, quotas, ramp, soft_cross_entropy


def test_by_hand():
    """Two examples, two classes: p = (.75, .25) and (.5, .5); one of two is to be of class 1.

    The second is (its log-odds are 0, those of the first -ln 3). Weak labels (.9, .1) and (.2, .8), a = .5:
    .5 (-.9 ln .75 - .1 ln .25) + .5 (-ln .75) = .342613 and .5 ln 2 + .5 ln 2 = .693147.
    """
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    weak = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    hard = hardened(logits, torch.tensor([0.5, 0.5]))
    assert hard.tolist() == [0, 1]
    wanted = [0.5 * (-0.9 * math.log(0.75) - 0.1 * math.log(0.25)) - 0.5 * math.log(0.75), math.log(2.0)]
    assert wanted == pytest.approx([0.342613, 0.693147], abs=1e-6)
    assert confidence_loss(logits, weak, 0.5, hard).tolist() == pytest.approx(wanted, abs=1e-12)


def slow(logits, weak, alpha, prior):
    """Every assignment that keeps the counts is tried, in plain Python floats."""
    logp = []
    for row in logits:
        total = math.log(sum(math.exp(x) for x in row))
        logp.append([x - total for x in row])
    counts = quotas(torch.tensor(prior), len(logits))
    best, chosen = -math.inf, ()
    for labels in itertools.product(range(len(prior)), repeat=len(logits)):
        if [labels.count(k) for k in range(len(prior))] == counts:
            value = sum(row[k] for row, k in zip(logp, labels, strict=True))
            if value > best:
                best, chosen = value, labels
    return list(chosen), [
        -(1 - alpha) * sum(w * p for w, p in zip(target, row, strict=True)) - alpha * row[k]
        for row, target, k in zip(logp, weak, chosen, strict=True)
    ]


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_slow_route(classes, seed):
    rng = random.Random(f"{classes}/{seed}")
    logits = [[rng.gauss(0, 2) for _ in range(classes)] for _ in range(6)]
    weak = torch.tensor([[rng.random() + 0.01 for _ in range(classes)] for _ in logits], dtype=torch.float64)
    weak = weak / weak.sum(1, keepdim=True)
    prior = [rng.random() + 0.1 for _ in range(classes)]
    alpha = rng.random()
    labels, losses = slow(logits, weak.tolist(), alpha, prior)
    given = torch.tensor(logits, dtype=torch.float64)
    hard = hardened(given, torch.tensor(prior))
    assert hard.tolist() == labels
    assert confidence_loss(given, weak, alpha, hard).tolist() == pytest.approx(losses, abs=1e-10)


def test_with_two_classes_it_is_the_quantile():
    """The k largest p(class 1) are of class 1, wherever they stand beside one half."""
    logits = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 3.0])
    hard = hardened(logits, torch.tensor([0.65, 0.35]))
    odds = logits[:, 1] - logits[:, 0]
    assert int(hard.sum()) == 7
    assert set(odds.topk(7).indices.tolist()) == set(hard.nonzero()[:, 0].tolist())
    assert float((odds > 0).float().mean()) > 0.9  # a threshold of one half would call nearly all of them 1


def test_the_gradient_leaves_the_hard_target_alone():
    """d/dlogits is p - (1 - a) weak - a hard: nothing flows through the choice."""
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    weak = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    hard = hardened(logits, torch.tensor([0.4, 0.4, 0.2]))
    assert not hard.requires_grad
    confidence_loss(logits, weak, 0.6, hard).sum().backward()
    one_hot = torch.nn.functional.one_hot(hard, 3).double()
    wanted = logits.detach().softmax(1) - 0.4 * weak - 0.6 * one_hot
    assert torch.allclose(logits.grad, wanted, atol=1e-12)


def test_without_confidence_it_is_cross_entropy():
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 2, 1, 1])
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(soft_cross_entropy(logits, one_hot), plain, atol=1e-12)
    assert torch.allclose(confidence_loss(logits, one_hot, 0.0, labels.flip(0)), plain, atol=1e-12)


def test_quotas_add_up_and_keep_the_prior():
    assert quotas(torch.tensor([0.5, 0.5]), 8) == [4, 4]
    assert quotas(torch.tensor([0.26, 0.37, 0.37]), 10) == [2, 4, 4]
    assert quotas(torch.tensor([0.01, 0.99]), 10) == [0, 10]
    rng = random.Random(0)
    for _ in range(50):
        prior = torch.tensor([rng.random() for _ in range(rng.randint(2, 6))])
        given = quotas(prior, 13)
        assert sum(given) == 13
        assert all(
            abs(n - 13 * p / float(prior.sum())) < 1 for n, p in zip(given, prior.tolist(), strict=True)
        )


def test_the_ramp_is_that_of_the_paper_and_not_of_its_code():
    """0 at the first step, a_max at 20 % and from there on; the published code jumps at 10 %."""
    got = [ramp(step, 100, 0.5) for step in (0, 5, 10, 19, 20, 60, 99)]
    assert got == pytest.approx([0.0, 0.125, 0.25, 0.475, 0.5, 0.5, 0.5])
    published = [0.5 * (1.0 if step / 100 > 0.1 else step / 100) for step in (0, 5, 10, 19)]
    assert published == pytest.approx([0.0, 0.025, 0.05, 0.5])
    assert [ramp(step, 3, 0.75) for step in range(3)] == [0.0, 0.75, 0.75]
