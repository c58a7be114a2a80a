"""The registry of pair losses: complete, honest about what each takes, strict about what it ignores."""

from __future__ import annotations

import inspect

import pytest
import torch

from calibrant.core import ConfigError
from calibrant.maths import losses
from calibrant.maths.pair_losses import (
    COMPARING,
    LOSSES,
    check_options,
    pair_loss,
    soft_pair_loss,
)
from calibrant.maths.pair_sums import PairSums, diverged, reference_free

# Every loss_type of TRL 1.16's DPOConfig.
TRL = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


@pytest.fixture
def sums():
    source = torch.Generator().manual_seed(3)
    values = [-9 * torch.rand(4, generator=source, dtype=torch.float64) for _ in range(4)]
    return PairSums(*values, torch.tensor([3, 1, 4, 2]), torch.tensor([2, 2, 5, 1]))


def test_every_pair_loss_is_registered_under_its_own_name():
    takes_sums = {
        name
        for name, function in inspect.getmembers(losses, inspect.isfunction)
        if not name.startswith("_") and next(iter(inspect.signature(function).parameters)) == "sums"
    }
    assert takes_sums == set(LOSSES)
    assert all(kind.function is getattr(losses, name) for name, kind in LOSSES.items())


def test_every_loss_of_trl_is_here():
    assert set(TRL) <= set(LOSSES)
    assert {kind.trl for name, kind in LOSSES.items() if name in TRL} == set(TRL)


@pytest.mark.parametrize("name", LOSSES)
def test_options_are_the_parameters_of_the_function(name):
    """Beside the sums; the three of ``COMPARING`` are read before the function."""
    own = set(inspect.signature(LOSSES[name].function).parameters) - {"sums"}
    assert own == set(LOSSES[name].options) - set(COMPARING)
    assert LOSSES[name].source


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_are_fine_and_run(name, sums):
    given = {k: v for k, v in LOSSES[name].options.items() if k != "alpha"}
    assert check_options(name, given) == []
    assert torch.equal(pair_loss(name, sums), pair_loss(name, sums, given))
    assert pair_loss(name, sums).shape == (4,)


@pytest.mark.parametrize("name", LOSSES)
def test_who_needs_no_reference_does_not_look_at_it(name, sums):
    other = sums._replace(ref_chosen=sums.ref_chosen - 1, ref_rejected=sums.ref_rejected - 2)
    same = torch.equal(pair_loss(name, sums), pair_loss(name, other))
    assert same is not LOSSES[name].needs_reference


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if "divergence" in kind.options])
def test_scores_are_made_before_the_loss(name, sums):
    function = LOSSES[name].function
    own = {k: v for k, v in LOSSES[name].options.items() if k not in COMPARING}
    assert torch.equal(pair_loss(name, sums, {"reference_free": True}), function(reference_free(sums), **own))
    assert torch.equal(
        pair_loss(name, sums, {"divergence": "alpha", "alpha": 0.2}),
        function(diverged(sums, "alpha", 0.2), **own),
    )
    both = pair_loss(name, sums, {"divergence": "js", "reference_free": True})
    assert torch.equal(both, function(diverged(reference_free(sums), "js"), **own))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("sigmoid", {"label_smoothing": 0.1}, "loss 'sigmoid' ignores 'label_smoothing'; it belongs to con"),
        ("simpo", {"reference_free": True}, "loss 'simpo' ignores 'reference_free'; it belongs to sigmoid"),
        ("apo_zero", {"divergence": "js"}, "loss 'apo_zero' ignores 'divergence'"),
        ("sft", {"beta": 0.1}, "loss 'sft' ignores 'beta'"),
        ("sigmoid", {"alpha": 0.5}, "ignores 'alpha' unless divergence = 'alpha'"),
        ("sigmoid", {"alpha": 0.5, "divergence": "js"}, "ignores 'alpha' unless"),
        ("simpo", {"gama": 1.0}, "ignores 'gama' (did you mean 'gamma'?)"),
        ("sigmoidd", {}, "no loss is called 'sigmoidd' (did you mean 'sigmoid'?)"),
        ("robust", {"label_smoothing": 0.5}, "at least 0 and below 0.5, got 0.5"),
        ("exo_pair", {"label_smoothing": 0.0}, "above 0 (the loss is infinite there)"),
        ("discopop", {"tau": 2.0}, "above 0 and at most 1, got 2.0"),
        ("ipo", {"length_average": 1}, "true or false, got 1"),
        ("hinge", {"divergence": "tv"}, "one of reverse_kl, forward_kl, js, alpha, got 'tv'"),
        ("hinge", {"beta": 0}, "above 0, got 0"),
        ("hinge", {"beta": float("nan")}, "a finite number, got nan"),
        ("hinge", {"beta": True}, "a finite number, got True"),
        ("orpo", {"lam": -1.0}, "at least 0, got -1.0"),
    ],
)
def test_what_is_ignored_or_wrong_is_said(name, given, said, sums):
    problems = check_options(name, given)
    assert len(problems) == 1
    assert said in problems[0]
    with pytest.raises(ConfigError) as caught:
        pair_loss(name, sums, given)
    assert caught.value.problems == tuple(problems)


def test_all_problems_at_once():
    assert len(check_options("hinge", {"tau": 1.0, "beta": -1.0, "gamma": 0.0})) == 3


SUMS = [name for name, kind in LOSSES.items() if kind.accumulation_invariant]


@pytest.mark.parametrize("name", SUMS)
def test_a_soft_label_is_the_expected_loss(name, sums):
    p = torch.tensor([1.0, 0.5, 0.7, 0.9], dtype=torch.float64)
    found = soft_pair_loss(name, sums, p)
    expected = p * pair_loss(name, sums) + (1 - p) * pair_loss(name, sums.swapped)
    assert torch.equal(found, expected)
    assert torch.equal(found[:1], pair_loss(name, sums)[:1])


@pytest.mark.parametrize("name", LOSSES)
def test_certain_labels_change_nothing(name, sums):
    one = torch.ones(4, dtype=torch.float64)
    assert torch.equal(soft_pair_loss(name, sums, one), pair_loss(name, sums))


def test_under_sigmoid_it_is_the_cross_entropy_with_the_label(sums):
    p = torch.tensor([0.5, 0.6, 0.8, 0.95], dtype=torch.float64)
    z = 0.1 * sums.difference
    by_hand = -(p * torch.log(torch.sigmoid(z)) + (1 - p) * torch.log(torch.sigmoid(-z)))
    assert torch.allclose(soft_pair_loss("sigmoid", sums, p), by_hand, atol=1e-14)
    same = soft_pair_loss("sigmoid", sums, torch.full((4,), 0.9, dtype=torch.float64))
    conservative = pair_loss("conservative", sums, {"label_smoothing": 0.1})
    assert torch.allclose(same, conservative, atol=1e-14)


def test_an_even_label_pulls_no_side(sums):
    half = torch.full((4,), 0.5, dtype=torch.float64)
    assert torch.allclose(soft_pair_loss("ipo", sums, half), soft_pair_loss("ipo", sums.swapped, half))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SUMS])
def test_losses_of_a_whole_batch_take_no_soft_labels(name, sums):
    with pytest.raises(ConfigError, match="takes no soft labels"):
        soft_pair_loss(name, sums, torch.tensor([1.0, 1.0, 1.0, 0.9]))
