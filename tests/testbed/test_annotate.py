"""Simulated raters: each fault is there as it was planted, and only that one."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from calibrant.core import BudgetError, Chat, Completion, InputError, NumericalError, Quiet, Scores
from calibrant.core.lm import Identity
from calibrant.data.readers import read_file
from calibrant.data.rows import Preferences, Prompt, Prompts
from calibrant.data.votes import read_comparisons, read_votes
from calibrant.testbed.annotate import Annotate, Annotator, annotate


class Drawer:
    """Answers each prompt with 'points N' and filler, a draw of its own for each time it is asked."""

    identity = Identity(name="drawer")

    def __init__(self, answer=None):
        self.answer = answer or (
            lambda text, lot: f"points {lot.randrange(10)} {'so ' * lot.randrange(9)}end"
        )

    def generate(self, chats, sampling):
        seen: Counter[str] = Counter()
        found = []
        for chat in chats:
            text = chat.last_user
            lot = random.Random(f"{sampling.seed}/{text}/{seen[text]}")
            seen[text] += 1
            said = self.answer(text, lot)
            found.append(said if isinstance(said, Completion) else Completion(text=said))
        return found


class Points:
    """The gold truth: the number after 'points'."""

    identity = Identity(name="points", kind="reward")

    def score(self, chats, replies):
        return Scores(mean=tuple(float(reply.split()[1]) for reply in replies))


def prompts(n):
    return Prompts(rows=tuple(Prompt(id=f"p{i}", prompt=Chat.ask(f"how much is {i}?")) for i in range(n)))


def run(tmp_path, *raters, n=400, model=None, seed=0, **more):
    config = Annotate(raters=raters or (Annotator(),), **more)
    return annotate(model or Drawer(), prompts(n), Points(), config, Quiet(seed=seed, work=tmp_path))


def test_noise_alone_leaves_one_minus_noise_true(tmp_path):
    for noise in (0.0, 0.1, 0.3):
        found = run(tmp_path, *[Annotator(noise=noise)] * 3).metrics["votes_true"]
        assert found.low <= 1 - noise <= found.high
        assert found.unit == "vote"
        assert found.high - found.low < 0.1
    assert run(tmp_path, Annotator()).metrics["pairs_true"].value == 1.0


def test_many_noisy_raters_agree_on_truer_pairs(tmp_path):
    """Of five raters with noise .3, three or more are right with chance .837."""
    metrics = run(tmp_path, *[Annotator(noise=0.3)] * 5).metrics
    assert metrics["pairs_true"].low < 0.837 < metrics["pairs_true"].high
    assert metrics["pairs_true"].low > metrics["votes_true"].high


def test_sides_are_by_lot_and_only_a_habit_of_place_sees_them(tmp_path):
    fair = run(tmp_path, Annotator(noise=0.2)).metrics["first_chosen"]
    assert fair.low < 0.5 < fair.high
    leaning = run(tmp_path, Annotator(position_bias=0.6)).metrics["first_chosen"]
    assert leaning.low < 0.6 + 0.4 * 0.5 < leaning.high


def test_each_habit_does_what_it_says():
    """A habit of certainty, and what it falls back on."""
    lot = random.Random(0)
    long, short = "points 1 so so so end", "points 9 end"
    agree, differ = "You are right, it is so", "no, it is not so at all"
    cases = [
        (Annotator(), (long, short), (1, 9), "second"),
        (Annotator(), (long, short), (4, 4), "same"),
        (Annotator(position_bias=1), (long, short), (1, 9), "first"),
        (Annotator(length_bias=1), (long, short), (1, 9), "first"),
        (Annotator(length_bias=1), ("abc", "xyz"), (1, 9), "second"),
        (Annotator(sycophancy=1), (agree, differ), (1, 9), "first"),
        (Annotator(sycophancy=1), (differ, agree), (9, 1), "second"),
        (Annotator(sycophancy=1), (differ, differ), (9, 1), "first"),
        (Annotator(sycophancy=1), (agree, agree), (4, 4), "same"),
        (Annotator(noise=1), (long, short), (1, 9), "first"),
        (Annotator(noise=1), (long, short), (4, 4), "same"),
        (Annotator(noise=1, position_bias=1), (long, short), (9, 1), "second"),
    ]
    for rater, replies, gold, wanted in cases:
        assert rater.choose(replies, gold, lot) == wanted, (rater, replies)


def test_habits_are_mixed_in_their_shares():
    """First .2, longer .3, agreeing .1, gold .4: by hand, with each pointing where it alone points."""
    rater = Annotator(position_bias=0.2, length_bias=0.3, sycophancy=0.1)
    lot = random.Random(1)
    # Gold and length for the second; place and flattery for the first.
    told = Counter(rater.choose(("i agree", "no, not so at all"), (0, 1), lot) for _ in range(20_000))
    assert told["first"] / 20_000 == pytest.approx(0.3, abs=0.015)


def test_habits_beyond_certainty_are_refused():
    with pytest.raises(ValueError, match="must not exceed 1 together"):
        Annotator(position_bias=0.6, length_bias=0.6)


def test_ties_of_the_truth_are_ties(tmp_path):
    result = run(tmp_path, *[Annotator(noise=0.2)] * 2)
    ties = result.metrics["gold_ties"]
    assert ties.value == sum(vote.winner == "tie" for vote in result.votes) / len(result.votes)
    assert 0 < ties.value < 0.2
    decided = {vote.item for vote in result.votes if vote.winner != "tie"}
    assert {pair.id for pair in result.pairs} <= decided


def test_nothing_to_prefer_is_unknown_and_not_perfect(tmp_path):
    lost = Drawer(lambda text, lot: f"points 5 {lot.randrange(99)}")
    metrics = run(tmp_path, model=lost, n=20).metrics
    assert metrics["gold_ties"].value == 1.0
    for name in ("votes_true", "pairs_true", "first_chosen"):
        assert metrics[name].value is None
        assert "prefer no side" in metrics[name].reason


def test_all_pairs_of_several_samples(tmp_path):
    result = run(tmp_path, n=30, samples=4)
    counts = Counter(vote.item.rpartition("/")[0] for vote in result.votes)
    assert max(counts.values()) == 6
    assert result.metrics["compared_share"].n == 30 * 6
    assert result.metrics["compared_share"].clusters == 30


def test_what_cannot_be_compared_is_counted(tmp_path):
    def answer(text, lot):
        number = int(text.split()[-1].rstrip("?"))
        if number == 0:
            return Completion(text="", stop="error", error="gone")
        return " " if number == 1 else "points 3 the same" if number == 2 else f"points {lot.random()} x"

    result = run(tmp_path, model=Drawer(answer), n=10)
    assert result.metrics["compared_share"].value == 0.7
    assert {vote.item for vote in result.votes} == {f"p{i}/0-1" for i in range(3, 10)}


def test_the_three_files_are_read_back(tmp_path):
    result = run(tmp_path, *[Annotator(noise=0.2)] * 3, n=40)
    folder = tmp_path / "artifacts"
    pairs = read_file(Preferences, folder / "pairs.jsonl")
    assert pairs.rows == result.pairs.rows
    assert set(json.loads((folder / "pairs.jsonl").read_text().splitlines()[0])) == {
        "id", "prompt", "chosen", "rejected",
    }  # fmt: skip
    votes = read_votes(folder / "votes.jsonl")
    assert votes.rows == result.votes.rows
    assert votes.simulated
    assert {vote.rater for vote in votes} == {"simulated:0", "simulated:1", "simulated:2"}
    assert votes.data == read_comparisons(folder / "comparisons.jsonl").digest


def test_same_seed_same_votes_and_a_lot_for_each_name(tmp_path):
    """A vote does not depend on which other prompts were asked; another seed draws other lots."""
    rater = Annotator(noise=0.5)
    one, again, other = (run(tmp_path, rater, n=50, seed=seed) for seed in (0, 0, 1))
    assert one.votes == again.votes
    assert one.votes != other.votes
    few = run(tmp_path, rater, n=10)
    assert few.votes.rows == one.votes.rows[: len(few.votes)]
    told = [run(tmp_path, Annotator(noise=0.5, seed=seed), n=50).votes for seed in (0, 1)]
    assert told[0] != told[1]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"n": 0}, InputError, "no prompts"),
        ({"model": Drawer(lambda text, lot: "points 1")}, InputError, "none of 400 prompts"),
        ({"model": Drawer(lambda text, lot: f"points nan {lot.random()}")}, NumericalError, "'p0' is nan"),
    ],
)
def test_what_is_refused(tmp_path, given, error, said):
    with pytest.raises(error, match=said) as caught:
        run(tmp_path, **given)
    assert caught.value.hint


def test_a_reward_of_the_wrong_length_and_an_empty_purse(tmp_path):
    class Short(Points):
        def score(self, chats, replies):
            return Scores(mean=(0.0,))

    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError(f"{queries} queries")

    with pytest.raises(InputError, match="1 scores for"):
        annotate(Drawer(), prompts(9), Short(), run=Quiet(work=tmp_path))
    with pytest.raises(BudgetError, match="18 queries"):
        annotate(Drawer(), prompts(9), Points(), run=Poor(work=tmp_path))
