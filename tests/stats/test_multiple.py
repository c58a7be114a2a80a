"""Adjusted p-values: by hand, by their definition, parity with scipy, order kept."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from calibrant.core import InputError, NumericalError
from calibrant.stats import benjamini_hochberg, holm


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """statsmodels collects all garbage at each call: a tenth of a second beside torch, and no result."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


P = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_by_hand():
    """p = .04, .01, .03. Holm: .01*3, then max(.03, .03*2), then max(.06, .04*1). BH: .01*3, .03*3/2, .04."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert benjamini_hochberg([0.04, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])


def by_definition(p):
    """Holm: the smallest level at which a test is rejected, as every smaller p-value must be before it."""
    m, order = len(p), sorted(p)
    return [min(1.0, max((m - rank) * q for rank, q in enumerate(order) if q <= one)) for one in p]


@pytest.mark.parametrize("seed", range(12))
def test_parity(seed):
    p = np.random.default_rng(seed).beta(0.3, 1.0, size=1 + 5 * seed).round(2 if seed % 2 else 9).tolist()
    assert holm(p) == pytest.approx(by_definition(p), abs=1e-15)
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p).tolist(), abs=1e-15)


@settings(deadline=None, max_examples=30)  # statsmodels collects garbage in every call
@given(p=P, shuffle=st.randoms(use_true_random=False))
def test_order_is_kept(p, shuffle):
    order = list(range(len(p)))
    shuffle.shuffle(order)
    for adjust in (holm, benjamini_hochberg):
        straight = adjust(p)
        assert adjust([p[i] for i in order]) == pytest.approx([straight[i] for i in order])
        assert all(raw <= adjusted <= 1 for raw, adjusted in zip(p, straight, strict=True))


def test_one_test_is_left_alone_and_none_is_none():
    for adjust in (holm, benjamini_hochberg):
        assert adjust([0.03]) == pytest.approx([0.03])
        assert adjust([]) == []


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.parametrize(
    ("p", "error"),
    [
        ([0.1, float("nan")], NumericalError),
        ([0.1, None], NumericalError),
        ([1.2], InputError),
        ([-0.1], InputError),
    ],
)
def test_bad_input_is_refused_with_a_remedy(adjust, p, error):
    with pytest.raises(error) as caught:
        adjust(p)
    assert caught.value.hint
