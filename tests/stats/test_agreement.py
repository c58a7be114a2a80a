"""Agreement: published examples, closed forms by hand, coverage, and what cannot be known."""

from __future__ import annotations

import csv
import itertools
import math
import random

import numpy as np
import pytest

from calibrant.core import InputError
from calibrant.stats.agreement import (
    Ratings,
    accuracy_ceiling,
    agreement,
    gwet_ac1,
    krippendorff_alpha,
    label_noise,
    ratings,
)


def rated(*rows: str, labels: str) -> Ratings:
    """A row a rater, a character an item; '.' = did not rate it."""
    told = [
        (f"unit {at:03}", f"rater {who}", said)
        for who, row in enumerate(rows)
        for at, said in enumerate(row)
        if said != "."
    ]
    return ratings(told, labels)


KRIPPENDORFF = rated("123321412...", "1233224125.3", ".3332342251.", "12332441251.", labels="12345")
"""'Computing Krippendorff's alpha-reliability' (2011), C: four observers, gaps, a unit rated once."""


def test_krippendorffs_own_examples():
    """Sections A (two observers, two values), B (five values) and C (four observers, missing data)."""
    assert krippendorff_alpha(rated("0100000010", "1110010000", labels="01")).value == pytest.approx(
        0.095, abs=5e-4
    )
    assert krippendorff_alpha(rated("aabbdcccedda", "babbbccceddd", labels="abcde")).value == pytest.approx(
        0.692, abs=5e-4
    )
    found = krippendorff_alpha(KRIPPENDORFF)
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert (found.n, found.unit, found.null_value) == (11, "item", 0.0)
    assert found.reason == "1 of 12 items have a single rating and say nothing here"


def test_gwets_paradox_table():
    """125 items: both yes 118, both no 0, split 5 and 2. A = 118/125; yes .972; chance 2 (.972)(.028)."""
    table = rated("+" * 123 + "-" * 2, "+" * 118 + "-" * 5 + "+" * 2, labels="+-")
    chance = 2 * 0.972 * 0.028
    assert agreement(table).value == pytest.approx(0.944)
    assert gwet_ac1(table).value == pytest.approx((0.944 - chance) / (1 - chance))
    assert gwet_ac1(table).value == pytest.approx(0.9408, abs=5e-5)  # Gwet 2008; Cohen's kappa is -.0234
    assert krippendorff_alpha(table).value < 0


def test_pairs_of_raters_by_a_slow_loop():
    """The mean over items of the share of rater pairs that agree; each item counts alike."""
    units: dict[int, list[int]] = {}
    for item, label in zip(KRIPPENDORFF.item.tolist(), KRIPPENDORFF.label.tolist(), strict=True):
        units.setdefault(item, []).append(label)
    shares = [
        np.mean([one == two for one, two in itertools.combinations(labels, 2)])
        for labels in units.values()
        if len(labels) > 1
    ]
    assert agreement(KRIPPENDORFF).value == pytest.approx(float(np.mean(shares)))


def test_a_tie_is_no_half_vote():
    """Two who call it a tie agree; one tie against a side is a whole disagreement."""
    table = rated("aabt", "abtt", labels="abt")
    assert agreement(table).value == 0.5


@pytest.mark.parametrize("measure", [agreement, krippendorff_alpha, gwet_ac1, label_noise])
def test_order_and_names_do_not_matter(measure):
    names = [
        (KRIPPENDORFF.items[i], KRIPPENDORFF.raters[r], KRIPPENDORFF.labels[k])
        for i, r, k in zip(KRIPPENDORFF.item, KRIPPENDORFF.rater, KRIPPENDORFF.label, strict=True)
    ]
    random.Random(0).shuffle(names)
    assert measure(ratings(names, "12345")) == measure(KRIPPENDORFF)
    renamed = ratings([(f"z{hash(item) % 97}{item}", rater, label) for item, rater, label in names], "12345")
    assert measure(renamed) == measure(KRIPPENDORFF)


@pytest.mark.parametrize("measure", [agreement, krippendorff_alpha, gwet_ac1, label_noise])
def test_one_rating_an_item_is_unknown(measure):
    found = measure(rated("aabb", labels="ab"))
    assert found.value is None
    assert (found.n, found.missing, found.reason) == (4, 4, "no item was rated by two raters")


def test_one_label_only_says_nothing_about_skill():
    """Alpha is unknown, not 1: expected disagreement is 0. AC1 is 1 by its own definition of chance."""
    table = rated("aaaaaa", "aaaaaa", labels="ab")
    assert krippendorff_alpha(table).value is None
    assert "every rating is the same label" in krippendorff_alpha(table).reason
    assert gwet_ac1(table).value == 1.0
    assert agreement(table).low < 1.0  # six items that agree do not show that all would


# Noise and ceiling


@pytest.mark.parametrize("k", [2, 3, 5])
def test_noise_inverts_the_model(k):
    """A table made to hold the model's exact agreement gives the noise back."""
    noise = 0.2
    agreed = (1 - noise) ** 2 + noise**2 / (k - 1)
    same = round(10_000 * agreed)
    labels = "abcde"[:k]
    table = rated("a" * 10_000, "a" * same + "b" * (10_000 - same), labels=labels)
    assert label_noise(table).value == pytest.approx(noise, abs=1e-3)


def test_noise_and_ceiling_by_hand():
    """Agreement .68 = .8^2 + .2^2: noise (1 - sqrt(.36)) / 2 = .2, ceiling .8; the ends change places."""
    table = rated("a" * 100, "a" * 68 + "b" * 32, labels="ab")
    agreed, noise = agreement(table), label_noise(table)
    assert noise.value == pytest.approx(0.2)
    assert noise.low == pytest.approx((1 - math.sqrt(2 * agreed.high - 1)) / 2)
    assert noise.high == pytest.approx((1 - math.sqrt(2 * agreed.low - 1)) / 2)
    assert (noise.n, noise.better) == (100, "lower")
    ceiling = accuracy_ceiling(noise)
    assert (ceiling.value, ceiling.low, ceiling.high) == (1 - noise.value, 1 - noise.high, 1 - noise.low)


def test_the_ceiling_of_a_majority_by_hand():
    """Noise .2. Three votes: 1 - (3 x .2^2 x .8 + .2^3) = .896. Two that agree: .64 / (.64 + .04)."""
    noise = label_noise(rated("a" * 100, "a" * 68 + "b" * 32, labels="ab"))
    assert accuracy_ceiling(noise, [1]) == accuracy_ceiling(noise)
    assert accuracy_ceiling(noise, [3]).value == pytest.approx(0.896)
    assert accuracy_ceiling(noise, [2]).value == pytest.approx(0.64 / 0.68)
    mixed = accuracy_ceiling(noise, [1, 3, 3, 2])
    assert mixed.value == pytest.approx((0.8 + 2 * 0.896 + 0.64 / 0.68) / 4)
    assert mixed.low < mixed.value < mixed.high
    coins = label_noise(rated("ab" * 20, "ba" * 20, labels="ab"))
    assert accuracy_ceiling(coins, [2, 3, 5]).value == 0.5


def test_agreement_below_chance_is_noise_at_its_ceiling():
    table = rated("ab" * 20, "ba" * 20, labels="ab")
    assert label_noise(table).value == 0.5
    assert accuracy_ceiling(label_noise(table)).value == 0.5


def test_an_unknown_noise_is_an_unknown_ceiling():
    found = accuracy_ceiling(label_noise(rated("ab", labels="ab")))
    assert found.value is None
    assert found.reason


def simulated(rng, n, noise, raters, skew=0.5):
    """Ratings with a planted rate of errors."""
    truth = rng.random(n) < skew
    label = (truth[:, None] ^ (rng.random((n, raters)) < noise)).astype(np.intp)
    names = tuple(map(str, range(n))), tuple(map(str, range(raters)))
    item, rater = np.repeat(np.arange(n), raters), np.tile(np.arange(raters), n)
    return Ratings(item, rater, label.ravel(), *names, ("0", "1"))


def coverage(repetitions, sizes, noises):
    """Share of intervals that hold the planted alpha, AC1 and noise; a cell a combination."""
    rng, cells = np.random.default_rng(0), {}
    for n, noise, raters, skew in itertools.product(sizes, noises, (2, 4), (0.5, 0.85)):
        agreed = (1 - noise) ** 2 + noise**2
        share = skew * (1 - noise) + (1 - skew) * noise
        chance = 2 * share * (1 - share)
        truths = {"alpha": 1 - (1 - agreed) / chance, "ac1": (agreed - chance) / (1 - chance), "noise": noise}
        held = dict.fromkeys(truths, 0)
        for _ in range(repetitions):
            table = simulated(rng, n, noise, raters, skew)
            found = {
                "alpha": krippendorff_alpha(table, resamples=400),
                "ac1": gwet_ac1(table, resamples=400),
                "noise": label_noise(table),
            }
            for name, truth in truths.items():
                held[name] += found[name].low is None or found[name].low <= truth <= found[name].high
        for name, hits in held.items():
            cells[name, n, noise, raters, skew] = hits / repetitions
    for name in ("alpha", "ac1", "noise"):
        part = {cell: share for cell, share in cells.items() if cell[0] == name}
        worst = min(part, key=part.get)
        print(f"{name}: mean {np.mean(list(part.values())):.4f}, worst {part[worst]:.4f} at {worst}")
    return cells


def means(cells):
    return {
        name: float(np.mean([share for cell, share in cells.items() if cell[0] == name]))
        for name in ("alpha", "ac1", "noise")
    }


def test_intervals_hold_the_planted_truth_quick():
    assert all(0.9 <= mean <= 0.985 for mean in means(coverage(40, (100,), (0.2, 0.35))).values())


@pytest.mark.long
def test_intervals_hold_the_planted_truth_in_the_long_run():
    found = coverage(2_000, (50, 100, 300), (0.1, 0.2, 0.35))
    assert all(0.94 <= mean <= 0.96 for mean in means(found).values())
    assert min(found.values()) >= 0.9


def test_raters_who_toss_coins_agree_by_chance():
    """The null: alpha's interval holds 0, and the noise cannot be told from 1/2."""
    table = simulated(np.random.default_rng(5), 400, 0.5, 3)
    found = krippendorff_alpha(table)
    assert found.low < 0 < found.high
    assert label_noise(table).high > 0.4


def test_raters_of_different_skill_hardly_move_the_noise():
    """Noises .05, .15, .25, .35: mean .20; the formula sees the mean product, which lies close by."""
    rng = np.random.default_rng(6)
    truth = rng.random(20_000) < 0.5
    rows = [truth ^ (rng.random(20_000) < noise) for noise in (0.05, 0.15, 0.25, 0.35)]
    label = np.stack(rows, axis=1).astype(np.intp).ravel()
    names = tuple(map(str, range(20_000))), tuple("abcd")
    table = Ratings(np.repeat(np.arange(20_000), 4), np.tile(np.arange(4), 20_000), label, *names, ("0", "1"))
    assert label_noise(table).value == pytest.approx(0.2, abs=0.015)


# What is refused


def test_bad_ratings_are_refused():
    with pytest.raises(InputError, match=r"'tie' \(did you mean 'tied'") as caught:
        ratings([("x", "ann", "tie")], ("a", "tied"))
    assert "labels: a, tied" in caught.value.hint
    with pytest.raises(InputError, match="two labels"):
        ratings([], ("a", "a"))
    twice = ratings([("x", "ann", "a"), ("x", "ann", "b"), ("x", "bob", "a")], "ab")
    with pytest.raises(InputError, match="'ann' rated item 'x' more than once"):
        agreement(twice)


def test_no_ratings_at_all():
    assert agreement(ratings([], "ab")).value is None


@pytest.mark.real
def test_two_people_on_refusals(real_data):
    """XSTest's own two annotators, 450 replies a model; its 'agreement' column is our count."""
    for model in ("llama2new", "llama2orig", "mistralinstruct"):
        with (real_data / "xstest" / f"completions_{model}.csv").open() as file:
            rows = list(csv.DictReader(file))
        labels = sorted({row[f"annotation_{who}"] for row in rows for who in (1, 2)})
        told = [(row["id"], f"annotator {who}", row[f"annotation_{who}"]) for row in rows for who in (1, 2)]
        table = ratings(told, labels)
        found = agreement(table)
        print(model, labels, found, krippendorff_alpha(table), gwet_ac1(table), label_noise(table))
        assert found.value == pytest.approx(sum(row["agreement"] == "TRUE" for row in rows) / 450)
