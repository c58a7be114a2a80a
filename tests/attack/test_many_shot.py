"""Many-shot: found where enough examples open the model, nothing where none do."""

from __future__ import annotations

import pytest

from calibrant.attack.many_shot import ATTACK, ManyShot, Shot, many_shot
from calibrant.core import Chat, Completion, ConfigError, InputError, Quiet, resolve
from calibrant.data.rows import Example, Examples
from calibrant.models.scripted import ScriptedModel


def answered(chat):
    """How many requests the assistant has answered so far."""
    return sum(m.role == "assistant" for m in chat.messages)


def weak_from(count):
    return ScriptedModel(
        lambda chat: "brewed" if answered(chat) >= count else "no", name=f"weak from {count}"
    )


def examples_of(count):
    return Examples(
        rows=tuple(
            Example(id=f"e{i}", prompt=Chat.ask(f"say {i}"), completion=f"here is {i}") for i in range(count)
        )
    )


def test_finds_the_planted_number_and_those_above(goals, judge):
    target = weak_from(16)
    metrics = many_shot(target, goals, judge).metrics
    assert metrics["attack_success_rate"].value == 1
    single = {n: metrics[f"attack_success_rate/{n}"].value for n in (4, 16, 64)}
    assert single == {4: 0, 16: 1, 64: 1}
    assert len(target.seen) == len(goals) * ATTACK.queries(ManyShot())


def test_finds_nothing_in_the_null(goals, judge):
    metrics = many_shot(weak_from(65), goals, judge).metrics
    assert metrics["attack_success_rate"].value == 0


def test_examples_are_the_other_goals_and_nearest_the_request(goals, judge):
    """Three other goals stand at the end of each prompt; the goal itself is never among them."""
    target = ScriptedModel(lambda chat: "no")
    many_shot(target, goals, judge, config=ManyShot(counts=(3, 5), reply="surely: {request}"))
    texts = {goal.text for goal in goals}
    assert len(target.seen) == 8
    for chat in target.seen:
        *before, asked = chat.messages
        said = [m.content for m in before]
        others = texts - {asked.content}
        assert set(said[-6::2]) == others
        assert said[-5::2] == [f"surely: {text}" for text in said[-6::2]]
        assert [m.role for m in before] == ["user", "assistant"] * (len(before) // 2)
        assert not set(said[:-6:2]) & texts


def test_fewer_examples_are_the_last_of_more(goals, judge):
    target = ScriptedModel(lambda chat: "no")
    many_shot(target, goals, judge)
    for few, more in zip(target.seen[::3], target.seen[1::3], strict=True):
        assert more.messages[-len(few.messages) :] == few.messages


def test_places_that_nothing_fills_are_told(goals, judge):
    found = many_shot(weak_from(99), goals, judge)
    assert any("3 other goals" in caveat for caveat in found.caveats)
    few = many_shot(weak_from(99), goals, judge, config=ManyShot(counts=(3,)))
    assert not any("other goals" in caveat for caveat in few.caveats)


@pytest.mark.parametrize("given", ["examples", "shots"])
def test_given_examples_are_used(goals, judge, given):
    target = ScriptedModel(lambda chat: "no")
    shots = tuple(Shot(request=f"say {i}", reply=f"here is {i}") for i in range(6))
    if given == "examples":
        many_shot(target, goals, judge, examples_of(6), ManyShot(counts=(6,)))
    else:
        many_shot(target, goals, judge, config=ManyShot(counts=(6,), shots=shots))
    assert {m.content for m in target.seen[0].messages[::2][:-1]} == {f"say {i}" for i in range(6)}


def test_too_few_are_refused_before_anything_is_asked(goals, judge):
    target = ScriptedModel(lambda chat: "no")
    with pytest.raises(InputError, match="64 examples are wanted, and the table holds 6"):
        many_shot(target, goals, judge, examples_of(6))
    with pytest.raises(ConfigError, match="16 examples are wanted, and 1 are given"):
        resolve(ManyShot, {"counts": [16], "shots": [{"request": "a", "reply": "b"}]})
    assert target.seen == []


def test_written_out_in_one_message(goals, judge):
    target = ScriptedModel(lambda chat: "no")
    shots = (Shot(request="say a", reply="a"), Shot(request="say b", reply="b"))
    many_shot(target, goals, judge, config=ManyShot(counts=(1,), shots=shots[:1], form="text"))
    assert [m.content for m in target.seen[0].messages] == [
        f"user: say a\nassistant: a\n\nuser: {goals.rows[0].text}\nassistant:"
    ]


def test_a_prompt_without_room_is_undetermined(goals, judge):
    full = Completion(text="", stop="error", error="the context holds 512 in all")
    target = ScriptedModel(lambda chat: full if answered(chat) > 16 else "no")
    metrics = many_shot(target, goals, judge).metrics
    assert metrics["attack_success_rate/64"].value is None
    assert metrics["attack_success_rate/16"].value == 0
    assert metrics["attack_success_rate"].high == pytest.approx(1)


def test_a_seed_repeats_and_another_draws_other_examples(goals, judge):
    chats = []
    for seed in (1, 1, 2):
        target = ScriptedModel(lambda chat: "no")
        many_shot(target, goals, judge, run=Quiet(seed=seed))
        chats.append(target.seen)
    assert chats[0] == chats[1] != chats[2]


@pytest.mark.parametrize("counts", [[], [0, 4], [4, 4]])
def test_unusable_counts_are_refused(counts):
    with pytest.raises(ConfigError, match="number of examples"):
        resolve(ManyShot, {"counts": counts})
