"""Recovery scores with known answers, and by scikit-learn."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from calibrant.core import InputError, NumericalError
from calibrant.stats.recovery import f1_scores, match

RNG = np.random.default_rng(0)


def test_a_shuffled_and_scaled_copy_is_matched_exactly():
    known = RNG.normal(size=(9, 5))
    order = RNG.permutation(9)
    found = match(known, np.vstack([known[order] * RNG.uniform(0.1, 9, (9, 1)), RNG.normal(size=(4, 5))]))
    assert found.mcc == pytest.approx(1.0)
    assert found.learned.tolist() == np.argsort(order).tolist()


def test_the_matching_has_the_largest_sum():
    known, learned = RNG.normal(size=(4, 3)), RNG.normal(size=(6, 3))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (known, learned)]
    best = max(sum(unit[0][i] @ unit[1][j] for i, j in enumerate(p)) for p in permutations(range(6), 4))
    assert match(known, learned).cosines.sum() == pytest.approx(best)


def test_a_sign_counts_and_too_few_match_nothing():
    known = np.eye(3)
    assert match(known, -known).mcc <= 0.0
    few = match(known, known[:1])
    assert few.learned.tolist() == [0, -1, -1]
    assert few.mcc == pytest.approx(1 / 3)
    assert match(known, np.zeros((3, 3))).mcc == 0.0


def test_f1_is_that_of_scikit_learn():
    truth, seen = RNG.uniform(size=(50, 4)) < 0.3, RNG.uniform(size=(50, 6)) < 0.3
    truth[:, 3] = False
    matched = match(np.eye(4, 6), np.eye(6))
    seen[:, 3] = False
    found = f1_scores(truth, seen, matched)
    for j in range(3):
        assert found[j] == pytest.approx(f1_score(truth[:, j], seen[:, matched.learned[j]]))
    assert np.isnan(found[3])
    assert f1_scores(truth, seen[:, :1], match(np.eye(4, 6), np.eye(6)[:1])).tolist()[1] == 0.0


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(InputError, match="width 3, learned ones 4"):
        match(np.eye(3), np.eye(4))
    with pytest.raises(InputError, match="shape"):
        match(np.zeros((0, 3)), np.eye(3))
    with pytest.raises(NumericalError, match="learned"):
        match(np.eye(3), np.full((3, 3), np.nan))
    with pytest.raises(InputError, match="rows must be the same"):
        f1_scores(np.ones((4, 3)), np.ones((5, 3)), match(np.eye(3), np.eye(3)))
