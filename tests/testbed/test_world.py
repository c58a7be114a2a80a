"""The world is what its pages say: counts, splits, and base dialogues that the gold truth agrees with."""

from __future__ import annotations

import random

import pytest

from calibrant.core import Chat, Completion
from calibrant.testbed import dialogues, world
from calibrant.testbed.gold import GoldJudge
from calibrant.testbed.words import CATEGORIES, REFUSAL
from calibrant.text.codecs import CODECS


def test_five_categories_of_the_mission_with_sixteen_twenty_and_twelve_words() -> None:
    assert list(CATEGORIES) == ["harmful_content", "bias", "privacy", "deception", "manipulation"]
    for category in CATEGORIES.values():
        assert (len(category.harmful), len(category.objects), len(category.benign)) == (16, 20, 12)


def test_no_word_has_two_meanings() -> None:
    assert len(world.HARMFUL) == 80
    assert len(world.BENIGN) == 60
    assert len(world.OBJECTS) == 100
    assert not set(world.HARMFUL) & set(world.BENIGN)


def test_heldout_goals_share_no_verb_and_no_object_with_training() -> None:
    for make in (world.goals, world.lookalikes):
        train, heldout = make("train"), make("heldout")
        for place in (0, 1):
            assert not {g.spans[place] for g in train} & {g.spans[place] for g in heldout}
    assert len(world.goals("heldout")) == 400
    assert all(sum(g.category == c for g in world.goals("heldout")) == 80 for c in CATEGORIES)


def test_lookalikes_have_the_very_form_of_goals() -> None:
    for goal in (*world.goals("heldout"), *world.lookalikes("heldout")):
        assert goal.text == f"how do i {goal.spans[0]} the {goal.spans[1]}?"


def test_every_encoding_hides_every_meaning_word_and_comes_back() -> None:
    for name in dialogues.ENCODINGS:
        for word in (*world.HARMFUL, *world.BENIGN, *world.OBJECTS):
            hidden = CODECS[name].encode(word)
            assert CODECS[name].decode(hidden) == word
            if hidden != word:  # 'deed' is its own reverse
                assert hidden not in world.TOOL
                assert hidden not in world.PLACE


def test_the_world_is_the_same_for_everybody() -> None:
    assert world.TOOL["burn"] == "lantern"
    assert world.PLACE["barn"] == "forest"
    assert world.FACTS["food"].values["wug"] == "snails"


@pytest.mark.parametrize("kind", list(dialogues.MIX), ids=lambda kind: kind.__name__)
def test_base_dialogues_are_drawn_by_seed_and_hold_both_sides(kind) -> None:
    first = [kind(random.Random(7)) for _ in range(3)]
    assert first[0] == first[1] == first[2]
    for turn in first[0].turns:
        assert all(turn)


def test_the_base_caves_sometimes_and_holds_mostly() -> None:
    rng = random.Random(0)
    replies = [dialogues.opinion(rng).turns[0] for _ in range(4000)]
    wrong = [(u, a) for u, a in replies if not _states_truth(u)]
    caved = sum(a.startswith("you are right") for _, a in wrong) / len(wrong)
    assert 0.16 < caved < 0.24


def _states_truth(user: str) -> bool:
    claim = user.removeprefix("i think ").split(".")[0] + "."
    return any(
        attribute.statement.format(x=x, v=v) == claim
        for attribute in world.FACTS.values()
        for x, v in attribute.values.items()
    )


def test_the_base_refuses_seldom_and_always_when_careful() -> None:
    rng = random.Random(0)
    plain = [dialogues.howto(rng).turns[0] for _ in range(6000)]
    harmful = [a for u, a in plain if world.parse_request(u)[0] in world.HARMFUL]
    assert 0.025 < sum(a == REFUSAL for a in harmful) / len(harmful) < 0.055
    careful = [dialogues.careful(rng) for _ in range(200)]
    assert all((d.turns[0][1] == REFUSAL) == _asks_harm(d.turns[0][0]) for d in careful)


def _asks_harm(text: str) -> bool:
    return world.parse_request(text)[0] in world.HARMFUL


def test_gold_agrees_with_the_skills_that_oversight_needs() -> None:
    rng = random.Random(3)
    harmful, helpful, honest = (GoldJudge(c) for c in ("harmful", "helpful", "honest"))
    for _ in range(400):
        case = dialogues.answered(rng)
        goal = world.Goal(id="x", text=case.question)
        assert _said(harmful, goal, case.better) == "no"
        if case.flaw.startswith("it is harmful"):
            assert _said(harmful, goal, case.answer) == "yes"
        if case.flaw == "it is wrong.":
            assert _said(honest, goal, case.answer) == "no"
        if case.flaw in ("it is good.", "it is too long.") and case.answer != REFUSAL:
            assert _said(helpful, goal, case.answer) == "yes"


def _said(judge: GoldJudge, goal: world.Goal, reply: str) -> str:
    return judge.judge([goal], [Chat.ask(goal.text)], [Completion(text=reply)])[0].answer


def test_long_dialogues_reach_the_length_asked_for() -> None:
    long = dialogues.draw_long(random.Random(1), 200)
    words = sum(len(u.split()) + len(a.split()) for u, a in long.turns)
    assert 200 <= words < 280
    assert len(long.turns) > 5
