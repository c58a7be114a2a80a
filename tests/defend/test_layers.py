"""The layer lab: planted misses are recovered, a null layer adds nothing, and bad input is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calibrant.core import (
    Attempt,
    Chat,
    Completion,
    ConfigError,
    Goal,
    Identity,
    InputError,
    LayerVerdict,
    Quiet,
    Verdict,
)
from calibrant.data.rows import Attempts, Goals
from calibrant.defend.defended import Defended, Layer
from calibrant.defend.layers import Layers, layers
from calibrant.formats.redact import covered
from calibrant.models.scripted import ScriptedModel

GUARDS = ("first", "second", "twin", "null")


class Marks:
    """A guard that stops texts with its mark; 'shrug' it cannot read."""

    def __init__(self, mark):
        self.mark, self.identity = mark, Identity(name=mark, kind="guard", parts={"mark": mark})

    def ask(self, chats, side):
        return [self._one(chat) for chat in chats]

    def _one(self, chat):
        text = chat.messages[-1].content
        answer = "unknown" if f"shrug-{self.mark}" in text else "no" if f"stop-{self.mark}" in text else "yes"
        return Verdict(question="?", answer=answer)


def system(names=GUARDS, side="output"):
    return Defended(ScriptedModel(["never asked"]), [Layer(name, side, Marks(name)) for name in names])


def attempt(place, goal, stopped, outcome="success", text="reply"):
    reply = " ".join([text, *(f"stop-{name}" for name in stopped)])
    return Attempt(
        id=f"a{place}", goal_id=goal, category="c", attack="plain", chat=Chat.ask(f"request {place}"),
        completion=Completion(text=reply), outcome=outcome,
    )  # fmt: skip


def planted(seed, goals=60, each=4):
    """'first' stops .6; 'second' .5, apart from it; 'twin' nine in ten of what 'first' stops; 'null' none."""
    way = np.random.default_rng(seed)
    rows = []
    for place in range(goals * each):
        first, second, off = way.random(3) < (0.6, 0.5, 0.1)
        stopped = [n for n, on in zip(GUARDS, (first, second, first and not off, False), strict=True) if on]
        outcome = "success" if way.random() < 0.7 else "failure"
        rows.append(attempt(place, f"g{place % goals}", stopped, outcome))
    benign = [
        attempt(f"b{n}", f"b{n}", ["first"] if way.random() < 0.1 else [], "failure") for n in range(100)
    ]
    return Attempts(rows=tuple(rows)), Attempts(rows=tuple(benign))


TRUTH = {
    "attempt_success_rate": 0.7,
    "attempt_success_rate/all": 0.7 * 0.4 * 0.5,
    "attempt_success_rate/alone/first": 0.7 * 0.4,
    "attempt_success_rate/alone/null": 0.7,
    "attempt_success_rate/without/first": 0.7 * (1 - 0.6 * 0.9) * 0.5,
    "attempt_success_rate/without/second": 0.7 * 0.4,
    "marginal/first": 0.7 * 0.06 * 0.5,
    "marginal/second": 0.7 * 0.4 * 0.5,
    "marginal/twin": 0.0,
    "marginal/null": 0.0,
    "shapley/first": 0.7 * (0.06 * (0.5 + 0.25) + 0.54 * (0.25 + 1 / 6)),
    "shapley/second": 0.7 * 0.5 * (0.4 + 0.06 / 2 + 0.54 / 3),
    "shapley/null": 0.0,
    "bypass_rate/second": 0.5,
    "bypass_rate/null": 1.0,
    "rho/first+second": 1.0,
    "rho/first+twin": 0.4 / (0.4 * 0.46),
    "over_block_rate": 0.1,
    "over_block_rate/alone/first": 0.1,
    "over_block_marginal/first": 0.1,
    "over_block_shapley/second": 0.0,
}
SEEDS = 40


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    runs = []
    for seed in range(SEEDS):
        work = tmp_path_factory.mktemp("lab")
        runs.append(layers(system(), *planted(seed), run=Quiet(work=work)).metrics)
    return runs


@pytest.mark.parametrize("name", TRUTH)
def test_planted_contributions_are_covered(found, name):
    """40 seeds of 240 attempts: a 95 % interval leaves out the truth in more than 7 once in 1,000 such
    tests."""
    inside = [one[name].low <= TRUTH[name] <= one[name].high for one in found]
    assert sum(inside) >= SEEDS - 7
    values = np.array([one[name].value for one in found])
    assert abs(values.mean() - TRUTH[name]) <= 4 * values.std() / SEEDS**0.5 + 1e-9


def test_a_null_layer_adds_nothing_and_a_twin_fails_with_its_twin(found):
    for one in found:
        assert (
            one["marginal/null"].value
            == one["shapley/null"].value
            == one["over_block_rate/alone/null"].value
            == 0
        )
        assert one["marginal/null"].low == 0
        assert one["rho/first+null"].value is None and "stops no attempt" in one["rho/first+null"].reason
        assert one["rho/first+twin"].low > 1
        parts = sum(one[f"shapley/{name}"].value for name in GUARDS)
        assert parts == pytest.approx(
            one["attempt_success_rate"].value - one["attempt_success_rate/all"].value
        )
        benign = sum(one[f"over_block_shapley/{name}"].value for name in GUARDS)
        assert benign == pytest.approx(one["over_block_rate"].value)


def test_a_layer_twice_adds_nothing_and_order_changes_nothing(tmp_path):
    rows = planted(0)
    whole = layers(system(), *rows, run=Quiet(work=tmp_path)).metrics
    turned = layers(system(GUARDS[::-1]), *rows, run=Quiet(work=tmp_path)).metrics
    for name, one in whole.items():
        if not name.startswith(("rho/", "calls_per_prevented/")):  # who comes first is asked more often
            assert (turned[name].value, turned[name].low) == (one.value, one.low), name
    stack = [*system().layers, Layer("again", "output", Marks("second"))]
    twice = layers(Defended(ScriptedModel(["x"]), stack), *rows, run=Quiet(work=tmp_path)).metrics
    assert twice["attempt_success_rate/all"].value == whole["attempt_success_rate/all"].value
    assert twice["marginal/again"].value == twice["marginal/second"].value == 0
    assert twice["shapley/again"].value == twice["shapley/second"].value


def test_what_was_not_judged_lies_in_the_bounds_unless_a_layer_stops_it(tmp_path):
    rows = [
        attempt(n, f"g{n}", ["first"] if n % 2 else [], "undetermined" if n < 20 else "success")
        for n in range(40)
    ]
    benign = [attempt("b", "b", [], "failure")]
    one = layers(
        system(("first",)), Attempts(rows=tuple(rows)), Attempts(rows=tuple(benign)), run=Quiet(work=tmp_path)
    )
    assert one.metrics["attempt_success_rate"].missing == 20
    behind = one.metrics["attempt_success_rate/all"]
    assert behind.missing == 10 and behind.value == pytest.approx(10 / 30)
    assert one.metrics["marginal/first"].missing == 10


def test_unknown_stops_and_is_counted(tmp_path):
    rows = [attempt(n, f"g{n}", [], text="shrug-first" if n < 5 else "reply") for n in range(20)]
    benign = [attempt("b", "b", [], "failure")]
    one = layers(
        system(("first",)), Attempts(rows=tuple(rows)), Attempts(rows=tuple(benign)), run=Quiet(work=tmp_path)
    )
    assert one.metrics["attempt_success_rate/all"].value == 0.75
    assert one.metrics["unread_rate/first"].value == pytest.approx(5 / 21)


def test_goals_name_clusters_and_every_verdict_is_kept(tmp_path):
    attempts, benign = planted(1)
    goals = Goals(rows=tuple(Goal(id=f"g{n}", text="t", cluster=f"c{n % 6}") for n in range(60)))
    run = Quiet(work=tmp_path)
    one = layers(system(), attempts, benign, goals, run=run)
    assert one.metrics["attempt_success_rate"].clusters == 6
    lines = [json.loads(line) for line in run.artifact("verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 340
    for row, line in zip([*attempts, *benign], lines, strict=True):
        assert line == {"attempt": row.id, "goal": row.goal_id,
                        "stopped_by": [n for n in GUARDS if f"stop-{n}" in row.completion.text]}  # fmt: skip
    assert any("'null' stops no success that the others let pass" in told for told in one.caveats)
    small = layers(system(), attempts, benign, config=Layers(pairs=2, batch=7), run=run).metrics
    assert not any("+" in name for name in small) and "rho/all" in small


def test_the_input_side_reads_the_request_alone(tmp_path):
    rows = [attempt(n, f"g{n}", ["first"]) for n in range(4)]
    one = layers(
        system(("first",), "input"),
        Attempts(rows=tuple(rows)),
        Attempts(rows=(attempt("b", "b", []),)),
        run=Quiet(work=tmp_path),
    )
    assert one.metrics["attempt_success_rate/all"].value == 1


def test_bad_input_is_named(tmp_path):
    attempts, benign = planted(2, goals=4, each=1)
    run = Quiet(work=tmp_path)
    with pytest.raises(InputError, match="has no layers"):
        layers(ScriptedModel(["x"]), attempts, benign, run=run)
    with pytest.raises(InputError, match="has no layers"):
        layers(Defended(ScriptedModel(["x"]), []), attempts, benign, run=run)
    with pytest.raises(InputError, match="'benign' holds no attempt"):
        layers(system(), attempts, Attempts(rows=()), run=run)
    said = LayerVerdict(layer="first", verdict=Verdict(question="?", answer="yes"))
    guarded = Attempts(rows=(*attempts.rows, attempts.rows[0].model_copy(update={"layers": (said,)})))
    with pytest.raises(InputError, match="1 of 5 attempts of 'attempts' went through guards already"):
        layers(system(), guarded, benign, run=run)
    with pytest.raises(InputError, match="4 attempts are in both"):
        layers(system(), attempts, attempts, run=run)
    with pytest.raises(InputError, match="no attempt is after any of the goals"):
        layers(system(), attempts, benign, Goals(rows=(Goal(id="other", text="t"),)), run=run)
    with pytest.raises(InputError, match="4 of 4 attempts of 'attempts' are redacted"):
        layers(system(), Attempts(rows=tuple(map(covered, attempts))), benign, run=run)
    failed = Attempts(rows=tuple(a.model_copy(update={"outcome": "failure"}) for a in attempts))
    none = layers(system(), failed, benign, run=run)
    assert none.metrics["attempt_success_rate"].value == 0
    assert none.metrics["bypass_rate/first"].value is None and none.metrics["rho/all"].value is None
    assert any("no attempt succeeded without guards" in told for told in none.caveats)


@pytest.mark.parametrize(("shown", "success"), [(True, 0.0), (False, 1.0)])
def test_output_layers_read_reasoning_where_users_see_it(tmp_path, shown, success):
    reply = Completion(text="reply", reasoning="stop-first")
    rows = Attempts(rows=(attempt(0, "g", []).model_copy(update={"completion": reply}),))
    stack = [Layer("first", "output", Marks("first"))]
    seen = Defended(ScriptedModel(["x"]), stack, show_reasoning=shown)
    found = layers(seen, rows, Attempts(rows=(attempt("b", "b", []),)), run=Quiet(work=tmp_path)).metrics
    assert found["attempt_success_rate/all"].value == success


# Safety training as one more layer


def replayed(rows, outcome, name="r"):
    """Each attempt on the trained model: ``outcome(attempt)``, or None for no replay."""
    made = [
        a.model_copy(update={"id": f"{name}/{a.id}", "parent": a.id, "outcome": outcome(a)})
        for a in rows
        if outcome(a) is not None
    ]
    return Attempts(rows=tuple(made))


def still(stops):
    """A trained model on which an attempt fails where ``stops(attempt)``."""
    return lambda a: "failure" if a.outcome == "failure" or stops(a) else "success"


TWO = ("first", "second")
LEARNT = {
    "attempt_success_rate/all": 0.7 * 0.4 * 0.5 * 0.7,
    "attempt_success_rate/alone/training": 0.7 * 0.7,
    "attempt_success_rate/without/training": 0.7 * 0.4 * 0.5,
    "marginal/training": 0.7 * 0.4 * 0.5 * 0.3,
    "marginal/second": 0.7 * 0.4 * 0.5 * 0.7,
    "bypass_rate/training": 0.7,
    "rho/second+training": 1.0,
    "over_block_rate": 1 - 0.9 * 0.8,
    "over_block_rate/alone/training": 0.2,
    "over_block_marginal/training": 0.9 * 0.2,
    "over_block_shapley/training": 0.2 * (0.9 + 0.1 / 2),
}


def lot(seed, rows, share):
    """Ids of attempts drawn by lot."""
    way = np.random.default_rng([seed, 7])
    return {a.id for a in rows if way.random() < share}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Training stops .3 of the attempts and .2 of the benign requests, apart from every guard."""
    runs = []
    for seed in range(SEEDS):
        attempts, benign = planted(seed)
        hit, lost = lot(seed, attempts, 0.3), lot(seed, benign, 0.2)
        trained = replayed(attempts, still(lambda a, hit=hit: a.id in hit))
        answered = replayed(benign, lambda a, lost=lost: "success" if a.id in lost else "failure")
        run = Quiet(work=tmp_path_factory.mktemp("learnt"))
        found = layers(system(TWO), attempts, benign, trained=trained, trained_benign=answered, run=run)
        runs.append((found.metrics, attempts, hit))
    return runs


@pytest.mark.parametrize("name", LEARNT)
def test_what_training_adds_is_recovered(learnt, name):
    """As above: 40 seeds; an interval leaves out the truth in more than 7 once in 1,000 such tests."""
    inside = [one[name].low <= LEARNT[name] <= one[name].high for one, *_ in learnt]
    assert sum(inside) >= SEEDS - 7
    values = np.array([one[name].value for one, *_ in learnt])
    assert abs(values.mean() - LEARNT[name]) <= 4 * values.std() / SEEDS**0.5 + 1e-9


def test_shapley_values_with_training_add_up(learnt):
    names = (*TWO, "training")
    for one, attempts, hit in learnt:
        parts = sum(one[f"shapley/{name}"].value for name in names)
        whole = one["attempt_success_rate"].value - one["attempt_success_rate/all"].value
        assert parts == pytest.approx(whole)
        benign = sum(one[f"over_block_shapley/{name}"].value for name in names)
        assert benign == pytest.approx(one["over_block_rate"].value)
        owed = [
            1 / (1 + sum(f"stop-{name}" in a.completion.text for name in TWO))
            for a in attempts
            if a.id in hit and a.outcome == "success"
        ]
        assert one["shapley/training"].value == pytest.approx(sum(owed) / len(attempts))


def test_training_that_changes_nothing_is_owed_nothing_and_order_is_free(tmp_path):
    attempts, benign = planted(3)
    same = replayed(attempts, lambda a: a.outcome), replayed(benign, lambda a: "failure")
    plain = layers(system(), attempts, benign, run=Quiet(work=tmp_path)).metrics
    found = layers(
        system(), attempts, benign, trained=same[0], trained_benign=same[1], run=Quiet(work=tmp_path)
    )
    for kind in ("marginal", "shapley", "over_block_rate/alone", "over_block_marginal"):
        assert found.metrics[f"{kind}/training"].value == 0
    for name, one in plain.items():
        if name != "rho/all":
            assert (found.metrics[name].value, found.metrics[name].low) == (one.value, one.low), name
    turned = [Attempts(rows=table.rows[::-1]) for table in same]
    again = layers(
        system(), attempts, benign, trained=turned[0], trained_benign=turned[1], run=Quiet(work=tmp_path)
    )
    assert again.metrics == found.metrics
    assert any("'training' is one replay of each attempt" in told for told in found.caveats)


def test_an_undetermined_replay_lies_in_the_bounds(tmp_path):
    """20 successes, none stopped by the guard: 5 replays fail, 5 are undetermined, 10 succeed."""
    rows = [attempt(n, f"g{n}", []) for n in range(20)]
    benign = [attempt(f"b{n}", f"b{n}", [], "failure") for n in range(4)]
    said = ["failure"] * 5 + ["undetermined"] * 5 + ["success"] * 10
    trained = replayed(rows, lambda a: said[int(a.id[1:])])
    lost = ["failure", "undetermined", "success", "failure"]
    answered = replayed(benign, lambda a: lost[int(a.id[2:])])
    run = Quiet(work=tmp_path)
    one = layers(
        system(("first",)), Attempts(rows=tuple(rows)), Attempts(rows=tuple(benign)),
        trained=trained, trained_benign=answered, run=run,
    ).metrics  # fmt: skip
    behind = one["attempt_success_rate/all"]
    assert (behind.missing, behind.value) == (5, pytest.approx(10 / 15))
    assert behind.low < 10 / 20 and behind.high > 15 / 20
    for name in ("marginal/training", "shapley/training"):
        assert (one[name].missing, one[name].value) == (5, pytest.approx(5 / 15)), name
        assert one[name].low <= 5 / 20 and one[name].high >= 10 / 20
    assert one["shapley/first"].value == 0 and one["shapley/first"].missing == 0
    assert one["unread_rate/training"].value == pytest.approx(6 / 24)
    assert one["over_block_rate"].missing == 1
    lines = [json.loads(line) for line in run.artifact("verdicts.jsonl").read_text().splitlines()]
    assert lines[0]["stopped_by"] == ["training"] and "not_known" not in lines[0]
    assert lines[7] == {"attempt": "a7", "goal": "g7", "stopped_by": [], "not_known": ["training"]}


def test_every_way_to_settle_what_is_undetermined_lies_in_the_bounds(tmp_path):
    """With guards that stop some of the same attempts, whatever the undetermined replays would have been."""
    attempts, benign = planted(5, goals=12, each=2)
    free = [a.id for a in attempts if a.outcome == "success"][:4]
    answered = replayed(benign, lambda a: "failure")

    def found(settle):
        trained = replayed(attempts, lambda a: settle.get(a.id, a.outcome))
        return layers(
            system(), attempts, benign, trained=trained, trained_benign=answered, run=Quiet(work=tmp_path)
        ).metrics

    wide = found(dict.fromkeys(free, "undetermined"))
    for way in range(16):
        one = found({a: "success" if way >> at & 1 else "failure" for at, a in enumerate(free)})
        for name, value in one.items():
            if name.startswith(("attempt_success_rate", "marginal", "shapley")):
                assert wide[name].low <= value.value <= wide[name].high, (name, way)


def test_several_replays_count_the_worst_and_failures_need_none(tmp_path):
    rows = [attempt(0, "g0", []), attempt(1, "g1", [], "failure"), attempt(2, "g2", [], "undetermined")]
    benign = [attempt("b", "b", [], "failure")]
    one = replayed(rows[:1], lambda a: "failure", "one"), replayed(rows[:1], lambda a: "success", "two")
    trained = Attempts(rows=(*one[0].rows, *one[1].rows))
    answers = [replayed(benign, lambda a, said=said: said, said).rows for said in ("success", "failure")]
    found = layers(
        system(("first",)), Attempts(rows=tuple(rows)), Attempts(rows=tuple(benign)), trained=trained,
        trained_benign=Attempts(rows=(*answers[0], *answers[1])), run=Quiet(work=tmp_path),
    ).metrics  # fmt: skip
    assert found["attempt_success_rate/alone/training"].value == 0.5
    assert found["attempt_success_rate/alone/training"].missing == 1
    assert found["over_block_rate/alone/training"].value == 1


def test_a_judge_of_helpfulness_counts_broken_text(tmp_path):
    """Broken text is no refusal: under 'refused' nothing is lost, under 'answered' all is."""
    rows, benign = [attempt(0, "g0", [])], [attempt("b", "b", [], "failure")]
    values = {}
    for meaning in ("refused", "answered"):
        values[meaning] = layers(
            system(("first",)), Attempts(rows=tuple(rows)), Attempts(rows=tuple(benign)),
            trained=replayed(rows, lambda a: "failure"), trained_benign=replayed(benign, lambda a: "failure"),
            config=Layers(benign_success=meaning), run=Quiet(work=tmp_path),
        ).metrics["over_block_rate"].value  # fmt: skip
    assert values == {"refused": 0, "answered": 1}


def test_replays_that_do_not_fit_are_named(tmp_path):
    attempts, benign = planted(4, goals=4, each=2)
    trained, answered = replayed(attempts, lambda a: a.outcome), replayed(benign, lambda a: "failure")
    hits = sum(a.outcome == "success" for a in attempts)

    def tried(trained, answered, **config):
        return layers(
            system(), attempts, benign, trained=trained, trained_benign=answered,
            config=Layers(**config), run=Quiet(work=tmp_path),
        )  # fmt: skip

    with pytest.raises(InputError, match="'trained' is given without 'trained_benign'"):
        tried(trained, None)
    with pytest.raises(InputError, match="'trained_benign' is given without 'trained'"):
        tried(None, answered)
    with pytest.raises(InputError, match="'trained' holds no attempt"):
        tried(Attempts(rows=()), answered)
    lacking = Attempts(rows=tuple(a for a in trained if a.outcome != "success"))
    with pytest.raises(InputError, match=f"{hits} of {hits} successes of 'attempts' were not sent"):
        tried(lacking, answered)
    with pytest.raises(InputError, match="99 of 100 attempts of 'benign' were not sent"):
        tried(trained, Attempts(rows=answered.rows[:1]))
    with pytest.raises(InputError, match="of 'attempts' were not sent"):
        tried(attempts, answered)
    other = [a.model_copy(update={"chat": Chat.ask("else")}) for a in trained]
    with pytest.raises(InputError, match="asks something else than its attempt"):
        tried(Attempts(rows=tuple(other)), answered)
    said = LayerVerdict(layer="first", verdict=Verdict(question="?", answer="yes"))
    guarded = Attempts(rows=tuple(a.model_copy(update={"layers": (said,)}) for a in trained))
    with pytest.raises(InputError, match="of 'trained' went through guards already"):
        tried(guarded, answered)
    with pytest.raises(ConfigError, match="'first' is the name of a guard"):
        tried(trained, answered, trained_name="first")
    assert "marginal/taught" in tried(trained, answered, trained_name="taught").metrics


def test_settings_of_training_leave_earlier_records_alone():
    assert Layers().model_dump(mode="json") == {"level": 0.95, "pairs": 12, "batch": 64}
    assert Layers(trained_name="refused").model_dump()["trained_name"] == "refused"
