"""Decomposition on planted truth: the formula is exact, its breaches are named; audits and their nulls."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from calibrant.core import BudgetError, Completion, ConfigError, InputError, Quiet, resolve
from calibrant.core.estimate import impossible
from calibrant.data.task_tree import Layout, SubTask, TaskTree, TaskTrees
from calibrant.maths.decomposition import node_accuracies
from calibrant.models.scripted import ScriptedModel
from calibrant.oversee._decomposition_metrics import Sample, metrics
from calibrant.oversee._decomposition_null import Group, spreads
from calibrant.oversee._decomposition_play import answer_of, is_right
from calibrant.oversee.decomposition import Decomposition, decomposition
from calibrant.testbed.decompositions import open_auditor, open_solver, open_suspicion, open_trees

ONE = {"budgets": (1,), "policies": ("uniform",)}
ORACLE, PERFECT = open_auditor("oracle", {}), open_solver("perfect", {})


@pytest.fixture
def run(tmp_path):
    return Quiet(work=tmp_path)


def solved(run, trees=(), solver=(), auditor=None, fixer=None, monitor=None, **config):
    return decomposition(
        open_trees("sums", {key: str(value) for key, value in dict(trees).items()}),
        open_solver("ruled", {key: str(value) for key, value in dict(solver).items()}),
        auditor, fixer, monitor, config=Decomposition(**config), run=run,
    )  # fmt: skip


def covers(estimate, value=0.0):
    return estimate.low <= value <= estimate.high


def tree(*nodes, name="t", **rest):
    return TaskTree(id=name, question=f"all of {name}?", nodes=nodes, **rest)


def pair(name="t", **rest):
    """A root of two leaves; all right answers are 1, 2 and 3."""
    leaves = (SubTask(id="a", ask=f"{name}: a?", answer="1"), SubTask(id="b", ask=f"{name}: b?", answer="2"))
    return tree(
        SubTask(id="r", ask=f"{name}: {{a}}, {{b}}?", answer="3", parts=("a", "b")),
        *leaves,
        name=name,
        **rest,
    )


# The formula


def test_the_formula_is_exact_where_errors_are_independent(run):
    """600 tasks of seven steps that err in .1: .9^7 = .478 of roots are right, standard error .02."""
    found = solved(run, {"n": 600}, {"error": ".1"}).metrics
    assert covers(found["accuracy/decomposed"], 0.9**7)
    assert found["formula/root"].value == pytest.approx(0.9**7, abs=0.06)
    assert found["formula/error_0.1"].value == pytest.approx(0.9**7)
    for height, steps in enumerate((1, 3, 7)):
        assert covers(found[f"accuracy/height_{height}"], 0.9**steps)
    for name in ("excess/root", "excess/height_1", "excess/height_2", "joint_error_excess"):
        assert covers(found[name])
        assert found[name].high - found[name].low < 0.08
    assert found["absorbed_rate"].value == 0.0
    assert covers(found["own_error_rate"], 0.1)
    assert not any(impossible(name, one) for name, one in found.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("votes", "solver"), [(0, {"error": ".1"}), (1, {"recall": ".2", "sum": "0"})], ids=["sums", "votes"]
)
def test_the_excess_covers_0_over_seeds(tmp_path, votes, solver):
    """20 seeds of 100 tasks: each interval of 95 % misses 0 with a chance of 5 %; five or more of 20 do with
    one of .3 %. Half widths are about .05 (votes: .07), so an excess of .2, as ``shared`` = .5 makes it, is
    missed in fewer than one of a hundred."""
    missed = {"excess/root": 0, "joint_error_excess": 0}
    for seed in range(20):
        found = solved(
            Quiet(work=tmp_path / f"{seed}"),
            {"n": 100, "seed": seed, "votes": votes},
            solver | {"seed": seed},
        ).metrics
        assert found["excess/root"].high - found["excess/root"].low < 0.2
        for name in missed:
            missed[name] += not covers(found[name])
    assert max(missed.values()) < 5


def test_few_tasks_with_two_errors_are_no_finding():
    """200 tasks of seven steps that err in .02: 1.7 of them have two errors; .2 of such tables have none, and
    a bootstrap alone then puts 0 outside. An interval of 95 % errs so in 2.5 %: four of 30 with .7 %."""
    layouts = [Layout(row) for row in open_trees("sums", {"n": "200"}).rows]
    rng = np.random.default_rng(0)
    below = dict.fromkeys(("excess/root", "joint_error_excess"), 0)
    for _ in range(30):
        own = [{name: bool(rng.random() > 0.02) for name in tree.nodes} for tree in layouts]
        played = []
        for tree, flags in zip(layouts, own, strict=True):
            right = {}
            for name, node in tree.nodes.items():
                right[name] = flags[name] and all(right[part] for part in node.parts)
            played.append(right)
        found = metrics(Sample(layouts, ["x"] * 200, own, played), ())
        for name in below:
            below[name] += found[name].high < 0
    assert max(below.values()) < 4


@pytest.mark.parametrize("needs", ["all", "majority", "any"])
def test_the_spread_of_independent_errors_is_that_of_many_tables(needs):
    """Against the plain sum over all pairs, of 400 tables of 60 tasks: standard deviations to four errors."""
    shape = [((), "all"), ((), "all"), ((), "all"), ((0, 1, 2), needs)]
    kinds, rates, rng = np.array([0, 0, 0, 1]), np.array([0.3, 0.1]), np.random.default_rng(3)
    excess, joint = spreads([Group(shape, kinds, [0, 0, 0, 1], 60)], rates, 3)
    roots, pairs = [], []
    for _ in range(400):
        own = rng.random((60, 4)) > rates[kinds]
        held = own[:, :3].sum(1)
        root = own[:, 3] & (held >= {"all": 3, "majority": 2, "any": 1}[needs])
        found = np.array([1 - own[:, :3].mean(), 1 - own[:, 3].mean()])
        roots.append(root.mean() - node_accuracies(shape, 1 - found[kinds])[-1])
        off = ~own - found[kinds]
        pairs.append(np.mean([(off[:, a] * off[:, b]).mean() for a in range(4) for b in range(a)]))
    assert excess[0] == pytest.approx(np.std(roots), rel=0.2)
    assert joint == pytest.approx(np.std(pairs), rel=0.2)


def test_errors_that_come_together_are_named(run):
    result = solved(run, {"n": 300}, {"error": ".1", "shared": "1"})
    found = result.metrics
    assert covers(found["accuracy/decomposed"], 0.9)  # all steps of a task are right, or none
    assert covers(found["joint_error_excess"], 0.1 * 0.9)
    assert found["excess/root"].low > 0.3
    assert any("above the formula" in one and "come together" in one for one in result.caveats)


def test_errors_that_cancel_are_named(run):
    """One too high and one too low: the sum is right in spite of wrong parts."""
    result = solved(run, {"n": 400}, {"error": ".3", "cancel": "1"})
    assert result.metrics["absorbed_rate"].low > 0.1
    assert result.metrics["excess/root"].low > 0
    assert covers(result.metrics["joint_error_excess"])
    assert any("(absorbed_rate)" in one and "come together" not in one for one in result.caveats)


def test_a_vote_needs_two_of_three(run):
    """A reading errs in .2: two of three are right in .896, so a sum of four votes in .896^4 = .645."""
    solver = {"recall": ".2", "sum": "0", "vote": "0"}
    found = solved(run, {"n": 250, "votes": 1}, solver).metrics
    assert covers(found["accuracy/decomposed"], 0.896**4)
    assert covers(found["formula/root"], 0.896**4)
    assert found["excess/root"].value == pytest.approx(0.0, abs=0.09)  # four standard errors; see the seeds
    assert found["disturbed_rate"].value == 0.0
    together = solved(run, {"n": 120, "votes": 1}, solver | {"shared": "1"}).metrics
    assert covers(together["accuracy/decomposed"], 0.8)  # a vote is of no use where all readings err together
    assert together["accuracy/height_1"].high < 0.896


def test_direct_against_in_parts(run):
    found = solved(run, {"n": 200}, {"error": ".02", "whole": ".4"}).metrics
    assert covers(found["accuracy/direct"], 0.6)
    assert covers(found["gain"], 0.98**7 - 0.6)
    assert found["gain"].low > 0
    worse = solved(run, {"n": 200}, {"error": ".2", "whole": ".1"}).metrics
    assert worse["gain"].high < 0


def test_no_audits_without_an_auditor(run):
    result = solved(run, {"n": 5})
    assert not any("audit" in name or "miss" in name for name in result.metrics)
    assert result.recommended == {}


# Audits


def test_audits_are_worth_what_the_formula_says(run):
    """Oracle and perfect fixer; recall errs in .3, all else never: only audits of recalls gain."""
    result = solved(
        run, {"n": 250}, {"lookup": "0", "sum": "0", "recall": ".3"}, ORACLE, PERFECT, budgets=(1, 2)
    )
    found = result.metrics
    assert found["step_gain/recall"].low > 0.2
    assert found["step_gain/lookup"].value == found["step_gain/sum"].value == 0.0
    for budget in (1, 2):
        assert found[f"audit_gain/root_first/at_{budget}"].value == pytest.approx(0.0, abs=0.0)
        assert found[f"over_uniform/gain/at_{budget}"].low > 0
        assert (
            found[f"audited_accuracy/gain/at_{budget}"].value
            == found[f"audited_accuracy/optimum/at_{budget}"].value
        )
        assert covers(found[f"over_optimum/gain/at_{budget}"])
        assert found[f"over_optimum/uniform/at_{budget}"].high < 0
        for policy in ("uniform", "gain", "optimum", "leaves_first"):
            expected = found[f"expected_gain/{policy}/at_{budget}"].value
            assert covers(found[f"audit_gain/{policy}/at_{budget}"], expected)
        assert result.recommended[budget] in ("gain", "optimum")
    assert found["gain_per_audit/gain/at_2"].value == pytest.approx(found["audit_gain/gain/at_2"].value / 2)
    assert not any(impossible(name, one) for name, one in found.items())


def test_every_step_audited_by_an_oracle_leaves_no_error(run):
    found = solved(run, {"n": 60}, {"error": ".3"}, ORACLE, PERFECT, budgets=(50,)).metrics
    for policy in ("uniform", "root_first", "leaves_first", "gain"):
        assert found[f"audited_accuracy/{policy}/at_50"].value == 1.0


def test_an_auditors_errors_are_measured(run):
    auditor = open_auditor("ruled", {"misses": ".3", "alarms": ".1"})
    fixer = open_solver("ruled", {"error": ".2", "seed": "9"})
    found = solved(run, {"n": 300}, {"error": ".2"}, auditor, fixer, **ONE).metrics
    assert covers(found["miss_rate"], 0.3)
    assert covers(found["false_alarm_rate"], 0.1)
    assert covers(found["repair_rate"], 0.8)
    assert covers(found["spoiled_rate"], 0.2)
    worth = 0.2 * 0.7 * 0.8 - 0.8 * 0.1 * 0.2
    assert covers(found["step_gain"], worth)


def test_suspicion_finds_what_rates_cannot(run):
    """All steps err alike; a monitor that sees every error beats any set that is fixed before."""
    monitor = open_suspicion("ruled", {"noise": "0"})
    result = solved(run, {"n": 200}, {"error": ".05"}, ORACLE, PERFECT, monitor, budgets=(1,))
    assert result.metrics["over_uniform/suspicious/at_1"].low > 0.1
    assert result.recommended == {1: "suspicious"}


def test_without_a_fixer_the_solver_is_asked_again(run):
    found = solved(run, {"n": 300}, {"error": ".3", "retry": ".6"}, ORACLE, **ONE).metrics
    assert found["repair_rate"].value == pytest.approx(0.6, abs=0.08)  # four standard errors
    assert found["spoiled_rate"].value is None
    assert found["spoiled_rate"].n > 0


def test_a_perfect_solver_leaves_nothing_to_gain(run):
    result = solved(run, {"n": 80}, {"error": "0", "whole": "0"}, ORACLE, PERFECT, budgets=(1, 3))
    found = result.metrics
    assert found["accuracy/decomposed"].value == found["formula/root"].value == 1.0
    assert found["gain"].value == found["excess/root"].value == 0.0
    assert found["excess/root"].low < 0 < found["excess/root"].high
    assert found["miss_rate"].value is None
    for name, one in found.items():
        if name.startswith(("audit_gain", "over_uniform", "step_gain")):
            assert one.value == 0.0 and covers(one)
    assert set(result.recommended.values()) == {"uniform"}


@pytest.mark.slow
def test_an_auditor_that_knows_nothing_gains_nothing(tmp_path):
    """It rejects half of all steps by lot, and the fixer errs as the solver does: 12 seeds of 150 tasks.

    An interval of 95 % misses 0 with a chance of 5 %: four or more of 12 with one of .2 %. Half widths of
    'step_gain' are about .025: were a step's gain .05, each would miss 0 with a chance of .97.
    """
    missed = {"step_gain": 0, "audit_gain/uniform/at_2": 0}
    auditor = open_auditor("ruled", {"misses": ".5", "alarms": ".5"})
    for seed in range(12):
        fixer = open_solver("ruled", {"error": ".2", "seed": f"{100 + seed}"})
        found = solved(
            Quiet(work=tmp_path / f"{seed}"), {"n": 150, "seed": seed}, {"error": ".2", "seed": seed},
            auditor, fixer, budgets=(2,), policies=("uniform", "gain"),
        ).metrics  # fmt: skip
        assert found["step_gain"].high - found["step_gain"].low < 0.08
        for name in missed:
            missed[name] += not covers(found[name])
    assert max(missed.values()) < 4


@pytest.mark.slow
def test_where_all_steps_are_equal_no_policy_is_recommended(tmp_path):
    """Each of four policies beats uniform by chance in 5 % / 4 / 2: two or more seeds of 12 that recommend
    one have a chance of 3 %, three or more of .3 %. Half widths are about .06; the power against real
    differences is in ``test_audits_are_worth_what_the_formula_says``."""
    named = 0
    for seed in range(12):
        result = solved(
            Quiet(work=tmp_path / f"{seed}"), {"n": 150, "seed": seed}, {"error": ".1", "seed": seed}, ORACLE,
            PERFECT, budgets=(2,),
        )  # fmt: skip
        named += result.recommended[2] != "uniform"
        over = result.metrics["over_uniform/gain/at_2"]
        assert over.high - over.low < 0.2
    assert named < 3


def test_a_silent_auditor_is_missing_and_never_right(run):
    auditor = open_auditor("ruled", {"silent": "1"})
    found = solved(run, {"n": 40}, {"error": ".2"}, auditor, PERFECT, budgets=(1,)).metrics
    assert found["no_verdict_share"].value == 1.0
    for name in ("miss_rate", "false_alarm_rate", "step_gain", "audited_accuracy/uniform/at_1"):
        assert found[name].value is None
        assert found[name].missing > 0
    assert found["audited_accuracy/root_first/at_1"].low == 0.0
    assert found["audited_accuracy/root_first/at_1"].high == 1.0
    # nothing is known of what an audit is worth: that is not a gain of 0
    for name in ("audit_gain/gain/at_1", "audited_accuracy/optimum/at_1", "expected_gain/uniform/at_1"):
        assert found[name].value is None
        assert "280 of 280 steps have no answer after an audit" in found[name].reason


def test_an_auditor_that_is_silent_on_what_it_would_reject_leaves_no_rates(run):
    class Shy:
        def __init__(self):
            self.identity, self.calibration = ORACLE.identity, getattr(ORACLE, "calibration", None)

        def judge(self, *given):
            said = ORACLE.judge(*given)
            return [v.model_copy(update={"answer": "unknown"}) if v.answer == "no" else v for v in said]

    found = solved(run, {"n": 40}, {"error": ".2"}, Shy(), PERFECT, budgets=(1,)).metrics
    for name in ("audit_gain/gain/at_1", "expected_gain/root_first/at_1"):
        assert found[name].value is None
        assert "steps have no answer after an audit" in found[name].reason


def test_where_every_policy_harms_no_audit_is_advised(run):
    """The auditor passes wrong steps and rejects right ones; the fixer errs in more than the solver."""
    auditor = open_auditor("ruled", {"misses": ".9", "alarms": ".6"})
    fixer = open_solver("ruled", {"error": ".6", "seed": "9"})
    policies = ("uniform", "root_first", "leaves_first")
    result = solved(run, {"n": 100}, {"error": ".05"}, auditor, fixer, budgets=(2,), policies=policies)
    assert result.metrics["audit_gain/uniform/at_2"].high < 0
    assert result.recommended == {2: "none"}
    assert any("no audit is better" in one for one in result.caveats)
    rows = [json.loads(line) for line in run.artifact("allocation.jsonl").read_text().splitlines()]
    assert not any(row["recommended"] for row in rows)


class Scored:
    """A monitor of given scores."""

    identity = open_suspicion("random", {}).identity

    def __init__(self, score):
        self.score_of, self.asked = score, 0

    def score(self, chats):
        self.asked += len(chats)
        return [self.score_of(chat) for chat in chats]


def test_a_score_that_is_no_number_is_missing(run):
    """Two thirds of the scores are the truth, the rest are no numbers: they come first, as None does."""
    truth = open_suspicion("ruled", {"noise": "0"})

    def partly(missing):
        def score(chat):
            return missing if len(chat.messages[-1].content) % 3 == 0 else truth.score([chat])[0]

        return Scored(score)

    kept = [
        solved(Quiet(), {"n": 40}, {"error": ".2"}, ORACLE, PERFECT, partly(missing), budgets=(2,)).metrics
        for missing in (None, math.nan, math.inf)
    ]
    assert kept[0] == kept[1] == kept[2]


def test_a_monitor_is_not_asked_again(run):
    monitor = Scored(lambda chat: 0.0)
    first = solved(run, {"n": 10}, {}, ORACLE, PERFECT, monitor, budgets=(1,))
    asked = monitor.asked
    assert asked == 70
    assert solved(run, {"n": 10}, {}, ORACLE, PERFECT, monitor, budgets=(1,)) == first
    assert monitor.asked == asked


def test_an_auditor_that_is_silent_at_times_widens(run):
    auditor = open_auditor("ruled", {"misses": "0", "alarms": "0", "silent": ".05"})
    found = solved(run, {"n": 150}, {"error": ".2"}, auditor, PERFECT, **ONE).metrics
    sure = solved(Quiet(), {"n": 150}, {"error": ".2"}, ORACLE, PERFECT, **ONE).metrics
    one, other = found["audited_accuracy/uniform/at_1"], sure["audited_accuracy/uniform/at_1"]
    assert one.missing > 0
    assert one.high - one.low > other.high - other.low
    assert one.low < other.value < one.high


def test_yes_may_mean_wrong(run):
    """An oracle whose yes is read the other way round passes all wrong steps and rejects all right ones."""
    found = solved(run, {"n": 60}, {"error": ".3"}, ORACLE, PERFECT, budgets=(1,), yes_means="wrong").metrics
    assert found["miss_rate"].value == found["false_alarm_rate"].value == 1.0


# What is asked, and what failed


def test_a_step_shows_what_its_parts_said_and_nothing_else(run):
    answers = {"a?": "1", "b?": "7", "1, 7?": "8", "1, 2?": "3"}
    solver = ScriptedModel(lambda chat: next((v for k, v in answers.items() if k in chat.last_user), "3"))
    trees = TaskTrees(rows=(pair("s"), pair("t")))
    result = decomposition(trees, solver, run=run)
    asked = [chat.last_user.splitlines()[0] for chat in solver.seen]
    assert sorted(asked) == sorted(
        f"{line}" for name in "st"
        for line in (f"all of {name}?", f"{name}: a?", f"{name}: b?", f"{name}: 1, 2?", f"{name}: 1, 7?")
    )  # fmt: skip
    assert result.metrics["accuracy/decomposed"].value == 0.0
    assert result.metrics["own_error_rate/leaf"].value == 0.5
    assert result.metrics["own_error_rate/inner"].value == 0.0
    rows = [json.loads(line) for line in run.artifact("steps.jsonl").read_text().splitlines()]
    assert [row["right"] for row in rows if row["node"] == "r"] == [False, False]
    assert [row["right_alone"] for row in rows if row["node"] == "r"] == [True, True]


def test_an_answer_is_text_not_a_template(run):
    """What a part says may look like a field: it is shown as it is."""
    solver = ScriptedModel(lambda chat: "{b}" if "a?" in chat.last_user else "2")
    decomposition(TaskTrees(rows=(pair("s"), pair("t"))), solver, run=run)
    assert any("s: {b}, 2?" in chat.last_user for chat in solver.seen)


@pytest.mark.parametrize(
    "reply", ["", Completion(text="1", stop="error", error="down"), Completion(text="1 or", stop="length")]
)
def test_a_solver_that_fails_is_missing_never_right_or_wrong(run, reply):
    solver = ScriptedModel(lambda chat: reply if "s: a?" in chat.last_user else "3")
    rows = tuple(pair(name) for name in "stuvw")
    result = decomposition(TaskTrees(rows=rows), solver, ORACLE, PERFECT, run=run)
    found = result.metrics
    assert found["accuracy/decomposed"].missing == 1
    assert found["unanswered_share"].value == pytest.approx(2 / 15)
    assert found["own_error_rate/leaf"].missing == 1
    assert any("2 steps have no answer" in one for one in result.caveats)
    assert not any(impossible(name, one) for name, one in found.items())


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("7", "eos", "7"),
        (" seven. ", "eos", "seven."),
        ("so 3 + 4.\nANSWER: 7", "eos", "7"),
        ("**ANSWER:** 7", "eos", "7"),
        ("answer: 7\nANSWER: 7", "eos", "7"),
        ("ANSWER: 7\nANSWER: 8", "eos", None),
        ("ANSWER:", "eos", None),
        ("ANSWER: 7\nand", "length", "7"),
        ("I add them.\nANSWER: 1", "length", None),
        ("ANSWER: 7\nANSWER: 7", "length", None),
        ("seven", "length", None),
        ("7", "error", None),
        ("7", "blocked", None),
        ("  ", "eos", None),
    ],
)
def test_answers_are_read_strictly(text, stop, said):
    assert answer_of(Completion(text=text, stop=stop)) == said


def test_answers_are_compared_as_text():
    assert is_right(" The  Moth. ", "the moth")
    assert is_right("17", "7") is False
    assert is_right(None, "7") is None


def test_a_killed_run_asks_nothing_twice(tmp_path):
    class Limited(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            self.left -= queries
            if self.left < 0:
                raise BudgetError("too many queries")

    def once(left):
        run = Limited(work=tmp_path)
        run.left = left
        return solved(run, {"n": 60}, {"error": ".2"}, ORACLE, PERFECT, budgets=(1,)), left - run.left

    with pytest.raises(BudgetError):
        once(700)
    result, queries = once(10**6)
    again, none = once(0)
    assert again == result
    assert none == 0
    fresh = Limited(work=tmp_path / "fresh")
    fresh.left = 10**6
    whole = solved(fresh, {"n": 60}, {"error": ".2"}, ORACLE, PERFECT, budgets=(1,))
    assert whole == result
    assert 0 < queries < 10**6 - fresh.left


def test_another_party_is_asked_anew(tmp_path):
    first = solved(Quiet(work=tmp_path), {"n": 50}, {"error": ".2"})
    other = solved(Quiet(work=tmp_path), {"n": 50}, {"error": ".2", "seed": "5"})
    assert first.metrics["own_error_rate"].value != other.metrics["own_error_rate"].value


def test_clusters_are_respected(run):
    """Ten copies of each task in one cluster are worth one: the interval is about as wide as without them."""
    plain = open_trees("sums", {"n": "30"})
    copies = tuple(
        row.model_copy(update={"id": f"{row.id}/{k}", "cluster": row.id})
        for row in plain.rows
        for k in range(10)
    )
    solver = open_solver("ruled", {"error": ".1"})
    one = decomposition(plain, solver, run=run).metrics
    ten = decomposition(TaskTrees(rows=copies), solver, run=Quiet()).metrics
    for name in ("accuracy/decomposed", "gain", "excess/root", "own_error_rate"):
        widths = [found[name].high - found[name].low for found in (one, ten)]
        assert widths[1] > 0.7 * widths[0]
        assert ten[name].clusters == 30


def test_one_cluster_shows_nothing(run):
    rows = tuple(pair(name, cluster="k") for name in "stu")
    found = decomposition(TaskTrees(rows=rows), ScriptedModel(lambda chat: "1"), run=run).metrics
    for name in ("accuracy/decomposed", "gain", "excess/root", "joint_error_excess"):
        assert found[name].value is None
        assert found[name].n > 0


def test_a_tree_of_one_node_and_trees_of_many_shapes(run):
    rows = (
        *open_trees("sums", {"n": "10", "depth": "3"}).rows,
        *open_trees("sums", {"n": "10", "seed": "4", "votes": "1"}).rows,
        tree(SubTask(id="x", ask="task 9, step x: how much does the chalk weigh?", answer="5"), name="x"),
    )
    found = decomposition(
        TaskTrees(rows=rows),
        open_solver("ruled", {}),
        ORACLE,
        PERFECT,
        config=Decomposition(most_sets=50),
        run=run,
    ).metrics
    assert found["accuracy/height_3"].n == 20
    assert found["audited_accuracy/optimum/at_2"].value is None
    assert "more than 50 sets" in found["audited_accuracy/optimum/at_2"].reason
    assert found["audited_accuracy/optimum/at_1"].value is not None
    assert math.isfinite(found["joint_error_excess"].value)


# Bad input


def test_nothing_is_asked_of_bad_tables(run):
    solver = ScriptedModel([])
    for rows, says in (
        ((), "there are no tasks"),
        ((pair(), pair()), "two tasks share the id 't'"),
        ((tree(),), "empty tree"),
        ((pair(), tree(SubTask(id="a", ask="{a}?", answer="1", parts=("a",)), name="u")), "circle"),
    ):
        with pytest.raises(InputError, match=says):
            decomposition(TaskTrees(rows=rows), solver, run=run)


@pytest.mark.parametrize(
    ("given", "config", "says"),
    [
        ({"fixer": PERFECT}, {}, "'fixer' is of no use without an auditor"),
        ({"monitor": open_suspicion("random", {})}, {}, "'monitor' is of no use"),
        ({}, {"policies": ("gain",)}, "a policy is of no use"),
        ({"auditor": ORACLE}, {"policies": ("suspicious",)}, "needs the input 'monitor'"),
        (
            {"auditor": ORACLE, "monitor": open_suspicion("random", {})},
            {"policies": ("uniform", "gain")},
            "no policy uses the input 'monitor'",
        ),
    ],
)
def test_inputs_of_no_use(run, given, config, says):
    with pytest.raises(InputError, match=says):
        decomposition(
            TaskTrees(rows=(pair(),)), ScriptedModel([]), config=Decomposition(**config), run=run, **given
        )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"budgets": [0]}, "a budget of 0 audits nothing"),
        ({"budgets": [1, 1]}, "none twice"),
        ({"budgets": []}, "at least one"),
        ({"policies": ["gain", "gain"]}, "one twice"),
        ({"errors": [1.5]}, "rates from 0 to 1"),
        ({"errors": [0.1, 0.1000001]}, "the same to six digits"),
        ({"prompt": "answer"}, "prompt does not contain {question}"),
        ({"retry": "{question}"}, "retry does not contain {answer}"),
        ({"policies": ["gian"]}, "gain"),
    ],
)
def test_bad_configs(config, says):
    with pytest.raises(ConfigError, match=says):
        resolve(Decomposition, config)


def test_figures_are_drawn_from_metrics(run):
    figures = solved(run, {"n": 30}, {}, ORACLE, PERFECT).figure_data()
    assert [one.kind for one in figures] == ["intervals", "lens", "lens", "lens"]
    assert {datum.label for datum in figures[1].values} >= {"uniform", "gain", "optimum", "root first"}
    assert {datum.at for datum in figures[1].values} == {1.0, 2.0, 4.0}
