"""Copies of a question tell nothing new: a table holds each once, and n counts distinct ones."""

from __future__ import annotations

from typing import Any

import pytest

from calibrant.core import Chat, Goal, InputError
from calibrant.data.distinct import check_distinct, normal, normal_chat
from calibrant.data.readers import read
from calibrant.data.rows import ClassedTexts, Goals, Item, Items, LabelledTexts

COPIES = [
    "Brew zorble", "Brew zorble ", "  Brew zorble\n", "BREW ZORBLE", "brew  zorble", "Brew\u00a0zorble",
    "Brew\u3000zorble", "Brew zor\u200bble", "\ufeffBrew zorble", "Brew zorb\u00adle", "Ｂrew zorble",
    "Brew\r\nzorble", "Brew zorble\u2060",
]  # fmt: skip
OTHERS = ["Brew zorble!", "Brew zorbles", "Brew zorble 2", "Brew quib", "brew-zorble"]


def test_what_is_one_text_and_what_is_not():
    assert {normal(text) for text in COPIES} == {"brew zorble"}
    assert len({normal(text) for text in OTHERS} | {"brew zorble"}) == len(OTHERS) + 1
    assert normal("caf\u00e9") == normal("cafe\u0301") == normal("CAFE\u0301")
    assert normal("x + 1") != normal("x - 1")
    assert normal(normal("\u1e9e \u0130\u0345")) == normal("\u1e9e \u0130\u0345")
    assert normal_chat(Chat.ask("Hi ")) == normal_chat(Chat.ask("hi"))


def test_120_copies_of_one_goal_are_one_goal():
    rows = [(n, {"text": f"Brew zorble{' ' * n}", "cluster": str(n)}) for n in range(1, 121)]
    table = read(Goals, [*rows, (121, {"text": "Brew quib"})], "jsonl:mine.jsonl")
    assert [goal.id for goal in table] == ["mine:1", "mine:121"]
    assert len(table.refused) == 119
    assert table.refused[0].line == 2
    assert table.refused[0].reason == "copy: asks the same as 'mine:1'"


def test_every_copy_is_refused_and_every_other_goal_taken():
    rows: list[tuple[int, Any]] = [(n, {"text": text}) for n, text in enumerate([*COPIES, *OTHERS], 1)]
    table = read(Goals, rows, "x.jsonl")
    assert [goal.text for goal in table] == [COPIES[0], *OTHERS]
    twins = [(1, {"text": "Brew it", "harmful": True}), (2, {"text": "Brew it", "harmful": False})]
    assert len(read(Goals, twins, "x.jsonl")) == 2  # a contradiction, not a copy


def test_items_are_distinct_by_question_and_answer():
    rows = [(1, {"question": "2 + 2", "answer": "4"}), (2, {"question": "2 + 2 ", "answer": " 4"}),
            (3, {"question": "2 + 2", "answer": "5"}), (4, {"question": "2 - 2", "answer": "4"})]  # fmt: skip
    assert [item.id for item in read(Items, rows, "x.jsonl")] == ["x:1", "x:3", "x:4"]


def test_a_table_made_by_hand_is_refused():
    same = [Goal(id="a", text="Brew"), Goal(id="b", text="brew ")]
    with pytest.raises(InputError, match="goals 'a' and 'b' have the same text"):
        check_distinct(same, "goal")
    with pytest.raises(InputError, match="two items share the id 'a'"):
        check_distinct([Item(id="a", chat=Chat.ask(text), answer="4") for text in ("x", "y")], "item")
    check_distinct([*same[:1], Goal(id="b", text="brew it")], "goal")


def test_a_text_of_two_classes_is_a_copy():
    rows = [(at, {"text": text, "label": at}) for at, text in enumerate(["a b", "A  b ", "a c"])]
    table = read(ClassedTexts, rows, "texts.jsonl")
    assert [row.label for row in table] == ["0", "2"] and [row.line for row in table.refused] == [1]


def test_a_text_with_two_labels_is_refused_and_one_in_capitals_is_another():
    rows = [(at, {"text": text, "label": at % 2}) for at, text in enumerate(["a b", "a b", "A b", "a b "])]
    table = read(LabelledTexts, rows, "texts.jsonl")
    assert len(table) == 3 and [row.line for row in table.refused] == [1]
