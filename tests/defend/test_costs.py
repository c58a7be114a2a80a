"""What layers cost: the formula against the definition, planted costs, and a layer that spares later ones."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

from calibrant.core import Attempt, Chat, Completion, ConfigError, Identity, Quiet, Verdict
from calibrant.data.rows import Attempts
from calibrant.defend._costs import Asked
from calibrant.defend.defended import Defended, Layer
from calibrant.defend.layers import Layers, layers
from calibrant.models.scripted import ScriptedModel


def spent(chosen, ms, stops):
    """Time of one text in a set of layers, by hand."""
    total = 0.0
    for at in sorted(chosen):
        total += ms[at]
        if stops[at]:
            break
    return total


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_those_of_the_game(seed):
    way = np.random.default_rng(seed)
    count = int(way.integers(1, 6))
    ms, stops = way.exponential(2.0, (7, count)), way.random((7, count)) < 0.4
    names = [f"l{at}" for at in range(count)]
    parts = dict(Asked(ms, stops, ["g"] * 7).parts(names))
    orders = list(permutations(range(count)))
    for text in range(7):
        whole = spent(range(count), ms[text], stops[text])
        assert parts["all"][text] == pytest.approx(whole)
        for at, name in enumerate(names):
            assert parts[f"alone/{name}"][text] == ms[text, at]
            others = [other for other in range(count) if other != at]
            assert parts[f"without/{name}"][text] == pytest.approx(spent(others, ms[text], stops[text]))
            owed = [
                spent(order[: order.index(at) + 1], ms[text], stops[text])
                - spent(order[: order.index(at)], ms[text], stops[text])
                for order in orders
            ]
            assert parts[f"shapley/{name}"][text] == pytest.approx(np.mean(owed))
        assert sum(parts[f"shapley/{name}"][text] for name in names) == pytest.approx(whole)


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but where a guard takes some."""
    ticks = [0.0]
    monkeypatch.setattr("calibrant.defend._layer.time.perf_counter", lambda: ticks[0])
    return ticks


class Slow:
    """Stops texts with its mark, and takes its time for each."""

    def __init__(self, mark, seconds=0.0, clock=None):
        self.mark, self.seconds, self.clock = mark, seconds, clock or [0.0]
        self.identity = Identity(name=mark, kind="guard", parts={"mark": mark})

    def ask(self, chats, side):
        self.clock[0] += self.seconds * len(chats)
        return [
            Verdict(question="?", answer="no" if f"stop-{self.mark}" in chat.messages[-1].content else "yes")
            for chat in chats
        ]


def attempt(name, text, outcome):
    return Attempt(
        id=name, goal_id=name, category="c", attack="plain", chat=Chat.ask(text),
        completion=Completion(text=text), outcome=outcome,
    )  # fmt: skip


def rows(*lots, outcome="success"):
    """(count, text) each."""
    texts = [text for count, text in lots for _ in range(count)]
    return Attempts(rows=tuple(attempt(f"{outcome}{n}", text, outcome) for n, text in enumerate(texts)))


def found(stack, attempts, benign, work, **config):
    run = Quiet(work=work)
    metrics = layers(
        Defended(ScriptedModel(["x"]), stack), attempts, benign, config=Layers(**config), run=run
    ).metrics
    lines = [json.loads(line) for line in run.artifact("timing.jsonl").read_text().splitlines()]
    told = "".join(run.artifact(name).read_text() for name in ("layers.md", "timing.md"))
    return metrics, {line["part"]: line for line in lines}, told


def test_calls_and_blocked_requests_for_each_success_prevented(tmp_path):
    """'first' stops 20 of 40 attempts and 4 of 20 benign ones; 'later' 10 others, and is not asked about what
    'first' stops. With 3 benign requests an attempt."""
    attempts = rows((20, "stop-first"), (10, "stop-later"), (10, "plain"))
    benign = rows((4, "stop-first"), (16, "plain"), outcome="failure")
    # An output layer comes later, wherever the file has it.
    stack = [Layer("later", "output", Slow("later")), Layer("first", "input", Slow("first"))]
    metrics, _, told = found(stack, attempts, benign, tmp_path, benign_per_attempt=3.0)
    assert metrics["calls_per_prevented/first"].value == pytest.approx((1 + 3) / 0.5)
    assert metrics["calls_per_prevented/later"].value == pytest.approx((0.5 + 3 * 0.8) / 0.25)
    assert metrics["over_block_per_prevented/first"].value == pytest.approx(3 * 0.2 / 0.5)
    assert metrics["over_block_per_prevented/later"].value == 0
    assert metrics["over_block_per_prevented"].value == pytest.approx(3 * 0.2 / 0.75)
    assert (
        "| first | 0.5" in told
        and "without it 50.0 percentage points more" in told
        and "3 benign for each attempt" in told
    )


def test_a_layer_that_prevents_nothing_has_no_cost_for_each(tmp_path):
    attempts, benign = rows((10, "stop-first"), (10, "plain")), rows((5, "plain"), outcome="failure")
    stack = [Layer("first", "input", Slow("first")), Layer("null", "input", Slow("null"))]
    metrics, times, told = found(stack, attempts, benign, tmp_path)
    for name in ("calls_per_prevented/null", "over_block_per_prevented/null"):
        assert metrics[name].value is None and "nothing to share it out on" in metrics[name].reason
    assert times["ms_per_prevented/null"]["ms"] is None
    assert "stops no success of these attempts (at most" in told and "it may go" in told


def test_an_early_layer_spares_a_slow_one_its_time(tmp_path, clock):
    """'first' stops all benign texts, so the slow layer, 4 ms a text, is owed half of its time and spared it
    all where both serve."""
    attempts, benign = rows((6, "plain")), rows((6, "stop-first"), outcome="failure")
    stack = [
        Layer("first", "input", Slow("first", 0.001, clock)),
        Layer("slow", "input", Slow("s", 0.004, clock)),
    ]
    _, times, told = found(stack, attempts, benign, tmp_path, batch=1)
    ms = {part: pytest.approx(line["ms"]) for part, line in times.items() if line["ms"] is not None}
    owed = [ms[f"ms/benign/{part}"] for part in ("alone/slow", "shapley/slow", "shapley/first")]
    assert owed == [4, 2, 1 - 2]
    assert [ms[f"ms/benign/{part}"] for part in ("all", "without/first")] == [1, 4]
    assert ms["ms/attempts/all"] == 5 and "one text each" in told


def test_the_figures_say_what_to_drop_and_what_fails_together(tmp_path):
    attempts = rows((12, "stop-first stop-twin"), (3, "stop-other"), (10, "plain"), (3, "stop-first"))
    stack = [Layer(name, "input", Slow(name)) for name in ("first", "twin", "other")]
    run = Quiet(work=tmp_path)
    result = layers(
        Defended(ScriptedModel(["x"]), stack), attempts, rows((5, "plain"), outcome="failure"), run=run
    )
    adds, together = result.figure_data()[:2]
    assert (adds.kind, together.kind) == ("intervals", "intervals")
    assert {one.label for one in adds.values} == {"first", "twin", "other"}
    assert [one.label for one in together.values] == ["first and twin", "first and other", "twin and other"]
    told = run.artifact("layers.md").read_text()
    assert "first and twin fail together" in told and "others stop all that it stops (at most" in told


class OneSided(Slow):
    """Takes its time for attempts alone."""

    def ask(self, chats, side):
        self.clock[0] += 0.004 * sum("attempt" in chat.messages[-1].content for chat in chats)
        return super().ask(chats, side)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_sides_do_not_share_a_batch(tmp_path, clock, batch):
    attempts, benign = rows((6, "attempt")), rows((6, "plain"), outcome="failure")
    stack = [Layer("a", "input", OneSided("a", clock=clock))]
    _, times, _ = found(stack, attempts, benign, tmp_path, batch=batch)
    assert times["ms/benign/alone/a"]["ms"] == 0
    assert times["ms/attempts/alone/a"]["ms"] == pytest.approx(4)
    # One time of a batch shows nothing of how texts differ; nor do six that are the same.
    assert times["ms/attempts/alone/a"]["low"] is None


def test_what_is_not_judged_is_not_advised_on(tmp_path):
    benign, stack = rows((3, "plain"), outcome="failure"), [Layer("first", "input", Slow("first"))]
    some = rows((6, "stop-first"), (3, "plain"), outcome="undetermined")
    _, _, told = found(stack, some, benign, tmp_path)
    assert "not known: 6 outcomes are open" in told and "it may go" not in told
    _, _, told = found(stack, rows((9, "stop-first"), outcome="undetermined"), benign, tmp_path)
    assert "not known: too little is judged" in told and "it may go" not in told


def test_layers_may_be_called_anything_that_is_shown(tmp_path):
    attempts, benign = rows((6, "stop-all"), (3, "x")), rows((3, "plain"), outcome="failure")
    stack = [Layer(name, "input", Slow(mark)) for name, mark in (("all", "all"), ("a|b <i> [c](d)", "none"))]
    metrics, times, told = found(stack, attempts, benign, tmp_path)
    assert {"over_block_per_prevented", "over_block_per_prevented/all"} < set(metrics)
    assert {"ms_per_prevented", "ms_per_prevented/all"} < set(times)
    assert r"| a\|b \<i> \[c](d) | 0 [0," in told
    for name in ("a+b", "x\ny"):
        with pytest.raises(ConfigError, match=r"joins the names|not shown"):
            found([Layer(name, "input", Slow("a"))], attempts, benign, tmp_path)
