"""BestOfN: the reward chooses, ties go to the first, and nothing is chosen where something is unknown."""

from __future__ import annotations

import math

import pytest

from calibrant.core import (
    LM,
    CapabilityError,
    Chat,
    Completion,
    Identity,
    InputError,
    NumericalError,
    Sampling,
    Scores,
    ScoringLM,
)
from calibrant.models.best_of_n import BestOfN
from calibrant.models.scripted import ScriptedModel

A, B = Chat.ask("first"), Chat.ask("second")
DRAW = Sampling(temperature=1.0)
LOST = Completion(text="", stop="error", error="the line is down")


class Told:
    """Scores a reply by a function of it, and keeps what it was asked."""

    def __init__(self, score=len, name="length"):
        self._score, self.seen = score, []
        self.identity = Identity(name=name, kind="reward", parts={"name": name})

    def score(self, chats, replies):
        self.seen += zip(chats, replies, strict=True)
        return Scores(mean=tuple(float(self._score(reply)) for reply in replies))


def test_the_longest_of_three_for_each_chat():
    model, reward = ScriptedModel(["a", "abc", "ab", "xy", "x", "xyz"]), Told()
    found = BestOfN(model, reward, 3).generate([A, B], DRAW)
    assert [c.text for c in found] == ["abc", "xyz"]
    assert model.seen == [A, A, A, B, B, B]
    assert reward.seen[2] == (A, "ab")


def test_ties_go_to_the_first():
    found = BestOfN(ScriptedModel(["a", "bc", "de", "fg"]), Told(), 4).generate([A], DRAW)
    assert found[0].text == "bc"


def test_a_greedy_request_draws_once():
    model = ScriptedModel(["a", "b"])
    assert [c.text for c in BestOfN(model, Told(), 8).generate([A, B])] == ["a", "b"]
    assert model.seen == [A, B]


def test_no_chats():
    assert BestOfN(ScriptedModel([]), Told(), 2).generate([], DRAW) == []


def test_what_the_draw_said_is_kept_but_not_its_log_probs():
    drawn = Completion(text="ab", ids=(1, 2), logprobs=(-1.0, -2.0), stop="length")
    (found,) = BestOfN(ScriptedModel(["a", drawn]), Told(), 2).generate([A], DRAW)
    assert (found.ids, found.stop, found.logprobs) == ((1, 2), "length", None)


def test_a_failed_draw_is_an_error_of_its_item_alone():
    """And the reward is never asked about a reply that is not there."""
    reward = Told()
    found = BestOfN(ScriptedModel(["a", LOST, "b", "bb"]), reward, 2).generate([A, B], DRAW)
    assert found[0].stop == "error"
    assert found[0].error == "draw 2 of 2 cannot be compared: it failed: the line is down"
    assert found[1].text == "bb"
    assert [reply for _, reply in reward.seen] == ["a", "b", "bb"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_never_chosen_nor_passed_over(place):
    replies = ["a", "bb", "ccc"]
    replies[place] = "?"
    reward = Told(lambda reply: math.nan if reply == "?" else len(reply))
    found = BestOfN(ScriptedModel([*replies, "x", "y", "zz"]), reward, 3).generate([A, B], DRAW)
    assert found[0].stop == "error"
    assert f"draw {place + 1} of 3" in found[0].error
    assert "NaN" in found[0].error
    assert found[1].text == "zz"


def test_a_reward_that_fails_makes_errors_not_picks():
    class Broken(Told):
        def score(self, chats, replies):
            raise NumericalError("a weight is NaN")

    found = BestOfN(ScriptedModel(["a", "b", "c", "d"]), Broken(), 2).generate([A, B], DRAW)
    assert [c.stop for c in found] == ["error", "error"]
    assert "the reward failed: a weight is NaN" in found[0].error


def test_wrong_numbers_are_refused():
    class Short(Told):
        def score(self, chats, replies):
            return Scores(mean=(1.0,))

    with pytest.raises(CapabilityError, match="1 answers to 2 questions"):
        BestOfN(ScriptedModel(["a", "b"]), Short(), 2).generate([A], DRAW)
    with pytest.raises(InputError, match="best of 0"):
        BestOfN(ScriptedModel([]), Told(), 0)


def test_identity_follows_every_part():
    def digest(name="m", reward="r", n=4):
        return BestOfN(ScriptedModel(["a"], name=name), Told(name=reward), n).identity.digest

    assert digest() == digest()
    assert len({digest(), digest(name="k"), digest(reward="s"), digest(n=5)}) == 4
    assert isinstance(BestOfN(ScriptedModel([]), Told(), 1), LM)
    assert not isinstance(BestOfN(ScriptedModel([]), Told(), 1), ScoringLM)


def test_draws_of_real_weights_differ_and_repeat(tiny):
    """The best of eight is one of the eight draws of the model itself, whatever the batch."""
    model = tiny("llama")
    best = BestOfN(model, Told(), 8)
    sampling = Sampling(temperature=1.5, max_tokens=8, seed=3)
    alone, (first, second) = best.generate([A], sampling), best.generate([B, A], sampling)
    draws = [c.text for c in model.generate([A] * 8, sampling)]
    assert len(set(draws)) > 1
    assert alone[0] == second
    assert second.text == max(draws, key=len)
    assert first.text in [c.text for c in model.generate([B] * 8, sampling)]
