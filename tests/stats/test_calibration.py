"""Calibration of reward models: numbers by hand, planted truths and their nulls, coverage, odd input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS

from calibrant.core import InputError, NumericalError
from calibrant.stats.calibration import brier, calibration_error, length_slope, pair_accuracy, temperature

ALL = (pair_accuracy, brier, calibration_error, temperature)


def planted(n, truth=1.0, seed=0, spread=1.5):
    """Margins whose signs are drawn with P(chosen wins) = sigma(margin / truth)."""
    rng = np.random.default_rng(seed)
    shown = rng.normal(0.5, spread, n)
    return np.where(rng.random(n) < expit(shown / truth), shown, -shown).tolist()


def test_accuracy_counts_ties_half():
    found = pair_accuracy([1.0, 0.0, -2.0, 0.5])
    assert found.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found.null_value == 0.5


def test_brier_by_hand():
    """sigma(0) = 1/2 and sigma(ln 3) = 3/4: losses 1/4 and 1/16."""
    assert brier([0.0, math.log(3)]).value == pytest.approx((0.25 + 0.0625) / 2)


def test_calibration_error_by_hand():
    """Two bins of 20: confidence .75 with 15 won (no error), confidence .9 with 10 won (error .4)."""
    low, high = math.log(3), math.log(9)
    margins = [low] * 15 + [-low] * 5 + [high] * 10 + [-high] * 10
    found = calibration_error(margins)
    assert found.value == pytest.approx(0.5 * 0.4)
    assert found.low < 0.2 < found.high
    assert "2 bins" in found.method


def test_few_pairs_fall_into_one_bin():
    """39 pairs: one bin, so the error is |share won - mean confidence|."""
    margins = planted(39)
    confidence = [max(expit(m), expit(-m)) for m in margins]
    won = sum(m > 0 for m in margins) / 39
    assert calibration_error(margins).value == pytest.approx(abs(won - sum(confidence) / 39))


def test_temperature_is_where_the_likelihood_is_greatest():
    margins = np.array(planted(120, truth=1.7))
    best = minimize_scalar(
        lambda t: np.logaddexp(0, -margins / t).sum(),
        bounds=(0.1, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert temperature(margins.tolist()).value == pytest.approx(best.x, rel=1e-5)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_temperature_has_the_unit_of_the_margins(unit):
    base, scaled = (temperature([unit * m for m in planted(200)]) for unit in (1.0, unit))
    for one, two in zip(
        (base.value, base.low, base.high), (scaled.value, scaled.low, scaled.high), strict=True
    ):
        assert two == pytest.approx(unit * one, rel=1e-9)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(truth):
    """Margins that say too much (T = 3) or too little (T = .5); at T = 1 there is no error to find."""
    margins = planted(3000, truth)
    found, error = temperature(margins), calibration_error(margins)
    assert found.low < truth < found.high
    assert (found.low <= 1.0 <= found.high) == (truth == 1.0)
    assert (error.low == 0.0) == (truth == 1.0)


def test_the_unknown_is_said():
    assert "no pair is lost" in temperature([1.0, 2.0, 0.5]).reason
    assert "do not favour" in temperature([-1.0, 0.5, -2.0]).reason
    assert "do not vary" in length_slope([1.0, -1.0, 1.0], [3, 3, 3]).reason
    assert calibration_error([]).value is None
    won = length_slope([1.0, 2.0, 1.0, 3.0], [1, -2, 3, 5])
    assert won.value == pytest.approx(0.0, abs=1e-12)
    assert (won.low, won.high) == (None, None)
    assert "alike" in won.reason


def test_a_temperature_that_the_data_do_not_bound():
    found = temperature([1.0, -0.9, 1.1, -1.0, 0.4])
    assert (found.low, found.high) == (None, None)
    assert "too few pairs for an upper end; at least" in found.reason
    assert float(found.reason.split()[-1]) < found.value


def test_length_slope_by_hand():
    """Lengths -1, 1, -1, 1 (sd 1), won 0, 1, 0, 1: the line rises by 1/2 a standard deviation."""
    assert length_slope([-1.0, 1.0, -2.0, 3.0], [-1, 1, -1, 1]).value == pytest.approx(0.5)


def test_a_model_that_reads_length_is_caught_and_an_honest_one_is_not():
    """Chosen replies are longer on the whole in both cases; only the first reward looks at it."""
    rng = np.random.default_rng(1)
    lengths = rng.normal(4, 10, 600)
    reads = length_slope((lengths + rng.normal(0, 3, 600)).tolist(), lengths.tolist())
    honest = length_slope(rng.normal(1, 1, 600).tolist(), lengths.tolist())
    assert reads.low > 0.2
    assert honest.low < 0 < honest.high


def test_pairs_of_one_prompt_count_as_less():
    """Every pair eight times over under one name: intervals as wide as without the copies, about."""
    margins, lengths = planted(60), np.random.default_rng(3).normal(0, 5, 60).tolist()
    names = [str(i) for i in range(60) for _ in range(8)]
    copies, longs = ([v for v in values for _ in range(8)] for values in (margins, lengths))
    for call in ALL:
        alone, together = call(margins), call(copies, clusters=names)
        assert together.clusters == 60
        if call is not calibration_error:  # more pairs make more bins, so another error is meant
            assert together.value == pytest.approx(alone.value)
            assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.05)
    alone, together = length_slope(margins, lengths), length_slope(copies, longs, clusters=names)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_order_does_not_matter():
    margins = planted(100)
    for call in ALL:
        assert call(margins).model_dump(exclude={"reason"}) == pytest.approx(
            call(margins[::-1]).model_dump(exclude={"reason"})
        )


def test_coverage_of_temperature_and_error():
    """300 samples of 100 pairs at T = 1 and T = 2; the error of the bins is known for either."""
    hits = {"temperature": 0, "error": 0}
    for repetition in range(300):
        truth = 1.0 + repetition % 2
        rng = np.random.default_rng(repetition)
        shown = rng.normal(0.5, 1.5, 100)
        margins = np.where(rng.random(100) < expit(shown / truth), shown, -shown)
        found, error = temperature(margins.tolist()), calibration_error(margins.tolist())
        hits["temperature"] += found.low is None or found.low <= truth <= found.high
        sure = np.sort(np.abs(shown))
        gaps = [abs((expit(cell) - expit(cell / truth)).mean()) for cell in np.array_split(sure, 5)]
        hits["error"] += error.low <= sum(gaps) / 5 <= error.high
    assert hits["temperature"] / 300 > 0.91
    assert hits["error"] / 300 > 0.93


def test_odd_input_is_refused():
    for call in ALL:
        with pytest.raises(NumericalError, match="margins"):
            call([1.0, math.nan])
        with pytest.raises(InputError, match="level"):
            call([1.0, -1.0], level=95)
        with pytest.raises(InputError, match="cluster"):
            call([1.0, -1.0], clusters=["a"])
    with pytest.raises(InputError, match="bins"):
        calibration_error([1.0], bins=0)
    with pytest.raises(InputError, match="one length a pair"):
        length_slope([1.0], [1, 2])


@pytest.mark.parametrize(
    ("odds", "won", "variance"),
    [
        (3, 20, 0.75 * 0.25),  # all 20 won at confidence 3/4: they look less noisy than a calibrated model is
        (99, 19, 19.5 * 1.5 / 21**2),  # 19 of 20 won at .99: a half is added to both sides
        (99, 10, 0.25),  # 10 of 20 won at confidence .99: noisier than it claims
    ],
)
def test_a_bin_is_as_noisy_as_it_looks_or_claims_whichever_is_more(odds, won, variance):
    """One bin of 20: the half width is the 95 % point of |z| sd, 1.96 sd, less the noise of the draws."""
    margin = math.log(odds)
    found = calibration_error([margin] * won + [-margin] * (20 - won))
    reach = found.value - found.low if found.low else found.high - found.value
    assert reach == pytest.approx(1.96 * math.sqrt(variance / 20), rel=0.03)


def test_the_error_of_the_length_slope_is_hc3():
    """A far point pulls the line to itself: HC3 divides its residual by what that hides (statsmodels')."""
    rng = np.random.default_rng(2)
    lengths = [*rng.normal(0, 1, 30).tolist(), 12.0]
    margins = [*rng.normal(0.3, 1, 30).tolist(), -1.0]
    found = length_slope(margins, lengths)
    x = (np.array(lengths) - np.mean(lengths)) / np.std(lengths)
    line = OLS((np.sign(margins) + 1) / 2, np.column_stack([np.ones(31), x])).fit(cov_type="HC3")
    assert found.value == pytest.approx(line.params[1])
    reach = student.ppf(0.975, 30) * line.bse[1] * math.sqrt(31 / 30)
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))


def test_pairs_of_one_prompt_make_a_calibration_error_no_surer():
    """Every pair eight times over under one name, in one bin: as wide as without the copies, about."""
    margins = planted(60)
    names = [str(i) for i in range(60) for _ in range(8)]
    alone = calibration_error(margins, bins=1)
    copies = calibration_error([m for m in margins for _ in range(8)], clusters=names, bins=1)
    bare = calibration_error([m for m in margins for _ in range(8)], bins=1)
    reach = [found.high - found.value for found in (alone, copies, bare)]
    assert reach[1] == pytest.approx(reach[0], rel=0.1)
    assert reach[2] < 0.5 * reach[0]


def test_three_pairs_have_a_slope_and_two_have_none():
    assert length_slope([1.0, -1.0, 1.0], [3, 1, 2]).value is not None
    assert length_slope([1.0, -1.0], [3, 1]).value is None
