"""The policy guard by log-probability: the score, what is no score, and models that give none."""

from __future__ import annotations

import math

import pytest

from calibrant.core import CapabilityError, Chat, NumericalError, Scored
from calibrant.data.guard_policy import GuardPolicy, Rule
from calibrant.defend.policy_guard import PolicyGuard, policy_guard
from calibrant.models.scripted import ScriptedModel, ScriptedScoring

RULE = Rule(id="zorble", title="Zorble", definition="The text asks for zorble.")
POLICY = GuardPolicy(name="made", version="1", rules=(RULE,))
LOG = math.log


def guard(model, **config):
    return policy_guard(model, POLICY, PolicyGuard(**config))


class Rated(ScriptedScoring):
    """Log-probs by a function of the reply."""

    def __init__(self, allowed, violation):
        super().__init__(
            ScriptedModel([]), lambda chat, reply: {"allowed": allowed, "violation": violation}[reply]
        )


@pytest.mark.parametrize(
    ("allowed", "violation", "expected"),
    [
        (LOG(0.8), LOG(0.2), "yes"),
        (LOG(0.2), LOG(0.8), "no"),
        (LOG(0.5), LOG(0.5), "no"),
        (LOG(0.004), LOG(0.001), "unknown"),  # neither answer is likely
        (-2000.0, -1.0, "no"),
        (-1.0, -2000.0, "yes"),
        (math.nan, LOG(0.1), "unknown"),
        (LOG(0.9), math.nan, "unknown"),
        (-math.inf, LOG(0.9), "unknown"),
        (LOG(0.9), -math.inf, "unknown"),
        (math.inf, LOG(0.1), "unknown"),
        (2.0, LOG(0.1), "unknown"),  # no probability
    ],
)
def test_a_score_is_the_probability_of_a_violation(allowed, violation, expected):
    found = guard(Rated(allowed, violation), by_logprob=True).ask([Chat.ask("hello")], "input")[0]
    assert found.answer == expected
    if expected in ("yes", "no"):
        assert found.score == pytest.approx(1 / (1 + math.exp(min(700, allowed - violation))))


def test_the_threshold_and_the_worst_part():
    strict = guard(Rated(LOG(0.8), LOG(0.2)), by_logprob=True, threshold=0.1)
    assert strict.ask([Chat.ask("hello")], "input")[0].answer == "no"

    def total(chat, reply):
        bad = "zorble" in chat.last_user.partition(" BEGIN\n")[2]
        return LOG(0.9 if bad == (reply == "violation") else 0.1)

    parts = guard(ScriptedScoring(ScriptedModel([]), total), by_logprob=True, size=200, overlap=20)
    found = parts.ask([Chat.ask("x" * 300 + "zorble" + "x" * 300), Chat.ask("x" * 600)], "input")
    assert [verdict.answer for verdict in found] == ["no", "yes"]
    assert [verdict.score for verdict in found] == pytest.approx([0.9, 0.1])


def test_no_log_probs_are_refused_and_failures_are_unknown():
    with pytest.raises(CapabilityError, match="gives no log-probabilities"):
        guard(ScriptedModel(["allowed"]), by_logprob=True).ask([Chat.ask("hello")], "input")

    class Broken(Rated):
        def logprobs(self, chats, replies):
            raise NumericalError("the log-probs are NaN")

    class Empty(Rated):
        def logprobs(self, chats, replies):
            return [Scored(ids=(), logprobs=()) for _ in chats]

    class Short(Rated):
        def logprobs(self, chats, replies):
            return super().logprobs(chats[:1], replies[:1])

    for kind in (Broken, Empty):
        found = guard(kind(-1.0, -1.0), by_logprob=True).ask([Chat.ask("hello")], "input")[0]
        assert (found.answer, found.score) == ("unknown", None)
    with pytest.raises(CapabilityError, match="1 answers to 2"):
        guard(Short(-1.0, -1.0), by_logprob=True).ask([Chat.ask("hello")], "input")
    with pytest.raises(CapabilityError, match="0 answers to 1"):

        class Silent(ScriptedModel):
            def generate(self, chats, sampling=None):
                return []

        guard(Silent([])).ask([Chat.ask("hello")], "input")
