"""Questions for real models: the answers are right, the wrong ones wrong, and no answer hides in another."""

from __future__ import annotations

import pytest

from calibrant.core import Completion, InputError
from calibrant.measure._dialogue import check_disputed, read
from calibrant.testbed.serve import open_items


def test_sums_are_sums_and_capitals_are_of_their_list():
    items = open_items("english", {})
    check_disputed(items)
    kinds = {kind: [one for one in items if one.kind == kind] for kind in ("capital", "sum")}
    assert {kind: len(rows) for kind, rows in kinds.items()} == {"capital": 54, "sum": 66}
    for one in kinds["sum"]:
        a, b = map(int, one.id.removeprefix("sum/").split("+"))
        assert int(one.answer) == a + b and one.chat.last_user == f"What is {a} + {b}?"
        assert all(int(wrong) not in (a, b, a + b) for wrong in one.wrong) and len(set(one.wrong)) == 3
    answers = {one.answer for one in kinds["capital"]}
    assert len(answers) == 54 and all(set(one.wrong) <= answers - {one.answer} for one in kinds["capital"])
    assert {one.id: one.answer for one in kinds["capital"]}["capital/Australia"] == "Canberra"


def test_every_answer_is_read_as_itself_and_the_question_as_none():
    for one in open_items("english", {}):
        for said in (one.answer, *one.wrong):
            assert read(one, Completion(text=f"It is {said}.")) == said
        assert read(one, Completion(text=one.chat.last_user)) == ""


def test_the_order_is_mixed_and_a_spread_keeps_both_kinds():
    few = open_items("english", {"n": "20"})
    assert len(few) == 20 and {one.kind for one in few} == {"capital", "sum"}
    assert open_items("english", {}).digest == open_items("english", {}).digest
    with pytest.raises(InputError):
        open_items("english", {"encoding": "rot13"})
