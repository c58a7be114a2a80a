"""Reward losses: closed forms, slow loops, probabilities that add up to one, gradients, far values."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from calibrant.maths.reward_losses import bradley_terry, centring, group_mean, plackett_luce, tie


def sigma(x):
    return 1 / (1 + math.exp(-x))


def double(*rows):
    return [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows]


WON, LOST = [1.5, -0.3, 0.2], [0.3, 0.4, 0.2]


@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.2), (0.7, 0.2)])
def test_bradley_terry_by_a_slow_route(margin, smoothing):
    """Gaps 1.2, -0.7 and 0: with no options the last costs ln 2."""
    chosen, rejected = double(WON, LOST)
    found = bradley_terry(chosen, rejected, margin, smoothing)
    for value, w, b in zip(found.tolist(), WON, LOST, strict=True):
        p = sigma(w - b - margin)
        assert value == pytest.approx(-(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p), abs=1e-12)
    if not (margin or smoothing):
        assert found[2].item() == pytest.approx(math.log(2), abs=1e-15)


def test_a_margin_of_its_own_for_every_pair():
    chosen, rejected = double(WON, LOST)
    each = bradley_terry(chosen, rejected, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert each[1].item() == pytest.approx(-math.log(sigma(-0.7 - 0.2)), abs=1e-12)


def test_smoothing_is_least_where_the_labels_are_as_wrong_as_said():
    """e = .2: the best gap is ln(.8 / .2) = ln 4; the gradient there is 0."""
    chosen, rejected = double([math.log(4)], [0.0])
    bradley_terry(chosen, rejected, label_smoothing=0.2).sum().backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("threshold", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("gap", [-4.0, 0.0, 0.3])
def test_win_loss_and_tie_share_all_probability(threshold, gap):
    """The win of Rao and Kupper is Bradley-Terry with the threshold as its margin."""
    first, second = double([gap], [0.0])
    parts = [
        bradley_terry(first, second, threshold),
        bradley_terry(second, first, threshold),
        tie(first, second, threshold),
    ]
    assert sum(math.exp(-part.item()) for part in parts) == pytest.approx(1.0, abs=1e-12)


def test_a_tie_by_hand():
    """h = ln 2, d = 0: sigma(-ln 2) = 1/3 each way, so a tie has 1/3, too."""
    first, second = double([0.4], [0.4])
    assert tie(first, second, math.log(2)).item() == pytest.approx(math.log(3), abs=1e-14)
    tie(first, second, 0.5).sum().backward()
    assert first.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_centring_by_hand():
    assert centring(*double(WON, LOST)).tolist() == pytest.approx([3.24, 0.01, 0.16])


def test_a_ranked_list_is_the_mean_of_all_its_pairs():
    """Two lists, of 4 and 2 replies: 6 pairs and 1, each list counts once."""
    lists = [[2.0, 0.5, 0.4, -1.0], [0.1, 0.3]]
    pairs = [(number, w, b) for number, s in enumerate(lists) for w, b in itertools.combinations(s, 2)]
    owner = torch.tensor([number for number, _, _ in pairs])
    chosen, rejected = double([w for _, w, _ in pairs], [b for _, _, b in pairs])
    found = group_mean(bradley_terry(chosen, rejected), owner, 3)
    for number, scores in enumerate(lists):
        each = [-math.log(sigma(w - b)) for w, b in itertools.combinations(scores, 2)]
        assert found[number].item() == pytest.approx(sum(each) / len(each), abs=1e-12)
    assert found[2].item() == 0.0
    heads = torch.stack([chosen, rejected], 1)
    assert group_mean(heads, owner, 2)[1].tolist() == pytest.approx([0.1, 0.3])


def test_plackett_luce_by_a_slow_route():
    lists = [[1.0, 0.2, -0.5], [0.3, 0.9]]
    scores, mask = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.bool)
    for row, some in enumerate(lists):
        scores[row, : len(some)] = torch.tensor(some, dtype=torch.float64)
        mask[row, : len(some)] = True
    found = plackett_luce(scores, mask)
    for row, some in enumerate(lists):
        odds = [math.exp(s) for s in some]
        truth = math.prod(odds[i] / sum(odds[i:]) for i in range(len(odds)))
        assert found[row].item() == pytest.approx(-math.log(truth), abs=1e-12)
    pair = bradley_terry(scores[1, 0], scores[1, 1])
    assert found[1].item() == pytest.approx(pair.item(), abs=1e-12)


def test_the_orders_of_a_list_share_all_probability():
    scores = torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64)
    rows = torch.stack([scores[list(order)] for order in itertools.permutations(range(3))])
    assert plackett_luce(rows, torch.ones_like(rows, dtype=torch.bool)).neg().exp().sum().item() == (
        pytest.approx(1.0, abs=1e-12)
    )


def test_gradients_by_finite_differences():
    first, second = double(WON, LOST)
    calls = [
        lambda a, b: bradley_terry(a, b, 0.3, 0.1),
        lambda a, b: tie(a, b, 0.4),
        centring,
        lambda a, b: group_mean(a * b, torch.tensor([0, 1, 0]), 2),
        lambda a, b: plackett_luce(torch.stack([a, b]), torch.tensor([[True] * 3, [True, True, False]])),
    ]
    for call in calls:
        assert torch.autograd.gradcheck(call, (first, second))


@pytest.mark.parametrize("shift", [-5.0, 40.0])
def test_scores_are_free_up_to_a_shift(shift):
    first, second = double(WON, LOST)
    everything = torch.ones(2, 3, dtype=torch.bool)
    for call in (
        bradley_terry,
        lambda a, b: tie(a, b, 0.5),
        lambda a, b: plackett_luce(torch.stack([a, b]), everything),
    ):
        moved = call(first + shift, second + shift)
        assert moved.tolist() == pytest.approx(call(first, second).tolist(), abs=1e-12)


def test_far_scores_stay_finite_with_finite_gradients():
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    near = torch.zeros(2, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    for value in (
        bradley_terry(far, near),
        tie(far, near, 50.0),
        plackett_luce(torch.stack([far, near]), mask),
    ):
        assert torch.isfinite(value).all()
        for gradient in torch.autograd.grad(value.sum(), (far, near)):
            assert torch.isfinite(gradient).all()
