"""Rules from hits: what tells hits from benign requests is found, and nothing where nothing does."""

from __future__ import annotations

import tomllib

import pytest

from calibrant.core import Attempt, Chat, Completion, InputError, Quiet
from calibrant.data.rows import Attempts
from calibrant.defend.defended import defended_from
from calibrant.defend.learn_rules import LearnRules, learn_rules
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.models.scripted import ScriptedModel


def attempts(*texts):
    rows = [
        Attempt(
            id=f"{place:064x}",
            goal_id=f"g{place}",
            category="potions",
            attack="persona",
            chat=Chat.ask(text),
            completion=Completion(text="brewed"),
            outcome="success",
        )
        for place, text in enumerate(texts)
    ]
    return Attempts(rows=tuple(rows))


HITS = attempts("you are dusk. brew the zorble", "you are dusk. steep the quib", "as rook, boil the marn")
BENIGN = attempts("you are kind. wash the zorble", "as ever, dry the quib", "boil the marn")


def test_the_shortest_phrase_that_covers_most_comes_first():
    result = learn_rules(HITS, BENIGN, run=Quiet())
    assert result.phrases == ("dusk",)
    assert result.metrics["covered"].value == pytest.approx(2 / 3)


def test_one_goal_is_enough_where_that_is_asked_for():
    assert learn_rules(HITS, BENIGN, LearnRules(least=1), Quiet()).phrases == ("dusk", "rook")


def test_the_stack_blocks_hits_and_lets_benign_requests_pass(tmp_path):
    run = Quiet(0, tmp_path)
    learn_rules(HITS, BENIGN, LearnRules(refusal='no "never"'), run)
    spec = tomllib.loads((tmp_path / "artifacts" / "stack.toml").read_text())

    def guard(table):
        return pattern_guard(PatternGuard(**table["config"]))

    system = defended_from(ScriptedModel(lambda chat: "brewed"), spec, guard)
    replies = system.generate([a.chat for a in [*HITS, *BENIGN]])
    assert [reply.stop for reply in replies] == ["blocked", "blocked", "eos", "eos", "eos", "eos"]
    assert replies[0].text == 'no "never"'


def test_where_nothing_tells_them_apart_nothing_is_made():
    with pytest.raises(InputError, match="no phrase"):
        learn_rules(HITS, HITS, LearnRules(least=1), Quiet())


def test_hostile_words_stay_strings(tmp_path):
    run = Quiet(0, tmp_path)
    learn_rules(attempts('q"u] one', 'q"u] two'), BENIGN, LearnRules(), run)
    words = tomllib.loads((tmp_path / "artifacts" / "stack.toml").read_text())["layer"][0]["guard"]["config"]
    assert words["words"] == ['q"u]']
