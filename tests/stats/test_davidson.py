"""Davidson's model: by hand, against a slow reference, in any order and by any names; how often it covers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from calibrant.core import InputError
from calibrant.stats.davidson import Game, davidson


def table(first, second, wins, losses, ties, label=""):
    """Games of two players, each in a cluster of its own."""
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Game(first, second, score, f"{label}{at}") for at, score in enumerate(scores)]


def drawn(strengths, nu, clusters, each, seed):
    """Games drawn from the model itself."""
    rng, names, games = random.Random(seed), list(strengths), []
    for cluster in range(clusters):
        for _ in range(each):
            one, two = rng.sample(names, 2)
            a, b = strengths[one], strengths[two]
            tie = nu * math.sqrt(a * b)
            u = rng.random() * (a + b + tie)
            games.append(Game(one, two, 1.0 if u < a else 0.0 if u < a + b else 0.5, f"{cluster}"))
    return games


def reference(games):
    """Log-strengths that add up to 0, and nu: the log-likelihood game by game, maximised numerically."""
    names = sorted({name for game in games for name in game[:2]})

    def loss(theta):
        log_pi = dict(zip(names, theta, strict=False))
        total = 0.0
        for first, second, score, _ in games:
            a, b = math.exp(log_pi[first]), math.exp(log_pi[second])
            tie = math.exp(theta[-1]) * math.sqrt(a * b)
            total += math.log({1.0: a, 0.0: b, 0.5: tie}[score] / (a + b + tie))
        return -total + sum(theta[:-1]) ** 2

    found = minimize(loss, np.zeros(len(names) + 1), method="BFGS", options={"gtol": 1e-9})
    return dict(zip(names, found.x, strict=False)), math.exp(found.x[-1])


def test_two_players_by_hand():
    """8 wins, 2 losses, 4 ties: the strengths are as 8 to 2 and nu = 4 / sqrt(8 x 2) = 1, so that
    P(tie) = 1 x sqrt(4 x 1) / (4 + 1 + 2) = 2/7 = 4/14."""
    found = davidson(table("a", "b", 8, 2, 4))
    assert found.players["a"].value == pytest.approx(math.log(4) / 2, abs=1e-10)
    assert found.players["b"].value == pytest.approx(-math.log(4) / 2, abs=1e-10)
    assert found.ties.value == pytest.approx(1.0, abs=1e-9)


def test_three_players_by_hand():
    """Each beats the next 4 to 2 and the last loses to the first 8 to 2: Bradley and Terry's 4 : 2 : 1.

    Without ties nu is 0, and the likelihood equations are met by these strengths exactly: of 6 games of the
    first with the second it is expected to win 6 x 4/6 = 4, of 10 with the third 10 x 4/5 = 8.
    """
    games = table("a", "b", 4, 2, 0, "x") + table("b", "c", 4, 2, 0, "y") + table("a", "c", 8, 2, 0, "z")
    found = davidson(games)
    values = [found.players[name].value for name in "abc"]
    assert values == pytest.approx([math.log(2), 0.0, -math.log(2)], abs=1e-10)
    assert (found.ties.value, found.ties.high) == (0.0, None)  # none was seen: that is no proof of none


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_reference_agrees(seed):
    games = drawn({"a": 3.0, "b": 1.0, "c": 1.0, "d": 0.4}, 0.7, 40, 3, seed)
    ratings, nu = reference(games)
    found = davidson(games, resamples=100)
    assert found.ties.value == pytest.approx(nu, abs=1e-5)
    for name, rating in found.players.items():
        assert rating.value == pytest.approx(ratings[name], abs=1e-5)


def test_wins_and_half_the_ties_are_what_the_model_expects():
    games = drawn({"a": 2.0, "b": 1.0, "c": 0.5}, 1.0, 50, 3, 5)
    found = davidson(games, resamples=100)
    for name in "abc":
        expected = 0.0
        for game in games:
            if name in game[:2]:
                other = game.second if game.first == name else game.first
                a, b = (math.exp(found.players[one].value) for one in (name, other))
                tie = found.ties.value * math.sqrt(a * b)
                expected += (a + tie / 2) / (a + b + tie)
        scored = sum(g.score for g in games if g.first == name) + sum(
            1 - g.score for g in games if g.second == name
        )
        assert scored == pytest.approx(expected, abs=1e-8)


def test_neither_names_nor_the_order_of_the_table_matter():
    games = drawn({"a": 3.0, "b": 1.0, "c": 0.5}, 0.5, 30, 4, 1)
    named = {"a": "zoe", "b": "ann", "c": "mo"}
    other = [Game(named[g.second], named[g.first], 1.0 - g.score, g.cluster) for g in games]
    random.Random(2).shuffle(other)
    one, two = davidson(games), davidson(other)
    for name, rating in one.players.items():
        again = two.players[named[name]]
        assert [again.value, again.low, again.high] == pytest.approx(
            [rating.value, rating.low, rating.high], abs=1e-9
        )


def test_games_of_one_item_are_not_independent():
    games = drawn({"a": 2.0, "b": 1.0}, 0.5, 30, 1, 3)
    often = [game for game in games for _ in range(8)]  # eight copies of each say nothing new
    one, copied = davidson(games).players["a"], davidson(often).players["a"]
    assert copied.high - copied.low == pytest.approx(one.high - one.low, abs=1e-9)
    apart = [game._replace(cluster=f"{at}") for at, game in enumerate(often)]
    assert davidson(apart).players["a"].high - davidson(apart).players["a"].low < 0.5 * (one.high - one.low)


@pytest.mark.parametrize(
    ("games", "says"),
    [
        (table("a", "b", 6, 0, 0), "never loses"),
        (table("a", "b", 6, 0, 3), "never loses"),
        (table("a", "b", 0, 0, 6), "never loses"),
        (table("a", "b", 3, 3, 1) + table("c", "d", 3, 3, 1, "x"), "never met"),
    ],
)
def test_no_finite_rating_is_unknown(games, says):
    found = davidson(games)
    for rating in (*found.players.values(), found.ties):
        assert rating.value is None
        assert rating.n == len(games)
        assert says in rating.reason


def test_few_games_leave_the_interval_open_and_say_so():
    one = davidson(table("a", "b", 8, 1, 0)).players["a"]
    assert one.value is not None
    assert (one.low, one.high) == (None, None)
    assert "too few games for an upper end; at least" in one.reason
    alone = [game._replace(cluster="one") for game in table("a", "b", 8, 4, 0)]
    assert "one cluster" in davidson(alone).players["a"].reason


def test_bad_input():
    with pytest.raises(InputError, match="plays itself"):
        davidson([Game("a", "a", 1.0, "")])
    with pytest.raises(InputError, match=r"score 0\.3"):
        davidson([Game("a", "b", 0.3, "")])
    assert davidson([]).players == {}
    assert davidson([]).ties.value is None


@pytest.mark.slow
def test_coverage_of_the_interval():
    """Of 600 intervals at 95 % (200 tables of 60 clusters of four games, three players) 89 % hold the truth.

    Counted as 200, since the three of a table may agree: were coverage .935, fewer have a chance below 1 %;
    were it .85, as many have one of 7 %."""
    truth = {"a": math.exp(0.6), "b": 1.0, "c": math.exp(-0.6)}
    held = []
    for seed in range(200):
        found = davidson(drawn(truth, 0.5, 60, 4, seed), resamples=300)
        held += [
            found.players[name].low <= math.log(strength) <= found.players[name].high
            for name, strength in truth.items()
        ]
    assert sum(held) / len(held) >= 0.89
