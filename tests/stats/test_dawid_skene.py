"""Dawid-Skene: the paper's own table, planted confusion, a climb that never falls, and a null."""

from __future__ import annotations

import numpy as np
import pytest

from calibrant.core import InputError
from calibrant.stats.agreement import Ratings, ratings
from calibrant.stats.dawid_skene import NO_PRIOR, Prior, dawid_skene

# Dawid & Skene 1979, table 1: 45 patients; anaesthetist 1 three times, then anaesthetists 2 to 5.
PAPER = (
    "1111111 3334334 1122122 2223121 2223222 2223322 1222111 3333433 2222223 "
    "2322223 4444444 2223343 1111111 2223212 1211111 1112111 1111111 1111111 "
    "2222221 2221322 2222222 2222221 2223222 2212222 1111111 1111111 2322222 "
    "1111111 1111111 1121121 1111111 3333233 1111111 2222222 2223232 4334343 "
    "2212232 2323233 3333432 1111111 1111111 1212111 2322222 1211111 2222222"
)
ANAESTHETISTS = "1112345"


def paper() -> Ratings:
    told = [
        (f"patient {at:02}", who, said)
        for at, row in enumerate(PAPER.split(), start=1)
        for who, said in zip(ANAESTHETISTS, row, strict=True)
    ]
    return ratings(told, "1234")


def told(rng, truth, confusion, share=1.0):
    """Raters who answer by ``confusion`` (R, K, K), each asked about ``share`` of the items."""
    n, (r, k, _) = len(truth), confusion.shape
    chances = confusion[:, truth].cumsum(axis=2)  # (R, N, K)
    label = (rng.random((r, n, 1)) > chances).sum(axis=2)
    asked = rng.random((r, n)) < share
    asked[0] |= ~asked.any(axis=0)  # an item that nobody rated is no item
    rater, item = np.nonzero(asked)
    names = tuple(map(str, range(n))), tuple(map(str, range(r))), tuple(map(str, range(k)))
    return Ratings(item, rater, label[asked], *names)


def test_the_papers_own_example():
    """Tables 2 and 3: shares .40 .42 .11 .07, and how the first anaesthetist errs."""
    found = dawid_skene(paper(), prior=NO_PRIOR)
    assert len(PAPER.split()) == 45
    assert found.prevalence == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=0.005)
    assert found.confusion[0] == pytest.approx(
        np.array([[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]),
        abs=0.006,
    )


@pytest.mark.parametrize("prior", [NO_PRIOR, Prior(), Prior(5.0, 0.5, 3.0)])
def test_the_climb_never_falls(prior):
    rng = np.random.default_rng(1)
    confusion = rng.dirichlet(np.ones(3), size=(4, 3))
    for rated in (paper(), told(rng, rng.integers(3, size=60), confusion, share=0.6)):
        found = dawid_skene(rated, prior=prior, tolerance=0.0, steps=200)
        assert (np.diff(found.objective) >= -1e-9).all()
        assert found.objective[-1] > found.objective[0]
        assert found.posterior.sum(axis=1) == pytest.approx(1)
        assert found.confusion.sum(axis=2) == pytest.approx(1)


def test_planted_confusion_is_recovered():
    """A careful rater, a noisy one, one who leans to the first label, one who turns it round, a spammer."""
    rng = np.random.default_rng(2)
    planted = np.array(
        [
            [[0.95, 0.05], [0.05, 0.95]],
            [[0.75, 0.25], [0.25, 0.75]],
            [[0.95, 0.05], [0.40, 0.60]],
            [[0.20, 0.80], [0.80, 0.20]],
            [[0.50, 0.50], [0.50, 0.50]],
        ]
    )
    truth = (rng.random(4000) < 0.3).astype(int)
    found = dawid_skene(told(rng, truth, planted, share=0.8))
    assert found.confusion == pytest.approx(planted, abs=0.04)
    assert found.prevalence == pytest.approx([0.7, 0.3], abs=0.03)
    assert found.accuracy == pytest.approx([0.95, 0.75, 0.845, 0.2, 0.5], abs=0.04)
    assert (found.posterior.argmax(axis=1) == truth).mean() > 0.93


def test_ties_are_a_label_of_their_own():
    rng = np.random.default_rng(3)
    planted = np.tile([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], (4, 1, 1))
    truth = rng.integers(3, size=3000)
    found = dawid_skene(told(rng, truth, planted))
    assert found.confusion == pytest.approx(planted, abs=0.05)


def test_raters_who_know_nothing_are_not_believed():
    """The null: coins. Nobody comes out much better than a coin, and the truth stays open."""
    rng = np.random.default_rng(4)
    coins = np.full((6, 2, 2), 0.5)
    found = dawid_skene(told(rng, rng.integers(2, size=2000), coins), prior=Prior(0.0, 200.0, 1.0))
    assert found.accuracy == pytest.approx(0.5, abs=0.1)


def test_a_rater_with_one_rating_stays_near_the_prior():
    """Right on one item: (2 + .5 + 1) / (3 + 1) where it was, (2 + .5) / 3 where nothing was seen."""
    rated = ratings([("x", "a", "0"), ("x", "b", "0"), ("x", "c", "0")], "01")
    found = dawid_skene(rated)
    assert found.confusion[0, 0, 0] == pytest.approx(3.5 / 4, abs=0.01)
    assert found.confusion[0, 1, 1] == pytest.approx(2.5 / 3, abs=0.01)
    assert found.posterior[0, 0] > 0.98


def test_names_and_order_do_not_matter():
    rated = paper()
    names = [
        (rated.items[i], rated.raters[r], rated.labels[k])
        for i, r, k in zip(rated.item, rated.rater, rated.label, strict=True)
    ]
    again = dawid_skene(ratings(names[::-1], "1234"))
    assert np.array_equal(again.posterior, dawid_skene(rated).posterior)
    turned = dawid_skene(ratings(names, "4321"))
    assert turned.posterior[:, ::-1] == pytest.approx(dawid_skene(rated).posterior, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([], {}, "no ratings"),
        ([("x", "a", "0")], {"steps": 0}, "steps"),
        ([("x", "a", "0")], {"prior": Prior(-1.0)}, "0 or more"),
    ],
)
def test_what_is_refused(given, options, said):
    with pytest.raises(InputError, match=said):
        dawid_skene(ratings(given, "01"), **options)
