"""Trees of sub-tasks: their layout, what makes none, and the file they are read from."""

from __future__ import annotations

import json

import pytest

from calibrant.core import InputError
from calibrant.data.columns import ignoring
from calibrant.data.files import raw_rows
from calibrant.data.readers import read, read_file
from calibrant.data.rows import Refused
from calibrant.data.shapes import tree_of
from calibrant.data.task_tree import Layout, SubTask, TaskTree, TaskTrees

ROOT = SubTask(id="r", ask="{a} and {b}?", answer="3", parts=("a", "b"))
A, B = SubTask(id="a", ask="a?", answer="1"), SubTask(id="b", ask="b of {c}?", answer="2", parts=("c",))
C = SubTask(id="c", ask="c?", answer="5", kind="lookup")


def tree(*nodes, **rest):
    return TaskTree(id="t", question="all?", nodes=nodes, **rest)


def changed(node, **update):
    return node.model_copy(update=update)


def test_parts_come_before_what_they_are_parts_of():
    layout = Layout(tree(ROOT, A, B, C))
    assert list(layout.nodes) == ["a", "c", "b", "r"]
    assert layout.root == "r"
    assert layout.height == {"a": 0, "c": 0, "b": 1, "r": 2}
    assert layout.depth == {"r": 0, "a": 1, "b": 1, "c": 2}
    assert layout.shape == (
        ((), "all", "leaf"),
        ((), "all", "lookup"),
        ((1,), "all", "inner"),
        ((0, 2), "all", "inner"),
    )
    assert layout.cluster == "task t"
    assert Layout(tree(C, cluster="x")).cluster == "x"


def test_a_long_chain_is_laid_out():
    nodes = [SubTask(id="n0", ask="0?", answer="1")]
    nodes += [
        SubTask(id=f"n{k}", ask=f"{{n{k - 1}}}?", answer="1", parts=(f"n{k - 1}",)) for k in range(1, 3000)
    ]
    assert Layout(tree(*reversed(nodes))).height["n2999"] == 2999


BAD = {
    "empty tree": ((), "empty tree"),
    "same id": ((ROOT, A, A, B, C), "two nodes named 'a'"),
    "no answer": ((ROOT, changed(A, answer=" "), B, C), "node 'a', has no answer"),
    "asks nothing": ((ROOT, changed(A, ask=""), B, C), "asks nothing"),
    "unknown part": ((ROOT, A, B), "a part 'c' that is no node"),
    "two ways": ((ROOT, A, changed(B, ask="{c} {a}", parts=("c", "a")), C), "a part of 'r' and of 'b'"),
    "two roots": ((ROOT, A, B, C, SubTask(id="z", ask="z?", answer="1")), "2 nodes that are no part"),
    "own part": ((changed(C, ask="{c}", parts=("c",)),), "circle through c"),
    "circle": ((ROOT, A, B, changed(C, ask="{r}", parts=("r",))), "circle through b, c, r"),
    "unseen part": ((changed(ROOT, ask="{a}?"), A, B, C), "does not show its part 'b'"),
    "strange field": ((ROOT, changed(A, ask="a {x}?"), B, C), "shows 'x', which is no part"),
    "odd id": ((changed(C, id="a b"),), "no usable id"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_tree_says_why_in_python_and_in_a_file(case):
    nodes, says = BAD[case]
    with pytest.raises(InputError, match=says):
        Layout(tree(*nodes))
    row = json.loads(tree(*nodes).model_dump_json())
    refused = tree_of(1, row)
    assert isinstance(refused, Refused)
    assert says in refused.reason or "empty text" in refused.reason


def test_a_task_that_asks_nothing():
    with pytest.raises(InputError, match="asks nothing"):
        Layout(TaskTree(id="t", question=" ", nodes=(C,)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nodes": "a"}, "list of nodes"),
        ({"nodes": ["a"]}, "must be an object"),
        ({"nodes": [{"id": "a", "ask": "a?", "answer": 1, "childs": []}]}, "unknown key: 'childs'"),
        ({"nodes": [{"id": "a", "ask": "a?"}]}, "missing column: no 'answer'"),
        ({"nodes": [{"id": "a", "ask": "a?", "answer": 1, "needs": "most"}]}, "unknown needs"),
        ({"nodes": [{"id": "a", "ask": "a?", "answer": 1, "parts": "b"}]}, "list of names"),
        ({"question": 7}, "wrong type"),
    ],
)
def test_a_row_is_refused_with_the_reason(change, says):
    row = {"question": "all?", "nodes": [{"id": "a", "ask": "a?", "answer": 1}]} | change
    refused = tree_of(4, row)
    assert isinstance(refused, Refused)
    assert says in refused.reason


def test_what_is_written_is_read_back_and_copies_are_refused(tmp_path):
    path = tmp_path / "trees.jsonl"
    rows = (tree(ROOT, A, B, C, cluster="k"), TaskTree(id="u", question="else?", nodes=(C,)))
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    assert read_file(TaskTrees, path).rows == rows
    copy = rows[0].model_copy(update={"id": "other"})
    path.write_text("".join(row.model_dump_json() + "\n" for row in (rows[0], copy)))
    assert "asks the same as 't'" in read_file(TaskTrees, path).refused[0].reason


def test_keys_of_nodes_are_read_and_others_can_be_ignored(tmp_path):
    path = tmp_path / "trees.jsonl"
    path.write_text(tree(ROOT, A, B, C).model_dump_json() + "\n")
    assert read_file(TaskTrees, path).unused == ()
    path.write_text(
        json.dumps({"question": "q?", "nodes": [{"id": "a", "ask": "a?", "answer": "1", "note": "n"}]})
    )
    with pytest.raises(InputError, match="unknown key: 'note'"):
        read_file(TaskTrees, path)
    rows = ignoring(raw_rows(path), ["nodes.note"])
    assert read(TaskTrees, rows, str(path)).rows[0].nodes[0].id == "a"
