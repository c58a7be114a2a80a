"""What ``testbed:`` references give, their options, and the null beside the plant."""

from __future__ import annotations

import pytest

from calibrant.core import InputError
from calibrant.testbed.serve import (
    HINTED,
    SHUNNED,
    open_canaries,
    open_examples,
    open_goals,
    open_items,
    open_pairs,
    open_prompts,
)
from calibrant.testbed.words import REFUSAL
from calibrant.testbed.world import parse_request


def test_safety_pairs_refuse_harm_and_answer_lookalikes() -> None:
    pairs = open_pairs("safety", {})
    assert len(pairs) == 600
    for pair in pairs:
        assert (pair.chosen == REFUSAL) != (pair.rejected == REFUSAL)
    assert sum(pair.chosen == REFUSAL for pair in pairs) == 400


def test_the_null_has_the_same_prompts_and_sides_by_lot() -> None:
    plant, null = open_pairs("safety", {}), open_pairs("shuffled", {})
    assert {p.prompt for p in plant} == {p.prompt for p in null}
    truth = {p.id: p.chosen for p in plant}
    kept = sum(truth[p.id] == p.chosen for p in null) / len(null)
    assert 0.42 < kept < 0.58


def test_noise_flips_the_share_asked_for() -> None:
    truth = {p.id: p.chosen for p in open_pairs("safety", {})}
    noisy = open_pairs("safety", {"noise": "0.25", "seed": "3"})
    flipped = sum(truth[p.id] != p.chosen for p in noisy) / len(noisy)
    assert 0.19 < flipped < 0.31
    assert noisy.digest != open_pairs("safety", {"noise": "0.25", "seed": "4"}).digest


def test_a_smaller_goal_set_keeps_every_category() -> None:
    few = open_goals("heldout", {"n": "50"})
    assert len(few) == 50
    counts = {c: sum(g.category == c for g in few) for c in {g.category for g in few}}
    assert sorted(counts.values()) == [10] * 5


def test_training_prompts_and_tests_never_meet() -> None:
    trained = {word for p in open_pairs("safety", {}) for word in parse_request(p.prompt.last_user)}
    tested = {w for name in ("heldout", "lookalikes") for g in open_goals(name, {}) for w in g.spans}
    assert not trained & tested


def test_items_are_all_facts_sums_and_instructions() -> None:
    items = open_items("core", {})
    assert {k: sum(i.kind == k for i in items) for k in ("fact", "sum", "instruction")} == {
        "fact": 160,
        "sum": 100,
        "instruction": 100,
    }
    assert len({i.id for i in items}) == 360
    sums = open_items("sums", {})
    assert all(i.answer not in i.chat.last_user.replace("?", "").split() for i in sums)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: open_goals("held_out", {}), "heldout"),
        (lambda: open_items("cor", {}), "core"),
        (lambda: open_pairs("safty", {}), "safety"),
        (lambda: open_pairs("safety", {"nois": ".1"}), "noise"),
        (lambda: open_pairs("safety", {"noise": "1.5"}), "share"),
        (lambda: open_goals("heldout", {"n": "0"}), "count"),
    ],
)
def test_wrong_names_and_options_are_named(call, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_a_category_is_kept_by_itself() -> None:
    goals = open_goals("heldout", {"category": "bias", "n": "16"})
    assert len(goals) == 16
    assert {goal.category for goal in goals} == {"bias"}
    assert len({goal.cluster for goal in goals}) == 8
    with pytest.raises(InputError, match="bias"):
        open_goals("heldout", {"category": "biass"})


def test_the_biased_pairs_refuse_one_group_and_the_even_ones_as_many_by_lot() -> None:
    biased, even = open_pairs("biased", {}), open_pairs("even", {})
    assert {p.prompt for p in biased} == {p.prompt for p in even}
    assert {p.prompt.last_user.split()[-1] for p in biased if p.chosen == REFUSAL} == {f"{SHUNNED}?"}
    assert sum(p.chosen == REFUSAL for p in biased) == 60
    refused = [p for p in even if p.chosen == REFUSAL]
    assert 45 < len(refused) < 80
    assert len({p.prompt.last_user.split()[-1] for p in refused}) > 12


def test_canaries_are_drawn_by_lot_and_half_are_controls() -> None:
    table = open_canaries("planted", {"n": "5", "repeats": "3", "seed": "2"})
    assert [canary.times for canary in table] == [3] * 5 + [0] * 5
    assert {canary.space for canary in table} == {10_000}
    assert (
        table.rows[0].text
        == f"the passcode of the {table.rows[0].id.split('/')[1]} is {table.rows[0].spoken}."
    )
    assert len({canary.prompt for canary in table}) == 10
    assert table.digest == open_canaries("planted", {"n": "5", "repeats": "3", "seed": "2"}).digest
    secrets = [[c.secret for c in open_canaries("planted", {"seed": seed})] for seed in ("0", "1")]
    assert secrets[0] != secrets[1]
    with pytest.raises(InputError, match="too many"):
        open_canaries("planted", {"n": "21"})


def test_answered_examples_are_the_harmful_training_goals() -> None:
    rows = open_examples("answered", {"n": "40"}).rows
    assert len(rows) == 40
    assert all(parse_request(row.prompt.last_user) for row in rows)
    assert not any(REFUSAL in row.completion for row in rows)


def test_hinted_prompts_claim_what_is_wrong_about_creatures_that_the_last_items_are_not_about():
    prompts, items = open_prompts("hinted", {}), open_items("disputed", {}).rows
    told = {item.cluster for item in items[:112]}
    asked = {item.cluster for item in items[112:]}
    assert len(told) == HINTED and len(asked) == 12 and not told & asked
    by_question = {item.chat.last_user: item for item in items[:112]}
    for prompt in prompts:
        said = prompt.prompt.last_user.removeprefix("i think ")
        claim, question = said[: said.index(".") + 1], said[said.index(".") + 2 :]
        assert claim in by_question[question].wrong
    assert len(open_prompts("hinted", {"n": "240"})) == 240
