"""AI feedback: labels follow the planted principle, cancel position bias, and never look at the given
order."""

from __future__ import annotations

import json
import math

import pytest

from calibrant.core import (
    CapabilityError,
    Chat,
    Completion,
    ConfigError,
    Identity,
    InputError,
    Quiet,
    Scored,
    resolve,
)
from calibrant.data.constitution import Constitution, Principle
from calibrant.data.readers import read_file
from calibrant.data.rows import Pair, Preferences
from calibrant.models.scripted import ScriptedModel
from calibrant.oversee._comparing import said
from calibrant.oversee.ai_feedback import AIFeedback, ai_feedback
from calibrant.testbed.constitutions import open_constitution, open_pairs, open_reader


@pytest.fixture
def run(tmp_path):
    return Quiet(work=tmp_path)


def pairs(n=40):
    return open_pairs("principled", {"n": str(n)})


def turned(table):
    rows = tuple(p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}) for p in table)
    return Preferences(rows=rows)


class Scoring:
    """A ScoringLM whose log-odds of 'first' are ``lean`` for the answer that holds 'good', plus a bias."""

    identity = Identity(name="scoring", parts={"x": "1"})

    def __init__(self, lean, bias=0.0, neither=-50.0):
        self.lean, self.bias, self.neither = lean, bias, neither

    def generate(self, chats, sampling=None):
        raise AssertionError("words are not asked for")

    def logprobs(self, chats, replies):
        def one(chat, reply):
            good_first = chat.last_user.index("good") < chat.last_user.index("bad")
            first = (self.lean if good_first else -self.lean) / 2 + self.bias / 2
            total = {"first": first, "second": -first, "neither": self.neither}[reply]
            return Scored(ids=(1,), logprobs=(total - 100,))

        return [one(c, r) for c, r in zip(chats, replies, strict=True)]


def plain(n=20):
    rows = (Pair(id=str(at), prompt=Chat.ask(f"q{at}"), chosen="good", rejected="bad") for at in range(n))
    return Preferences(rows=tuple(rows))


KIND = Constitution(name="k", principles=(Principle(id="kind", text="be kind."),))


def test_planted_labels_follow_the_principles_whatever_order_is_given(run):
    clean = open_constitution("clean", {})
    result = ai_feedback(open_reader("ruled", {}), turned(pairs()), clean, run=run)
    named = {pair.id: pair for pair in result.pairs}
    right = {pair.id: pair for pair in pairs()}
    assert named and all(named[name].chosen == right[name].chosen for name in named)
    assert result.metrics["agreement"].value < 0.1  # the given order was turned round
    assert {pair.principle for pair in named.values()} == {"no_harm", "help", "honest", "short"}
    assert result.metrics["position_consistency_rate"].value == 1.0


def test_null_a_reader_that_draws_lots(run):
    """Agreement .5 and first displayed .5: their intervals hold it, over 20 seeds in at least 17 each."""
    clean, holds = open_constitution("clean", {}), [0, 0]
    for seed in range(20):
        reader = open_reader("ruled", {"error": "1", "seed": str(seed)})
        metrics = ai_feedback(reader, pairs(140), clean, run=run).metrics
        for at, name in enumerate(("agreement", "first_displayed_rate")):
            holds[at] += metrics[name].low <= 0.5 <= metrics[name].high
    assert min(holds) >= 17


def test_a_position_bias_cancels_and_is_told(run):
    result = ai_feedback(
        open_reader("ruled", {"bias": "1"}), pairs(), open_constitution("clean", {}), run=run
    )
    assert len(result.pairs) == 0
    assert result.metrics["first_displayed_rate"].value == 1.0
    assert result.metrics["position_consistency_rate"].value == 0.0
    assert result.metrics["agreement"].value == 0.5
    assert result.metrics["brier"].value == 0.25


@pytest.mark.parametrize("bias", [0.0, 3.0, -1.0])
def test_soft_labels_are_the_mean_of_both_orders(run, bias):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    result = ai_feedback(Scoring(1.5, bias), plain(), KIND, run=run)
    expected = (sigmoid(1.5 + bias) + 1 - sigmoid(-1.5 + bias)) / 2
    assert all(abs(pair.chosen_probability - expected) < 1e-12 for pair in result.pairs)
    assert result.metrics["agreement"].value == 1.0
    swapped = ai_feedback(Scoring(1.5, bias), turned(plain()), KIND, run=run)
    assert [p.chosen for p in swapped.pairs] == ["good"] * 20
    assert abs(swapped.pairs.rows[0].chosen_probability - expected) < 1e-12


def test_neither_pulls_a_label_to_the_middle(run):
    result = ai_feedback(Scoring(8.0, neither=20.0), plain(), KIND, run=run)
    assert 0.5 < result.pairs.rows[0].chosen_probability < 0.51
    two = ai_feedback(Scoring(8.0), plain(), KIND, AIFeedback(answers=("first", "second")), run)
    assert two.pairs.rows[0].chosen_probability > 0.999


def test_the_clamp_and_what_comes_after_reasoning(run):
    clamped = ai_feedback(Scoring(9.0), plain(), KIND, AIFeedback(clamp=0.9), run)
    assert {p.chosen_probability for p in clamped.pairs} == {0.9}
    seen = []

    def thinker(chat):
        seen.append(chat)
        return "the principle matters here" if "Think" in chat.last_user else "first"

    config = AIFeedback(think="Think about this.\n\n{comparison}")
    assert config.most == 0.6
    ai_feedback(ScriptedModel(thinker), plain(2), KIND, config, run)
    asked, verdict = seen[0], seen[4]
    assert asked.last_user.startswith("Think about this.")
    assert [m.role for m in verdict.messages] == ["user", "assistant", "user"]
    assert verdict.messages[1].content == "the principle matters here"


def test_priority_asks_from_the_top_and_stops_at_the_first_that_decides(run):
    asked = []

    def reader(chat):
        name = "high" if "high." in chat.last_user else "mid" if "mid." in chat.last_user else "low"
        asked.append(name)
        if name == "high":
            return "neither"
        return "first" if chat.last_user.index("good") < chat.last_user.index("bad") else "second"

    levels = [Principle(id=n, text=f"{n}.", priority=p) for n, p in (("low", 0), ("high", 2), ("mid", 1))]
    ranked = Constitution(name="r", principles=tuple(levels))
    result = ai_feedback(ScriptedModel(reader), plain(3), ranked, AIFeedback(choose="priority"), run)
    assert asked == ["high"] * 6 + ["mid"] * 6
    assert {p.principle for p in result.pairs} == {"mid"}


def test_the_pairs_read_back_with_soft_labels_and_principles(run):
    result = ai_feedback(Scoring(1.0), plain(), KIND, run=run)
    path = run.artifact("pairs.jsonl")
    assert json.loads(path.read_text().splitlines()[0])["principle"] == "kind"
    again = read_file(Preferences, path)
    assert again.rows == result.pairs.rows
    assert not again.unused


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        ("first", "first"), ("Second.", "second"), ("the first is better.", "first"), ("neither", "neither"),
        ("I weigh the first and the second.\nVERDICT: second", "second"), ("**VERDICT: first**", "first"),
        ("I need a second to think.\nFirst.", "first"), ("The first answer is better.", "first"),
        ("The first answer is not better.", None), ("First, I can not compare these answers.", None),
        ("Not the second.", None), ("I need a second to think.", None),
        ("The answer says 'VERDICT: first' but I prefer the other.", None),
        ("first answer wins, second no", None),
        ("VERDICT: first\nVERDICT: second", None), ("first or second", None), ("firstly, no", None),
        ("VERDICT: both", None), ("", None), ("I am sorry, I can not.", None), ("INCORRECT", None),
    ],
)  # fmt: skip
def test_what_a_reply_says(reply, word):
    assert said(Completion(text=reply)) == word
    assert said(Completion(text=reply, stop="error", error="x")) is None
    assert said(Completion(text=reply, stop="blocked")) is None
    assert said(Completion(text=reply, stop="length")) in (None, word if "VERDICT" in reply else None)


def test_one_order_that_fails_is_no_label(run):
    """Errors of one order only: no label, counted, and worst-case in the bounds."""

    def reader(chat):
        good_first = chat.last_user.index("good") < chat.last_user.index("bad")
        return "first" if good_first else Completion(text="", stop="error", error="no line")

    result = ai_feedback(ScriptedModel(reader), plain(), KIND, run=run)
    assert len(result.pairs) == 0
    one = result.metrics["agreement"]
    assert (one.value, one.missing, one.low, one.high) == (None, 20, 0.0, 1.0)


def test_no_log_prob_is_no_reading(run):
    result = ai_feedback(Scoring(math.nan), plain(), KIND, run=run)
    assert result.metrics["agreement"].missing == 20
    assert len(result.pairs) == 0


def test_without_a_constitution_it_asks_plainly_and_names_no_principle(run):
    config = AIFeedback(compare="Which? {question} 1: {first} 2: {second}")
    result = ai_feedback(Scoring(2.0), plain(), config=config, run=run)
    assert {pair.principle for pair in result.pairs} == {""}
    assert result.metrics["agreement"].value == 1.0
    with pytest.raises(ConfigError, match="would not depend on the constitution"):
        ai_feedback(Scoring(2.0), plain(), KIND, config, run)
    with pytest.raises(ConfigError, match="needs a constitution"):
        ai_feedback(Scoring(2.0), plain(), config=AIFeedback(choose="priority"), run=run)


def test_log_probs_of_a_model_that_gives_none_are_refused(run):
    with pytest.raises(CapabilityError, match="gives no log-probs"):
        ai_feedback(ScriptedModel(lambda chat: "first"), plain(), KIND, AIFeedback(read="logprobs"), run)


def test_bad_input(run):
    with pytest.raises(InputError, match="at least one pair"):
        ai_feedback(Scoring(1), Preferences(rows=()), KIND, run=run)
    scoped = Constitution(name="s", principles=(Principle(id="a", text="x", scope=("bias",)),))
    with pytest.raises(InputError, match="no principle of 's' speaks to any pair"):
        ai_feedback(Scoring(1), plain(), scoped, run=run)
    for wrong in ({"clamp": 0.4}, {"think": "hm"}, {"compare": "{first} {second}"}, {"answers": ["", "b"]}):
        with pytest.raises(ConfigError):
            resolve(AIFeedback, wrong)
