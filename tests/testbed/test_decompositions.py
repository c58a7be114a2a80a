"""Trees of weights: every answer is true, and solver, auditor and monitor err as often as they are told."""

from __future__ import annotations

import pytest

from calibrant.app.references.openers import Openers
from calibrant.core import LM, Chat, Completion, Goal, InputError, Judge, Monitor
from calibrant.data.task_tree import Layout, TaskTrees
from calibrant.ledger import Ledger
from calibrant.testbed.decompositions import (
    open_auditor,
    open_solver,
    open_suspicion,
    open_trees,
    weight,
)


def steps(trees):
    """Every step with the right answers of its parts, and its own right answer."""
    for row in trees.rows:
        answers = {node.id: node.answer for node in row.nodes}
        for node in row.nodes:
            yield node, node.ask.format(**answers), node.answer


@pytest.mark.parametrize("options", [{}, {"depth": "3"}, {"fan": "3"}, {"votes": "1"}, {"depth": "1"}])
def test_a_perfect_solver_is_right_everywhere(options):
    trees, solver = open_trees("sums", {"n": "20", **options}), open_solver("perfect", {})
    for node, asked, right in steps(trees):
        assert solver.generate([Chat.ask(asked)])[0].text == right, node
    for row in trees.rows:
        root = Layout(row).root
        assert solver.generate([Chat.ask(row.question)])[0].text == next(
            n.answer for n in row.nodes if n.id == root
        )
    assert trees == open_trees("sums", {"n": "20", **options})
    assert trees != open_trees("sums", {"n": "20", "seed": "1", **options})


def test_shapes():
    assert len(open_trees("sums", {"n": "1", "depth": "3"}).rows[0].nodes) == 15
    voted = open_trees("sums", {"n": "1", "votes": "1"}).rows[0].nodes
    assert [node.kind for node in voted].count("recall") == 12
    assert {node.needs for node in voted if node.kind == "vote"} == {"majority"}
    assert 1 <= weight("chalk") <= 9


def test_error_rates_are_those_that_were_planted():
    """1,000 tasks: 1,000 steps and more of each kind, so a rate of .2 has a standard error below .013."""
    trees = open_trees("sums", {"n": "1000", "depth": "1"})
    solver = open_solver("ruled", {"lookup": ".1", "recall": ".3", "sum": ".2", "whole": ".5"})
    wrong, count = (
        dict.fromkeys(("lookup", "recall", "sum", "whole"), 0),
        dict.fromkeys(("lookup", "recall", "sum"), 0),
    )
    for node, asked, right in steps(trees):
        said = solver.generate([Chat.ask(asked)])[0].text
        count[node.kind] += 1
        wrong[node.kind] += said != right
        assert said in (right, f"{int(right) + 1}")
    for row in trees.rows:
        wrong["whole"] += solver.generate([Chat.ask(row.question)])[0].text != row.nodes[-1].answer
    rates = {kind: wrong[kind] / count.get(kind, 1000) for kind in wrong}
    assert rates == pytest.approx({"lookup": 0.1, "recall": 0.3, "sum": 0.2, "whole": 0.5}, abs=0.05)


def test_a_rejected_answer_is_given_up_and_a_wrong_one_mended_as_often_as_told():
    trees, solver = (
        open_trees("sums", {"n": "300", "depth": "1"}),
        open_solver("ruled", {"error": ".5", "retry": ".8"}),
    )
    mended = []
    for _, asked, right in steps(trees):
        first = solver.generate([Chat.ask(asked)])[0].text
        again = solver.generate([Chat.ask(f"{asked}\n\nThe answer '{first}' was given and rejected.")])[
            0
        ].text
        assert first != right or again != right
        if first != right:
            mended.append(again == right)
    assert sum(mended) / len(mended) == pytest.approx(0.8, abs=0.07)


def test_auditor_and_monitor():
    """900 steps: standard errors are below .017."""
    trees = open_trees("sums", {"n": "300", "depth": "1"})
    auditor = open_auditor("ruled", {"misses": ".3", "alarms": ".2", "silent": ".1"})
    monitor, blind = open_suspicion("ruled", {"noise": "0"}), open_suspicion("random", {})
    said = {"right": [], "wrong": []}
    for node, asked, right in steps(trees):
        chat, goal = Chat.ask(asked), Goal(id=node.id, text=asked)
        for name, answer in (("right", right), ("wrong", "0")):
            said[name].append(auditor.judge([goal], [chat], [Completion(text=answer)])[0].answer)
            score = monitor.score([chat.then("assistant", answer)])[0]
            assert score == pytest.approx(float(name == "wrong"), abs=1e-6)
            assert blind.score([chat.then("assistant", answer)])[0] is not None
    for name, answers in said.items():
        assert answers.count("unknown") / 900 == pytest.approx(0.1, abs=0.05)
        errs = answers.count("no" if name == "right" else "yes") / (900 - answers.count("unknown"))
        assert errs == pytest.approx(0.2 if name == "right" else 0.3, abs=0.06)


@pytest.mark.parametrize("text", ["hello", "task 1, step n2: what is one plus 2?", "task 1, step n2: why?"])
def test_what_is_no_step_is_unknown(text):
    chat = Chat.ask(text)
    assert open_solver("ruled", {}).generate([chat])[0].text == "i can not tell."
    verdict = open_auditor("oracle", {}).judge([Goal(id="1", text=text)], [chat], [Completion(text="3")])[0]
    assert verdict.answer == "unknown"
    assert open_suspicion("ruled", {}).score([chat.then("assistant", "3")]) == [None]


@pytest.mark.parametrize(
    ("make", "name", "options", "says"),
    [
        (open_trees, "sum", {}, "no such table"),
        (open_trees, "sums", {"n": "0"}, "1 to 2000"),
        (open_trees, "sums", {"depth": "6"}, "levels"),
        (open_trees, "sums", {"votes": "2"}, "neither 0 nor 1"),
        (open_trees, "sums", {"deep": "2"}, "unknown option 'deep'"),
        (open_solver, "ruled", {"recall": "2"}, "no share"),
        (open_solver, "perfect", {"sum": ".1"}, "unknown option"),
        (open_auditor, "ruled", {"misses": "x"}, "no share"),
        (open_suspicion, "ruled", {"noise": "-1"}, "no number"),
        (open_suspicion, "random", {"noise": "1"}, "unknown option"),
    ],
)
def test_unknown_names_and_options(make, name, options, says):
    with pytest.raises(InputError, match=says):
        make(name, options)


def test_references(tmp_path):
    openers = Openers(Ledger(tmp_path / "ledger"), base=tmp_path)
    for text, wanted in (
        ("testbed:trees/sums?n=3", TaskTrees),
        ("testbed:solver/ruled?recall=.3", LM),
        ("testbed:auditor/oracle", Judge),
        ("testbed:suspicion/ruled?noise=1", Monitor),
    ):
        opened = openers.open(text, wanted)
        assert isinstance(opened.load(), wanted)
        assert opened.digest
