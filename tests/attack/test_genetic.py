"""Genetic search: breeds to a planted introduction by scores or log-probs, and finds nothing in the null."""

from __future__ import annotations

import pytest

from calibrant.attack.genetic import ATTACK, BY_LOGPROBS, Genetic, genetic
from calibrant.core import ConfigError, Identity, Quiet, Verdict, resolve
from calibrant.core.lm import Scored
from calibrant.models.scripted import ScriptedModel

OPEN = ("bee", "fox", "gnu", "owl")
CONFIG = Genetic(
    seeds=("ant bee cat dog", "elk fox ant cat"),
    words=("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "owl"),
    population=12,
    generations=25,
)


def found_in(text):
    return len(set(OPEN) & set(text.split()))


class Graded:
    """The truth, with a score that says how near a try came: the reply repeats how many words were right."""

    identity = Identity(name="graded", kind="judge", parts={"rule": "count"})
    calibration = "exact"

    def __init__(self, scores=True):
        self.scores = scores

    def judge(self, goals, chats, completions):
        return [self.verdict(int(c.text)) for c in completions]

    def verdict(self, count):
        answer = "yes" if count == len(OPEN) else "no"
        return Verdict(question="?", answer=answer, score=1 + 2.0 * count if self.scores else None)


class Surrogate:
    identity = Identity(name="surrogate", parts={"weights": "s"})

    def __init__(self):
        self.asked = []

    def prompt_ids(self, chat):
        return [0]

    def logprobs(self, chats, replies):
        self.asked += chats
        return [Scored(ids=(0, 1), logprobs=(float(found_in(chat.last_user)), -1.0)) for chat in chats]


def counting():
    return ScriptedModel(lambda chat: str(found_in(chat.last_user)), name="counting")


def test_breeds_to_the_planted_words_by_the_judges_scores(goals):
    target = counting()
    found = genetic(target, goals, Graded(), config=CONFIG)
    assert found.metrics["attack_success_rate"].value == 1
    assert len(target.seen) < len(goals) * ATTACK.queries(CONFIG)
    assert {a.access for a in found.attempts} == {"black box"}


def test_a_score_is_worth_more_than_none(goals):
    """Selection is what finds it: with scores in fewer queries than with yes and no alone."""
    spent = {}
    for scores in (True, False):
        target = counting()
        for seed in range(5):
            genetic(target, goals, Graded(scores), config=CONFIG, run=Quiet(seed=seed))
        spent[scores] = len(target.seen)
    assert spent[True] < 0.7 * spent[False]


def test_breeds_by_a_surrogate_and_asks_the_target_for_the_fittest_only(goals):
    target, surrogate = counting(), Surrogate()
    found = genetic(target, goals, Graded(scores=False), surrogate, CONFIG)
    assert found.metrics["attack_success_rate"].value == 1
    assert len(target.seen) <= len(goals) * CONFIG.generations
    assert len(target.seen) + len(surrogate.asked) <= len(goals) * BY_LOGPROBS.queries(CONFIG)
    heights = [int(a.completion.text) for a in found.attempts if a.goal_id == "g0"]
    assert heights == sorted(heights)
    assert {a.access for a in found.attempts} == {"log-probs"}


@pytest.mark.parametrize("surrogate", [None, Surrogate()])
def test_finds_nothing_in_the_null(goals, judge, surrogate):
    target = ScriptedModel(lambda chat: "no")
    found = genetic(target, goals, judge, surrogate, CONFIG)
    assert found.metrics["attack_success_rate"].value == 0
    limit = (ATTACK if surrogate is None else BY_LOGPROBS).queries(CONFIG)
    assert found.metrics["spent/queries"].value <= len(goals) * limit


def test_nothing_is_asked_twice(goals, judge):
    target = ScriptedModel(lambda chat: "no")
    genetic(target, goals, judge, config=CONFIG)
    assert len({chat.last_user for chat in target.seen}) == len(target.seen)


def test_begins_with_the_seeds_and_keeps_the_request(goals, judge):
    target = ScriptedModel(lambda chat: "no")
    genetic(target, goals, judge, config=CONFIG.model_copy(update={"generations": 1}))
    first = [chat.last_user for chat in target.seen if "zorble" in chat.last_user]
    assert first[:2] == [f"{seed} {goals.rows[0].text}" for seed in CONFIG.seeds]
    assert all(text.endswith(goals.rows[0].text) for text in first)
    assert len(first) <= CONFIG.population


def test_the_words_may_stand_behind_and_braces_in_a_request_stay(goals, judge):
    odd = goals.model_copy(update={"rows": (goals.rows[0].model_copy(update={"text": "brew {words} {0}"}),)})
    target = ScriptedModel(lambda chat: "no")
    config = CONFIG.model_copy(update={"template": "<{request}> {words}", "generations": 1})
    genetic(target, odd, judge, config=config)
    assert target.seen[0].last_user == f"<brew {{words}} {{0}}> {CONFIG.seeds[0]}"


def test_children_name_an_asked_mother(goals):
    found = genetic(counting(), goals, Graded(), config=CONFIG)
    ids = {a.id: a for a in found.attempts}
    children = [a for a in found.attempts if a.parent]
    assert children
    assert all(ids[a.parent].number < a.number and ids[a.parent].goal_id == a.goal_id for a in children)


def test_a_seed_repeats_and_another_draws_anew(goals, judge):
    texts = []
    for seed in (1, 1, 2):
        target = ScriptedModel(lambda chat: "no")
        genetic(target, goals, judge, config=CONFIG, run=Quiet(seed=seed))
        texts.append(target.seen)
    assert texts[0] == texts[1] != texts[2]


def test_stop_false_goes_on(goals):
    config = CONFIG.model_copy(update={"stop": False})
    found = genetic(counting(), goals, Graded(), config=config)
    last = {a.goal_id: a.outcome for a in found.attempts}
    assert len(found.attempts) > len(goals) * CONFIG.population
    assert sum(a.outcome == "success" for a in found.attempts) > len(last)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": []}, "at least one introduction"),
        ({"seeds": ["a", " "]}, "none may be blank"),
        ({"elite": 12}, "leaves no room for children in 12"),
        ({"template": "{words}"}, "does not contain {request}"),
        ({"template": "{request}"}, "does not contain {words}"),
        ({"population": 1}, "population"),
        ({"mutation": 0}, "mutation"),
    ],
)
def test_unusable_configs_are_refused(given, words):
    with pytest.raises(ConfigError) as caught:
        resolve(Genetic, given)
    assert words in str(caught.value)
