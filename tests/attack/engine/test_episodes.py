"""Which episodes a campaign takes: what makes two of them the same, and what they draw from."""

from __future__ import annotations

import pytest

from calibrant.attack.engine.episodes import Participants, episodes, key_of
from calibrant.attack.engine.protocol import AskTarget, Attack
from calibrant.core import Chat, Frozen, Identity, Sampling
from calibrant.data.rows import Goals


class Settings(Frozen):
    tries: int = 1


def episode(goals, config, tools):
    yield [
        AskTarget(
            goals[0], Chat.ask(f"{tools.rng.random()} {tools.seed} {tools.target.name} {tools.sampling}")
        )
    ]


ATTACK = Attack("attack.try", "search", Settings, episode, lambda config: config.tries)


class Target:
    def __init__(self, name="target"):
        self.identity = Identity(name=name, parts={"weights": name})


@pytest.fixture
def made(goals, judge):
    def planned(
        attack=ATTACK,
        label="attack.try",
        config=Settings(),
        rows=goals,
        target=None,
        sampling=Sampling(),
        **given,
    ):
        participants = Participants(target or Target(), judge, sampling)
        return list(
            episodes(attack, label, config, rows, participants, **{"seed": 0, "repetitions": 1} | given)
        )

    return planned


def test_one_walk_a_goal_and_repetition(made, goals):
    found = made(repetitions=3)
    assert [(w.goals, w.repetition) for w in found] == [((g.id,), r) for r in range(3) for g in goals]
    assert len({w.key for w in found}) == 12
    assert [w.key for w in made(repetitions=3)] == [w.key for w in found]
    assert [w.key for w in made()] == [
        w.key for w in found[:4]
    ]  # more repetitions add episodes, and change none


def test_or_one_over_all_goals(made, goals):
    found = made(attack=ATTACK._replace(together=True), repetitions=2)
    assert [w.goals for w in found] == [tuple(goal.id for goal in goals)] * 2


def test_what_makes_another_walk(made, goals):
    first = goals.rows[0]
    spoken = first.model_copy(update={"spans": ("brew",)})
    keys = [
        made()[0].key,
        made(label="again")[0].key,
        made(attack=ATTACK._replace(name="attack.other"))[0].key,
        made(config=Settings(tries=2))[0].key,
        made(rows=Goals(rows=(spoken,)))[0].key,
        made(seed=1)[0].key,
        made(target=Target("other"))[0].key,
        made(sampling=Sampling(max_tokens=8))[0].key,
        made(repetitions=2)[4].key,
    ]
    assert len(set(keys)) == len(keys)


def first_of(episode):
    return next(episode.make())[0].chat.last_user.split()[:2]


def test_two_targets_and_samplings_meet_the_same_draws(made):
    draws = [first_of(w) for w in made()]
    assert [first_of(w) for w in made(target=Target("other"), sampling=Sampling(temperature=1.0))] == draws
    assert [first_of(w) for w in made(seed=1)] != draws
    assert len({tuple(draw) for draw in draws}) == 4
    assert first_of(made()[0]) == draws[0]  # made anew, it draws the same


def test_a_walk_is_told_whom_it_attacks(made):
    (move,) = next(made(target=Target("somebody"), sampling=Sampling(max_tokens=9))[0].make())
    assert "somebody" in move.chat.last_user and "max_tokens=9" in move.chat.last_user


def test_keys_of_moves():
    keys = {
        key_of(episode, kind, number) for episode in "ab" for kind in ("ask", "move") for number in range(3)
    }
    assert len(keys) == 12
    assert {len(key) for key in keys} == {64}
