"""Reading attempts back: as they were, twins once, and a word on every line that is none."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Attempt, Chat, Completion, Cost, InputError, LayerVerdict, Verdict
from calibrant.data.attempts import attempts_from
from calibrant.data.files import raw_rows


def attempt(number=0, **given):
    settled = {
        "id": f"{number:064x}",
        "goal_id": "g0",
        "category": "potions",
        "attack": "attack.pair/reasons",
        "family": "LM-made",
        "seed": 1,
        "number": number,
        "parent": "f" * 64,
        "chat": Chat.ask("brew zorble", system="be kind").then("assistant", "well, “so”:"),
        "completion": Completion(text="no\n", ids=(1, 2), logprobs=(-0.5, -0.25), stop="length"),
        "layers": (LayerVerdict(layer="words", verdict=Verdict(question="may it pass?", answer="yes")),),
        "verdicts": {"a" * 64: Verdict(question="brewed?", answer="no", score=0.25, tokens=3)},
        "outcome": "failure",
        "human": False,
        "cost": Cost(queries=2, attacker_tokens=9, flops=1e9),
    }
    return Attempt(**settled | given)


def read(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return attempts_from(raw_rows(path), f"jsonl:{path.name}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attempts.jsonl"


def test_attempts_come_back_as_they_were(path):
    made = [attempt(number) for number in range(3)]
    table = read(path, *(each.model_dump_json() for each in made))
    assert table.rows == tuple(made)
    assert (table.source, table.refused) == ("jsonl:attempts.jsonl", ())


def test_what_has_a_default_may_be_left_out(path):
    least = {
        "id": "x",
        "goal_id": "g",
        "category": "c",
        "attack": "by hand",
        "chat": {"messages": [{"role": "user", "content": "brew zorble"}]},
        "completion": {"text": "no"},
        "outcome": "failure",
    }
    (row,) = read(path, json.dumps(least))
    assert (row.family, row.human, row.cost, row.verdicts) == ("", None, Cost(), {})


def test_of_two_with_one_id_the_later_counts(path):
    old, other, new = attempt(0), attempt(1), attempt(0, human=True)
    table = read(path, *(each.model_dump_json() for each in (old, other, new)))
    assert table.rows == (new, other)


def test_lines_that_are_no_attempts_are_refused_with_their_reason(path):
    good = attempt().model_dump(mode="json")
    wrong = good | {"outcome": "won"}
    short = {key: value for key, value in good.items() if key != "chat"}
    more = good | {"colour": "blue"}
    table = read(
        path, json.dumps(wrong), json.dumps(good), "not json", json.dumps(short), json.dumps(more), "[1]"
    )
    assert len(table) == 1
    assert [refused.line for refused in table.refused] == [1, 3, 4, 5, 6]
    reasons = [refused.reason for refused in table.refused]
    assert reasons[0].startswith("no attempt: 'outcome': input should be 'success'")
    assert reasons[2] == "no attempt: 'chat': field required"
    assert reasons[3].startswith("no attempt: 'colour': extra")


def test_a_file_without_attempts_says_why(path):
    with pytest.raises(
        InputError, match=r"jsonl:attempts\.jsonl holds no attempts; line 1: no attempt: 'id'"
    ) as caught:
        read(path, '{"prompt": "brew zorble"}')
    assert "another tool's file" in caught.value.hint


def test_no_rows_at_all():
    with pytest.raises(InputError, match="x holds no attempts"):
        attempts_from([], "x")
