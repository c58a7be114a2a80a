"""Old hits put again, word for word: what reproduces, by attempt, family and goal."""

from __future__ import annotations

import pytest

from calibrant.attack.replay import Replay, hit, replay
from calibrant.core import Chat, Completion, Identity, InputError, Quiet, Sampling
from calibrant.data.rows import Attempts, Goals
from calibrant.evals.attempts import read_attempts
from calibrant.stats import rate


class Target:
    """Gives in to requests with a word of its own in them."""

    identity = Identity(name="target", parts={"weights": "t"})

    def __init__(self, word):
        self.word, self.asked, self.samplings = word, [], []

    def generate(self, chats, sampling=Sampling()):
        self.asked += chats
        self.samplings.append(sampling)
        return [
            Completion(text="it is brewed" if self.word in c.last_user else "no", ids=(1,)) for c in chats
        ]


@pytest.fixture
def recorded(goals, attempt):
    """Two hits on the first goal, one on the third by another attack, and two that were none."""
    first, second, third, _ = goals
    rows = (
        attempt(first, "success", 0),
        attempt(first, "success", 1),
        attempt(first, "failure", 2),
        attempt(second, "undetermined", 0),
        attempt(third, "success", 3, attack="attack.encode/rot13", family="transform"),
    )
    return Attempts(rows=rows)


def test_hits_are_put_again_as_they_were(recorded, goals, judge, tmp_path):
    target = Target("number 1")
    found = replay(target, recorded, goals, judge, run=Quiet(0, tmp_path))
    old = [a for a in recorded if a.outcome == "success"]
    assert target.asked == [a.chat for a in old]
    assert [a.parent for a in found.attempts] == [a.id for a in old]
    assert [(a.attack, a.family, a.goal_id) for a in found.attempts] == [
        (a.attack, a.family, a.goal_id) for a in old
    ]
    assert not {a.id for a in found.attempts} & {a.id for a in recorded}
    value = {name: estimate.value for name, estimate in found.metrics.items()}
    assert value == {
        "reproduction_rate": pytest.approx(1 / 3),
        "reproduction_rate/persona": 0.5,
        "reproduction_rate/transform": 0.0,
        "attack_success_rate": 0.5,
        "goals_reached": 1,
    }
    assert found.metrics["reproduction_rate"].clusters == 2
    assert (found.metrics["attack_success_rate"].n, found.metrics["attack_success_rate"].unit) == (2, "goal")
    assert read_attempts(tmp_path / "artifacts" / "attempts.jsonl") == [
        a.model_copy(update={"cost": a.cost.model_copy(update={"seconds": None})}) for a in found.attempts
    ]


def test_everything_can_be_put_again(recorded, goals, judge, tmp_path):
    target = Target("number")
    found = replay(target, recorded, goals, judge, Replay(only="all"), Quiet(0, tmp_path))
    assert target.asked == [a.chat for a in recorded]
    assert found.metrics["reproduction_rate"].value == 1
    assert found.metrics["attack_success_rate"].n == 3


def test_on_a_mended_model_nothing_comes_back(recorded, goals, judge, tmp_path):
    found = replay(Target("never said"), recorded, goals, judge, run=Quiet(0, tmp_path))
    assert {estimate.value for estimate in found.metrics.values()} == {0}
    assert found.metrics["attack_success_rate"].high == rate([False] * 2, better="lower", unit="goal").high


def test_a_persons_word_is_above_the_judges(recorded, goals, judge, tmp_path):
    first, *rest = recorded
    cleared, caught = (
        a.model_copy(update={"human": human}) for a, human in ((first, False), (rest[1], True))
    )
    table = Attempts(rows=(cleared, rest[0], caught, *rest[2:]))
    assert [hit(a) for a in table] == [False, True, True, False, True]
    target = Target("number")
    replay(target, table, goals, judge, run=Quiet(0, tmp_path))
    assert [chat.last_user[:24] for chat in target.asked] == [
        f"you are dusk number {number}. t" for number in (1, 2, 3)
    ]


def test_what_cannot_be_judged_is_missing(recorded, goals, judge, tmp_path):
    class Mute(Target):
        def generate(self, chats, sampling=Sampling()):
            return [Completion(text="???" if "number 1" in c.last_user else "no") for c in chats]

    found = replay(Mute(""), recorded, goals, judge, run=Quiet(0, tmp_path))
    assert (found.metrics["reproduction_rate"].value, found.metrics["reproduction_rate"].missing) == (0, 1)
    whole = found.metrics["attack_success_rate"]
    assert (whole.value, whole.missing) == (None, 1)  # one of two goals is open
    assert whole.reason.startswith("0 of 2 goals reached, 1 open")


def test_no_hits_is_no_rate(goals, attempt, judge, tmp_path):
    target = Target("number")
    table = Attempts(rows=tuple(attempt(goal, "failure") for goal in goals))
    found = replay(target, table, goals, judge, run=Quiet(0, tmp_path))
    assert not target.asked
    rate_ = found.metrics["reproduction_rate"]
    assert (rate_.value, rate_.low, rate_.high, rate_.n) == (None, 0.0, 1.0, 0)
    assert any("no recorded success" in told for told in found.caveats)


def test_goals_that_were_not_given(recorded, goals, judge, tmp_path):
    target = Target("number")
    some = Goals(rows=goals.rows[:2])
    with pytest.raises(InputError, match="1 of 3 attempts are after goals that were not given, such as 'g2'"):
        replay(target, recorded, some, judge, run=Quiet(0, tmp_path))
    assert not target.asked


def test_a_begun_reply_is_begun_again(goals, attempt, judge, tmp_path):
    begun = Chat.ask(goals.rows[0].text).then("assistant", "step 1:")
    old = attempt(goals.rows[0], "success", chat=begun, attack="attack.prefill/steps", family="prefill")
    target = Target("zorble")
    found = replay(target, Attempts(rows=(old,)), goals, judge, run=Quiet(0, tmp_path))
    assert target.asked == [begun]
    assert found.metrics["reproduction_rate/prefill"].value == 1


def test_another_seed_draws_anew(recorded, goals, judge, tmp_path):
    first, second = Target("number"), Target("number")
    one = replay(first, recorded, goals, judge, run=Quiet(0, tmp_path / "a"))
    sampling = Sampling(temperature=1.0, seed=7)
    other = replay(second, recorded, goals, judge, Replay(sampling=sampling), Quiet(2, tmp_path / "b"))
    assert second.samplings[0].seed == 9
    assert not {a.id for a in one.attempts} & {a.id for a in other.attempts}


def test_it_says_who_judged(recorded, goals, judge, tmp_path):
    class Unsure(type(judge)):
        calibration = "uncalibrated"

    found = replay(Target("number"), recorded, goals, Unsure(), run=Quiet(0, tmp_path))
    assert any("uncalibrated" in told for told in found.caveats)
    assert any("an attacker who adapts" in told for told in found.caveats)
