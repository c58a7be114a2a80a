"""Preference accuracy: ties, baselines and margins by hand, reference against itself, the verdict's table."""

from __future__ import annotations

import json
import random

import pytest

from calibrant.core import Chat, Estimate, InputError, Quiet, Scored
from calibrant.data.rows import Pair, Preferences
from calibrant.measure.preference import Preference, judge, preference
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer


class Told:
    """A model whose log-probs are told: ``total(reply)`` in nats. A reply is as long as its words."""

    def __init__(self, total, max_length=None):
        self.total, self.max_length = total, max_length

    def prompt_ids(self, chat):
        return chat.last_user.split()

    def reply_ids(self, text):
        return text.split()

    def logprobs(self, chats, replies):
        return [Scored(ids=(0,), logprobs=(float(self.total(r)),)) for r in replies]


def table(*sides):
    rows = [
        Pair(id=str(i), prompt=Chat.ask("which one?"), chosen=a, rejected=b) for i, (a, b) in enumerate(sides)
    ]
    return Preferences(rows=tuple(rows), source="told")


def values(result):
    return {name: estimate.value for name, estimate in result.metrics.items()}


MARKS = {"a": -1.0, "bb": -2.0, "ccc": -3.0, "dd": -2.0}
PAIRS = table(("a", "bb"), ("bb", "a"), ("bb", "dd"), ("ccc", "a"))


def test_wins_ties_and_lengths_by_hand(tmp_path):
    """Log-probs: won, lost, tied, lost = 1.5 / 4. Characters: shorter, longer, same, longer."""
    result = preference(Told(MARKS.get), PAIRS, run=Quiet(work=tmp_path))
    assert values(result) == {
        "logprob_accuracy": 0.375,
        "shorter_wins": 0.375,
        "longer_wins": 0.625,
        "dropped_for_length": 0.0,
    }
    found = result.metrics["logprob_accuracy"]
    assert (found.n, found.unit, found.better, found.null_value) == (4, "pair", "higher", 0.5)
    assert result.verdict.answer == "unknown"
    assert "no reference" in result.verdict.reason


def test_the_implicit_reward_is_the_gain_over_the_reference(tmp_path):
    """Model - reference per reply: a 0, bb +1, ccc +5, dd -2. So: lost, won, won, won."""
    shift = {"a": 0, "bb": 1, "ccc": 5, "dd": -2}
    result = preference(Told(lambda r: MARKS[r] + shift[r]), PAIRS, Told(MARKS.get), run=Quiet(work=tmp_path))
    found = values(result)
    assert found["implicit_reward_accuracy"] == 0.75
    assert found["logprob_accuracy_reference"] == 0.375
    assert found["logprob_accuracy"] == 0.75  # a -1, bb -1, ccc 2, dd -4: tied, tied, won, won


def test_a_constant_shift_of_the_reference_changes_nothing(tmp_path):
    model = Told(lambda r: 2 * MARKS[r])
    runs = [
        preference(model, PAIRS, Told(lambda r, by=by: MARKS[r] + by), run=Quiet(work=tmp_path))
        for by in (0, -8)
    ]
    assert runs[0].metrics == runs[1].metrics


def test_swapped_sides_turn_every_accuracy_round(tmp_path):
    swapped = table(*[(row.rejected, row.chosen) for row in PAIRS])
    model, reference = Told(lambda r: -(len(r) ** 2) - ord(r[0])), Told(MARKS.get)
    one, two = (values(preference(model, p, reference, run=Quiet(work=tmp_path))) for p in (PAIRS, swapped))
    del one["dropped_for_length"]
    assert {name: 1 - value for name, value in one.items()}.items() <= two.items()


def test_long_pairs_are_left_out_and_counted(tmp_path):
    sides = [("bb", "a"), ("a b c d e", "a"), ("a", "ccc")]
    asked = Preference(max_length=5)
    model = Told(lambda r: MARKS.get(r, 0.0), max_length=100)
    result = preference(model, table(*sides), config=asked, run=Quiet(work=tmp_path))
    assert result.metrics["logprob_accuracy"].n == 2
    assert values(result)["logprob_accuracy"] == 0.5
    assert values(result)["dropped_for_length"] == pytest.approx(1 / 3)


def test_nothing_left(tmp_path):
    with pytest.raises(InputError, match="no rows") as caught:
        preference(Told(MARKS.get), table(), run=Quiet(work=tmp_path))
    assert caught.value.hint


def test_queries_are_charged(tmp_path):
    class Count(Quiet):
        queries = 0

        def spend(self, *, tokens=0, queries=0, flops=0.0):
            self.queries += queries

    run = Count(work=tmp_path)
    preference(Told(MARKS.get), PAIRS, Told(MARKS.get), run=run)
    assert run.queries == 2 * 2 * 4


# The verdict


def reading(low, shorter=0.45, longer=0.55, value=0.8):
    found = Estimate(value=value, low=low, high=0.95)
    return {
        "implicit_reward_accuracy": found,
        "shorter_wins": Estimate(value=shorter),
        "longer_wins": Estimate(value=longer),
    }


@pytest.mark.parametrize(
    ("metrics", "answer"),
    [
        (reading(0.7), "yes"),
        (reading(0.56), "yes"),
        (reading(0.55), "no"),  # on the line of the longer one is not above it
        (reading(0.52), "no"),  # above chance, not above length
        (reading(0.5, longer=0.5, shorter=0.5), "no"),
        (reading(0.4), "no"),
        (reading(0.7, shorter=0.75, longer=0.25), "no"),
        (reading(0.7, shorter=0.25, longer=0.75), "no"),
        (reading(0.51, shorter=0.0, longer=0.0), "yes"),
        (reading(0.49, shorter=0.0, longer=0.0), "no"),  # chance holds even where both baselines are lower
        (reading(None, value=None), "unknown"),
        (reading(None), "unknown"),
        (reading(0.7, shorter=None), "unknown"),
        (reading(0.7, longer=None), "unknown"),
        ({k: v for k, v in reading(0.7).items() if k != "implicit_reward_accuracy"}, "unknown"),
    ],
)
def test_truth_table(metrics, answer):
    assert judge(metrics).answer == answer


def test_the_reason_quotes_the_lines_as_they_are():
    verdict = judge(reading(0.7, shorter=0.0, longer=1.0))
    assert verdict.reason == (
        "accuracy 0.800 [0.700, 0.950] against chance 0.500, shorter wins 0.000, longer wins 1.000"
    )
    assert verdict.score == 0.8


def test_the_verdict_is_stored_and_leads_the_caveats(tmp_path):
    run = Quiet(work=tmp_path)
    result = preference(Told(MARKS.get), PAIRS, Told(MARKS.get), run=run)
    stored = json.loads(run.artifact("verdict.json").read_text())
    assert stored == result.verdict.model_dump(mode="json")
    assert result.caveats[0] == f"not supported: {result.verdict.reason}"


# Planted and null, on real weights and by lot


@pytest.fixture(scope="module")
def model():
    tokenizer = build_tokenizer()
    return OpenModel.from_module(build_module("tiny", len(tokenizer), 5), tokenizer, "tiny")


def test_the_reference_against_itself_is_exactly_one_half(model, tmp_path):
    """Every pair ties, whatever the lengths, and also for a copy of the weights."""
    pairs = table(*[("ember " * (i % 5 + 1), "no the barn " * (i % 3 + 1)) for i in range(30)])
    for reference in (model, model.copy()):
        result = preference(model, pairs, reference, run=Quiet(work=tmp_path))
        assert values(result)["implicit_reward_accuracy"] == 0.5
        assert result.verdict.answer == "no"


def test_a_planted_taste_is_found_beyond_length(tmp_path):
    """The model gained on replies that begin with 'y', which are as often short as long."""
    rng = random.Random(1)
    sides = [("y" * rng.randint(1, 9), "n" * rng.randint(1, 9)) for _ in range(200)]
    result = preference(
        Told(lambda r: -len(r) + 3 * (r[0] == "y")), table(*sides), Told(lambda r: -len(r)),
        run=Quiet(work=tmp_path),
    )  # fmt: skip
    assert values(result)["implicit_reward_accuracy"] == 1.0
    assert result.verdict.answer == "yes"


def test_a_taste_for_length_alone_is_not_a_preference(tmp_path):
    """Chosen replies are mostly the longer ones; a model that only likes length scores high and fails."""
    rng = random.Random(2)
    sides = [("y" * rng.randint(3, 9), "n" * rng.randint(1, 6)) for _ in range(200)]
    result = preference(Told(lambda r: 0.0), table(*sides), Told(lambda r: -len(r)), run=Quiet(work=tmp_path))
    found = result.metrics["implicit_reward_accuracy"]
    assert found.low > 0.5
    assert found.value == values(result)["longer_wins"]
    assert result.verdict.answer == "no"


def test_gains_by_lot_are_chance(tmp_path):
    rng = random.Random(3)
    sides = [(f"y{i}", f"n{i}") for i in range(200)]
    gains = {reply: rng.gauss(0, 1) for pair in sides for reply in pair}
    result = preference(Told(gains.get), table(*sides), Told(lambda r: 0.0), run=Quiet(work=tmp_path))
    found = result.metrics["implicit_reward_accuracy"]
    assert found.low < 0.5 < found.high
    assert result.verdict.answer == "no"
