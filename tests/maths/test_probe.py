"""Regressions of many layers at once: against scikit-learn and a slow reference, and what is refused."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from calibrant.core import InputError, NumericalError
from calibrant.maths.probe import logistic_planes
from calibrant.maths.probe_forms import Dual, Primal


def drawn(layers, rows, width, seed=0, noise=1.0):
    way = torch.Generator().manual_seed(seed)
    x = torch.randn(layers, rows, width, generator=way, dtype=torch.float64)
    return x, (x[..., 0] + noise * torch.randn(layers, rows, generator=way) > 0.3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("rows", "width"), [(40, 90), (120, 12), (50, 50), (20, 1)])
def test_scores_are_those_of_scikit_learn(rows, width, l2, weighted):
    x, labels = drawn(3, rows, width)
    y = labels[0]
    share = float(y.double().mean())
    weights = torch.where(y, 0.5 / share, 0.5 / (1 - share)) if weighted else None
    scores = logistic_planes(x, y, l2, weights).scores(x)
    for layer in range(3):
        peer = LogisticRegression(
            C=1 / l2, tol=1e-12, max_iter=10_000, solver="newton-cholesky",
            class_weight="balanced" if weighted else None,
        ).fit(x[layer].numpy(), y.numpy())  # fmt: skip
        assert np.abs(peer.decision_function(x[layer].numpy()) - scores[layer].numpy()).max() < 1e-6


@pytest.mark.parametrize(("rows", "width"), [(40, 90), (120, 12)])
def test_features_of_very_different_sizes(rows, width):
    """Where a factor in float32 has no digits left, one in float64 is taken."""
    x, labels = drawn(2, rows, width)
    x *= torch.logspace(-4, 4, width, dtype=torch.float64)
    scores = logistic_planes(x, labels, 1e-3).scores(x)
    for layer in range(2):
        model = LogisticRegression(C=1e3, tol=1e-13, max_iter=10_000, solver="newton-cholesky")
        peer = model.fit(x[layer].numpy(), labels[layer].numpy()).decision_function(x[layer].numpy())
        assert np.abs(peer - scores[layer].numpy()).max() < 1e-5 * (1 + np.abs(peer).max())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rows", "width", "scale", "l2"), [(60, 200, 100, 1e-4), (60, 200, 1, 1e-8)])
def test_a_step_that_was_cut_is_not_taken_for_the_end(seed, rows, width, scale, l2):
    """Nearly no penalty: either the gradient is 0 to rounding, or it says that it did not settle."""
    way = np.random.default_rng(seed)
    x = torch.tensor(way.standard_normal((1, rows, width))) * scale
    y = torch.tensor((x[0, :, 0].numpy() / scale + way.standard_normal(rows)) > 0)
    try:
        planes = logistic_planes(x, y, l2)
    except NumericalError:
        return
    pull = y.double() - planes.scores(x)[0].sigmoid()
    slope = x[0].mT @ pull - l2 * planes.weight[0]
    assert float(slope.abs().max()) <= 1e-3 * float((x[0].abs().mT @ pull.abs()).max())


@pytest.mark.parametrize("name", ["_REFINED", "_SEARCHED"])
@pytest.mark.parametrize(("rows", "width"), [(40, 90), (120, 12)])
def test_plain_steps_lead_to_the_same(monkeypatch, rows, width, name):
    """Without refinement, all in float64; without the search, Newton's steps as they are."""
    x, labels = drawn(3, rows, width)
    quick = logistic_planes(x, labels, 0.1)
    monkeypatch.setattr("calibrant.maths.probe." + name, 0)
    plain = logistic_planes(x, labels, 0.1)
    torch.testing.assert_close(quick.weight, plain.weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(quick.bias, plain.bias, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("rows", "width"), [(14, 30), (40, 5)])
def test_it_is_the_least_of_the_loss(rows, width):
    """A slow reference: a quasi-Newton search with no knowledge of the form."""
    x, labels = drawn(1, rows, width)
    s = np.where(labels[0].numpy(), 1.0, -1.0)

    def loss(w):
        odds = x[0].numpy() @ w[:-1] + w[-1]
        pull = -s / (1 + np.exp(s * odds))
        slope = np.append(pull @ x[0].numpy() + 2.0 * w[:-1], pull.sum())
        return np.logaddexp(0, -s * odds).sum() + 1.0 * (w[:-1] ** 2).sum(), slope

    found = minimize(loss, np.zeros(width + 1), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    planes = logistic_planes(x, labels[0], 2.0)
    assert np.abs(found - np.append(planes.weight[0], planes.bias[0])).max() < 1e-6


def test_layers_may_have_labels_of_their_own():
    x, labels = drawn(4, 30, 50)
    together = logistic_planes(x, labels, 1.0)
    for layer in range(4):
        alone = logistic_planes(x[layer : layer + 1], labels[layer], 1.0)
        torch.testing.assert_close(together.weight[layer], alone.weight[0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(together.bias[layer], alone.bias[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e5])
def test_one_huge_score_hides_no_other(scale):
    """The end is reached where every score has settled, each beside its own size."""
    for seed in range(8, 14):
        way = np.random.default_rng(seed)
        x = way.normal(size=(100, 3))
        x[0] *= scale
        y = way.random(100) < 0.1
        y[:2] = [True, False]
        scores = logistic_planes(torch.tensor(x)[None], torch.tensor(y), 1.0).scores(torch.tensor(x)[None])[0]
        peer = LogisticRegression(C=1, tol=1e-13, max_iter=10_000, solver="newton-cholesky").fit(x, y)
        others = torch.from_numpy(peer.decision_function(x))[1:]
        assert (scores[1:] - others).abs().max() < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_a_layer_does_not_hang_on_the_one_before(seed):
    """It starts from the margin of that one, however far off: separable and sure, noise, tiny, copied."""
    way = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 40, 90, generator=way, dtype=torch.float64)
    labels = torch.rand(6, 40, generator=way) < 0.4
    sure = 30.0 * (2 * labels[0].double() - 1)
    x[0, :, 0] = x[2, :, 0] = sure
    x[1] *= 1e-3
    x[3, :, :], labels[4] = x[4], ~labels[3]
    together = logistic_planes(x, labels, 0.1).scores(x)
    for at in range(6):
        alone = logistic_planes(x[at : at + 1], labels[at : at + 1], 0.1).scores(x[at : at + 1])
        assert torch.allclose(together[at], alone[0], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("width", [5, 60])
def test_one_layer_may_have_many_labellings(width):
    x, labels = drawn(6, 30, width)
    together = logistic_planes(x[:1], labels, 1.0)
    for at in range(6):
        alone = logistic_planes(x[:1], labels[at], 1.0)
        torch.testing.assert_close(together.weight[at], alone.weight[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("rows", "width"), [(30, 60), (60, 6)])
def test_separable_labels_have_a_finite_answer(rows, width, scale):
    x, _ = drawn(2, rows, width)
    y = x[0, :, 0] > 0
    scores = logistic_planes(scale * x, y, 1.0).scores(scale * x)
    assert bool(scores.isfinite().all())
    assert bool(((scores[0] > 0) == y).all()) or scale < 1e4


def test_rare_labels_and_copies_of_rows_and_constant_features():
    x, _ = drawn(2, 80, 10)
    x[:, 40:] = x[:, :40]
    x[..., 3] = 7.0
    y = torch.zeros(80, dtype=torch.bool)
    y[[3, 43]] = True
    for width in (10, 2):
        planes = logistic_planes(x[..., :width], y, 0.1)
        assert bool(planes.weight.isfinite().all()) and bool(planes.bias.isfinite().all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x[0], y, 1.0), "features of shape"),
        (lambda x, y: (x, y[:-1], 1.0), "labels of shape"),
        (lambda x, y: (x, y.double(), 1.0), "truth value"),
        (lambda x, y: (x, y, 0.0), "l2 = 0.0"),
        (lambda x, y: (x, torch.ones_like(y), 1.0), "all labels are the same"),
        (lambda x, y: (x, y, 1.0, torch.zeros(len(y))), "weight is not above 0"),
    ],
)
def test_what_has_no_answer_is_refused(change, words):
    x, labels = drawn(2, 12, 5)
    with pytest.raises(InputError, match=words):
        logistic_planes(*change(x, labels[0]))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("width", [5, 20])
def test_a_feature_that_is_no_number_is_an_error(width, wrong):
    x, labels = drawn(2, 12, width)
    x[1, 3, 2] = wrong
    with pytest.raises(NumericalError, match="NaN or infinite"):
        logistic_planes(x, labels[0], 1.0)


@pytest.mark.parametrize("width", [5, 60])
def test_no_two_layers_are_held_at_once(monkeypatch, width):
    """What steps in float32 read of a layer is gone before that of the next one is made."""
    made = []
    for kind in (Primal, Dual):

        def coarse(x, before=kind.coarse):
            assert not any(one() is not None for one in made)
            found = before(x)
            made.append(weakref.ref(found))
            return found

        monkeypatch.setattr(kind, "coarse", staticmethod(coarse))
    x, labels = drawn(4, 30, width)
    logistic_planes(x, labels[0], 1.0)
    assert len(made) == 4
    made.clear()
    logistic_planes(x[:1], labels, 1.0)  # one layer, four labellings
    assert len(made) == 1


def test_float32_features_are_taken_as_float64():
    x, labels = drawn(1, 20, 40)
    assert logistic_planes(x.float(), labels[0], 1.0).weight.dtype == torch.float64
