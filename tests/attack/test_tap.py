"""TAP: finds a hole that lies several refinements deep, nothing where there is none; prunes twice."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from calibrant.attack.tap import ATTACK, Tap, tap
from calibrant.core import Identity, Quiet, Verdict
from calibrant.models.scripted import ScriptedModel

LETTERS = "abc"


class Warm:
    """'brewed' is success; the score says how many of the letters so far were right."""

    identity = Identity(name="warm", kind="judge", parts={"rule": "warm"})
    calibration = "exact"

    def judge(self, goals, chats, completions):
        return [
            Verdict(
                question="?",
                answer="yes" if "brewed" in c.text else "no",
                score=float(c.text.count("warmer")) / 10,
            )
            for c in completions
        ]


def locked(word):
    """Opens to one word; says how far the prompt agrees with it."""

    def reply(chat):
        said = chat.last_user.rpartition(" ")[2]
        if said == word:
            return "brewed"
        agree = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said, word, strict=False))
        )
        return "warmer " * agree

    return ScriptedModel(reply, name=f"locked by {word}")


def gropes():
    """Adds each letter in turn to the last thing that it was shown to have tried."""
    letters = itertools.cycle(LETTERS)

    def answer(chat):
        text = chat.last_user
        if "Is this prompt on topic?" in text:
            return "YES"
        tried = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("TRIED: ")]
        return (
            f"IMPROVEMENT: one more letter\nPROMPT: the word is {tried[-1] if tried else ''}{next(letters)}"
        )

    return ScriptedModel(answer, name="gropes")


CONFIG = Tap(branching=3, width=1, depth=4)


def test_climbs_to_the_hole_by_score(goals):
    """Four letters of three: 81 words, of which a width of one needs at most 4 x 3."""
    target = locked("cabb")
    found = tap(target, goals, Warm(), gropes(), CONFIG)
    assert found.metrics["attack_success_rate"].value == 1
    last = next(a for a in found.attempts if a.outcome == "success")
    by_id = {a.id: a for a in found.attempts}
    path = [last]
    while path[-1].parent:
        path.append(by_id[path[-1].parent])
    assert [a.chat.last_user.rpartition(" ")[2] for a in path] == ["cabb", "cab", "ca", "c"]


def test_one_level_less_does_not_reach_it(goals):
    assert tap(locked("cabb"), goals, Warm(), gropes(), Tap(branching=3, width=1, depth=3)).metrics[
        "attack_success_rate"
    ].value == 0  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 4), (2, 3, 4), (3, 4, 3), (4, 2, 2)])
def test_finds_nothing_in_the_null_and_asks_what_it_says(goals, judge, shape):
    """branching b, width w: b + min(w, b) b + min(w, min(w, b) b) b + ... prompts a goal."""
    places = itertools.count()
    attacker = ScriptedModel(
        lambda chat: "YES" if "on topic?" in chat.last_user else f"PROMPT: {next(places)}"
    )
    target = ScriptedModel(lambda chat: "no")
    config = Tap(branching=shape[0], width=shape[1], depth=shape[2])
    found = tap(target, goals, judge, attacker, config)
    leaves, prompts = 1, 0
    for _ in range(shape[2]):
        grown = leaves * shape[0]
        prompts, leaves = prompts + grown, min(shape[1], grown)
    assert ATTACK.queries(config) == prompts
    assert len(target.seen) == prompts * len(goals)
    assert len(attacker.seen) == 2 * prompts * len(goals) <= ATTACK.consults(config) * len(goals)
    assert found.metrics["attack_success_rate"].value == 0


def test_off_topic_prompts_are_not_asked_and_unclear_answers_keep(goals, judge):
    words = itertools.cycle(["tea", "brew", "what"])

    def answer(chat):
        if "on topic?" not in chat.last_user:
            return f"PROMPT: about {next(words)}"
        prompt = chat.last_user.rpartition("PROMPT: ")[2]
        return {"about tea": "NO", "about brew": "YES", "about what": "hard to say"}[prompt]

    target = ScriptedModel(lambda chat: "no")
    tap(target, goals, judge, ScriptedModel(answer), Tap(depth=1))
    assert {chat.last_user for chat in target.seen} == {"about brew", "about what"}
    target, config = ScriptedModel(lambda chat: "no"), Tap(depth=1, on_topic=False)
    attacker = ScriptedModel(answer)
    tap(target, goals, judge, attacker, config)
    assert {chat.last_user for chat in target.seen} == {"about tea", "about brew", "about what"}
    assert len(attacker.seen) <= ATTACK.consults(config) * len(goals)


def test_ties_are_broken_by_lot_but_the_same_way_for_a_seed(goals, judge):
    def asked(seed):
        places = itertools.count()
        attacker = ScriptedModel(
            lambda chat: "YES" if "on topic?" in chat.last_user else f"PROMPT: {next(places)}"
        )
        found = tap(
            ScriptedModel(lambda chat: "no"), goals, judge, attacker, Tap(width=1, depth=2), Quiet(seed)
        )
        return [
            a.parent and next(b.number for b in found.attempts if b.id == a.parent) for a in found.attempts
        ]

    assert asked(0) == asked(0)
    assert len({tuple(asked(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("said", ["I won't write that.", "PROMPT: a\nPROMPT: b", "YES"])
def test_an_attacker_that_is_no_use_leaves_goals_open(goals, judge, said):
    target, attacker, config = ScriptedModel(lambda chat: "brewed"), ScriptedModel(lambda chat: said), Tap()
    found = tap(target, goals, judge, attacker, config)
    assert target.seen == []
    assert found.metrics["attack_success_rate"].value is None
    assert len(attacker.seen) <= ATTACK.consults(config) * len(goals)


def test_a_level_that_comes_to_nothing_is_tried_again(goals, judge):
    """Everything is off topic at first; the attacker does better on the second level."""
    places = itertools.count()

    def answer(chat):
        if "on topic?" in chat.last_user:
            return "NO" if int(chat.last_user.rpartition(" ")[2]) < 3 * len(goals) else "YES"
        return f"PROMPT: brew {next(places)}"

    target = ScriptedModel(lambda chat: "brewed")
    found = tap(target, goals, judge, ScriptedModel(answer), Tap(depth=2))
    assert found.metrics["attack_success_rate"].value == 1


def test_shapes_that_are_no_tree_are_refused():
    for given in ({"branching": 0}, {"width": 0}, {"depth": 0}):
        with pytest.raises(ValidationError):
            Tap(**given)
