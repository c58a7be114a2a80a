"""Capability: closed forms, planted loss and gain, a null model, and missing answers at their worst."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Chat, Completion, InputError, Quiet
from calibrant.data.rows import Item, Items
from calibrant.measure.capability import Capability, capability, losses, matches
from calibrant.models.scripted import ScriptedModel
from calibrant.stats import rate

LOST = Completion(text="", stop="error", error="no line")
BLOCKED = Completion(text="4", stop="blocked", error="layer a")


def sums(count):
    return Items(
        rows=tuple(
            Item(id=f"s{i}", chat=Chat.ask(f"{i} + 1"), answer=str(i + 1), kind="odd" if i % 2 else "even")
            for i in range(count)
        )
    )


def adder(wrong=(), name=""):
    """Right on every sum but those in ``wrong``."""

    def reply(chat):
        first = int(chat.last_user.split()[0])
        return "dunno" if first in wrong else str(first + 1)

    return ScriptedModel(reply, name=name or f"adder without {sorted(wrong)}")


@pytest.mark.parametrize(
    ("reply", "answer", "how", "right"),
    [
        ("Paris", "paris", "exact", True),
        ("  paris. ", "Paris", "exact", True),
        ("paris!?", "paris", "exact", True),
        ("it is paris", "paris", "exact", False),
        ("", "paris", "exact", False),
        ("...", "paris", "exact", False),
        ("!", "!", "exact", True),
        ("it is Paris, surely", "paris", "contains", True),
        ("comparison", "paris", "contains", False),
        ("new\n york", "new york", "contains", True),
        ("in New York.", "new york", "contains", True),
        ("the sum is 3.", "3", "contains", True),
        ("the sum is 3, i think", "3", "contains", True),
        ("13", "3", "contains", False),
        ("30", "3", "contains", False),
        ("3.5", "3", "contains", False),
        ("2,300", "300", "contains", False),
        ("1.3", "3", "contains", False),
        ("-3", "3", "contains", False),
        ("-3", "-3", "contains", True),
        ("a.b is it", "a.b", "contains", True),
        ("axb is it", "a.b", "contains", False),
        ("non-stick", "stick", "contains", True),
    ],
)
def test_matches(reply, answer, how, right):
    assert matches(reply, answer, how) is right


def test_accuracy_closed_form_and_by_kind():
    """Ten sums, wrong on 1 and 2: 8 of 10; odd 4 of 5, even 4 of 5."""
    metrics = capability(adder({1, 2}), sums(10)).metrics
    assert metrics["accuracy"] == rate([i not in (1, 2) for i in range(10)], better="higher", unit="item")
    assert metrics["accuracy/odd"].value == metrics["accuracy/even"].value == 4 / 5
    assert set(metrics) == {"accuracy", "accuracy/odd", "accuracy/even"}


def test_planted_loss_is_found_and_paired_on_items():
    """Before wrong on {0}; after wrong on {0..9} of 40: 9 lost, none gained. p = 2 (1/2)^9."""
    metrics = capability(adder(range(10)), sums(40), adder({0})).metrics
    loss = metrics["capability_loss"]
    assert loss.value == pytest.approx(9 / 40)
    assert loss.low > 0
    assert (loss.better, loss.null_value, loss.n) == ("lower", 0, 40)
    assert metrics["accuracy_before"].value == 39 / 40
    assert metrics["answer_flip_rate"].value == 9 / 40
    assert metrics["mcnemar_p"].value == pytest.approx(2 * 0.5**9)
    assert metrics["mcnemar_p"].method == "point"


def test_the_model_itself_is_no_baseline():
    with pytest.raises(InputError, match="the very model"):
        capability(adder({3}), sums(20), adder({3}))


def test_a_model_that_never_answers_is_not_measured():
    lost = ScriptedModel(lambda chat: Completion(text="", stop="error", error="down"))
    with pytest.raises(InputError, match="none of 20 items got a reply; the first: down"):
        capability(lost, sums(20))


def test_null_an_equal_model_loses_nothing():
    metrics = capability(adder({3}), sums(20), adder({3}, name="twin")).metrics
    assert metrics["capability_loss"].value == 0
    assert metrics["capability_loss"].low < 0 < metrics["capability_loss"].high
    assert (metrics["answer_flip_rate"].value, metrics["mcnemar_p"].value) == (0, 1)


def test_a_gain_is_a_negative_loss():
    assert capability(adder(), sums(10), adder({0, 1})).metrics["capability_loss"].value == pytest.approx(
        -0.2
    )


def test_flips_show_what_an_unchanged_mean_hides():
    """Wrong on {0, 1} before and on {2, 3} after: no loss, four of ten flipped."""
    metrics = capability(adder({2, 3}), sums(10), adder({0, 1})).metrics
    assert metrics["capability_loss"].value == 0
    assert metrics["answer_flip_rate"].value == 4 / 10


def test_errors_are_missing_at_their_worst_and_blocked_is_wrong():
    items = Items(rows=sums(4).rows)
    found = capability(ScriptedModel(["1", LOST, BLOCKED, "4"]), items)
    assert found.correct == {"s0": True, "s1": None, "s2": False, "s3": True}
    accuracy = found.metrics["accuracy"]
    assert (accuracy.value, accuracy.missing) == (2 / 3, 1)
    assert accuracy.low == rate([True, False, False, True], better="higher", unit="item").low


def test_a_missing_answer_on_either_side_widens_the_loss():
    whole = losses([True] * 10, [True] * 10)["capability_loss"]
    gap = losses([True] * 10, [True] * 9 + [None])["capability_loss"]
    assert gap.high == losses([True] * 10, [True] * 9 + [False])["capability_loss"].high > whole.high
    assert losses([True] * 10, [True] * 9 + [None])["answer_flip_rate"].missing == 1
    blank = losses([None] * 3, [None] * 3)
    assert blank["capability_loss"].value is None
    assert blank["mcnemar_p"].value == 1


def test_answers_are_stored(tmp_path):
    model, earlier = ScriptedModel(["1", LOST, "three"]), ScriptedModel(["1", "2", "3"])
    capability(model, sums(3), earlier, run=Quiet(work=tmp_path))
    text = (tmp_path / "artifacts" / "answers.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["correct"] for row in rows] == [True, None, False]
    assert rows[2] == {
        "id": "s2",
        "kind": "even",
        "answer": "3",
        "reply": "three",
        "correct": False,
        "reply_before": "3",
        "correct_before": True,
    }


class Purse(Quiet):
    """Notes what was spent, and whether the model was asked before that."""

    def __init__(self):
        super().__init__()
        self.tokens = self.queries = 0

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        self.tokens += tokens
        self.queries += queries


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches_change_neither_answers_nor_bill(batch):
    """Seven questions of at most five tokens, ids unknown: 7 queries, 35 tokens a model."""
    purse = Purse()
    metrics = capability(adder({1}), sums(7), adder(), Capability(batch=batch, max_tokens=5), purse).metrics
    assert metrics["accuracy"].value == 6 / 7
    assert (purse.queries, purse.tokens) == (14, 70)


def test_known_tokens_are_billed_as_they_are():
    purse = Purse()
    capability(ScriptedModel([Completion(text="1", ids=(7, 8))]), sums(1), run=purse)
    assert purse.tokens == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no items"),
        ([*sums(1).rows, *sums(1).rows], "share the id 's0'"),
        ([Item(id="x", chat=Chat.ask("?"), answer=" ")], "'x' has a blank answer"),
    ],
)
def test_items_that_mean_nothing_are_refused(rows, words):
    with pytest.raises(InputError, match=words):
        capability(ScriptedModel([]), Items(rows=tuple(rows)))
