"""Attack rates against hand-counted tables."""

from __future__ import annotations

import itertools

import pytest

from calibrant.attack.engine.rates import any_of, attack_caveats, check_goals, success_rates
from calibrant.core import Attempt, Chat, Completion, Goal, Identity, InputError, Sampling
from calibrant.data.rows import Goals
from calibrant.stats import rate


def attempt(goal, variant, outcome, stop="eos"):
    return Attempt(
        id=f"{goal.id}/{variant}",
        goal_id=goal.id,
        category=goal.category,
        attack=f"attack.test/{variant}",
        chat=Chat.ask("x"),
        completion=Completion(text="x", stop=stop),
        outcome=outcome,
    )


def table(goals, rows):
    """``rows``: variant -> one letter a goal; S success, F failure, U undetermined, B blocked, E error."""
    outcome = {"S": "success", "F": "failure", "U": "undetermined", "B": "failure", "E": "undetermined"}
    stop = {"B": "blocked", "E": "error"}
    return [
        attempt(goal, variant, outcome[letter], stop.get(letter, "eos"))
        for variant, letters in rows.items()
        for goal, letter in zip(goals, letters, strict=True)
    ]


def test_any_of_is_kleenes_or():
    """True wins, then unknown; checked against every triple by the definition 'can it still be False?'."""
    for hits in itertools.product([True, False, None], repeat=3):
        could = {
            any(filled)
            for filled in itertools.product(*[[h] if h is not None else [True, False] for h in hits])
        }
        assert any_of(hits) == (could.pop() if len(could) == 1 else None)


def test_hand_counted_table(goals):
    """Four goals, two variants.

    a: S F U F -> 1 of 3 answered.  b: F F F U -> 0 of 3 answered.
    Either:  S F ? ? -> 1 of 2 answered, between 1 of 4 and 3 of 4.
    potions (goals 0, 1): S F.  charms (2, 3): ? ?, so no value and the interval is everything.
    """
    found = success_rates(goals, table(goals, {"a": "SFUF", "b": "FFFU"}))
    assert found["attack_success_rate"].value == 1 / 2
    assert found["attack_success_rate"].missing == 2
    assert (
        found["attack_success_rate"].low == rate([True, False, False, False], better="lower", unit="goal").low
    )
    assert (
        found["attack_success_rate"].high == rate([True, False, True, True], better="lower", unit="goal").high
    )
    assert found["attack_success_rate/a"].value == 1 / 3
    assert found["attack_success_rate/b"].value == 0
    assert found["attack_success_rate/b"].high == rate([False] * 3 + [True], better="lower", unit="goal").high
    assert found["attack_success_rate/potions"].value == 1 / 2
    charms = found["attack_success_rate/charms"]
    assert (charms.value, charms.low, charms.high) == (None, pytest.approx(0), pytest.approx(1))
    assert found["undetermined_rate"].value == 2 / 8
    assert {e.better for key, e in found.items() if key.startswith("attack")} == {"lower"}


def test_blocked_and_errors_are_told_apart(goals):
    found = success_rates(goals, table(goals, {"a": "BBES"}))
    assert found["blocked_rate"].value == 2 / 3  # the error may have been anything: missing
    assert found["blocked_rate"].missing == 1
    assert found["undetermined_rate"].value == 1 / 4
    assert found["attack_success_rate"].value == 1 / 3


def test_attempts_on_one_goal_are_one_cluster(goals):
    found = success_rates(goals, table(goals, {"a": "BBFF", "b": "BBFF"}))
    assert found["blocked_rate"].n == 8
    assert found["blocked_rate"].clusters == 4
    assert found["attack_success_rate"].clusters is None


def test_goals_of_one_cluster_widen_the_interval():
    alone = Goals(rows=tuple(Goal(id=f"g{i}", text="x", category="c") for i in range(8)))
    tied = Goals(rows=tuple(g.model_copy(update={"cluster": f"c{i // 2}"}) for i, g in enumerate(alone)))
    rows = {"a": "SSSSFFFF"}
    wide = success_rates(tied, table(tied, rows))["attack_success_rate"]
    slim = success_rates(alone, table(alone, rows))["attack_success_rate"]
    assert wide.value == slim.value
    assert wide.clusters == 4
    assert wide.high - wide.low > slim.high - slim.low


def test_order_of_attempts_does_not_matter(goals):
    attempts = table(goals, {"a": "SFUF", "b": "FBFE"})
    assert success_rates(goals, attempts) == success_rates(goals, attempts[::-1])


@pytest.mark.parametrize(
    ("rows", "variants", "words"),
    [
        ([], ["a"], "no goals"),
        ([Goal(id="g", text="x"), Goal(id="g", text="y")], ["a"], "share the id 'g'"),
        ([Goal(id="g", text="x", harmful=False)], ["a"], "benign"),
        ([Goal(id="g", text="x", category="dusk")], ["dusk"], "'dusk' names both"),
    ],
)
def test_goals_that_mean_nothing_are_refused(rows, variants, words):
    with pytest.raises(InputError, match=words) as caught:
        check_goals(Goals(rows=tuple(rows)), variants)
    assert caught.value.hint


def test_caveats_name_the_estimand_and_an_uncalibrated_judge(judge):
    class Guess:
        identity = Identity(name="guess", kind="judge")
        calibration = "uncalibrated"

    exact = attack_caveats(["a", "b"], Sampling(), judge)
    guess = attack_caveats(["a", "b"], Sampling(), Guess())
    assert "any of k = 2 variants (a, b)" in exact[0]
    assert guess[:-1] == exact
    assert guess[-1] == "judged by 'guess', which is uncalibrated"
