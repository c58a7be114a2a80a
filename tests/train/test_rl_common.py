"""Prompts in turn, scores checked, KL and shaping settings, and the log of examples."""

from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from calibrant.core import Chat, Identity, InputError, NumericalError, Quiet, Sampling, Scores
from calibrant.data.rows import Prompt, Prompts
from calibrant.maths.kl import AdaptiveKL, FixedKL
from calibrant.maths.shaping import Moments
from calibrant.models.rollouts import roll
from calibrant.train._rl_common import ExampleLog, cuts, cycle, judged, read, with_room
from calibrant.train._settings import KL, Shaping

ROWS = [Prompt(id=t, prompt=Chat.ask(t)) for t in ("who?", "where is the mill?", "how do i mend the barn?")]


class Says:
    """A reward that gives what it is told."""

    identity = Identity(name="says", kind="reward")

    def __init__(self, mean, std=None):
        self.scores = Scores(mean=mean, std=std)

    def score(self, chats, replies):
        return self.scores


@pytest.fixture
def rolled(model):
    return roll(model, [row.prompt for row in ROWS], 2, Sampling(max_tokens=4, temperature=1.0))


def test_every_prompt_has_its_turn():
    """Seven prompts, three a step: each pass of seven has all of them, and the next pass another order."""
    picked = [i for step in range(14) for i in cycle(7, 3, step, seed=0)]
    passes = [picked[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert cycle(7, 3, 5, seed=0) == cycle(7, 3, 5, seed=0) != cycle(7, 3, 5, seed=1)
    assert sorted(cycle(2, 5, 0, seed=0)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_prompts_without_room_are_left_out_whole(model):
    long = Prompt(id="long", prompt=Chat.ask("how " * 1020))
    assert with_room(model, Prompts(rows=(*ROWS, long)), 10) == ROWS
    with pytest.raises(InputError, match="none of 1 prompts leaves room"):
        with_room(model, Prompts(rows=(long,)), 10)
    with pytest.raises(InputError, match="no rows"):
        with_room(model, Prompts(rows=()), 10)


def test_scores_are_taken_as_they_are(rolled):
    scored = judged(Says((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), rolled)
    assert scored.rewards.tolist() == [1, 2, 3, 4, 5, 6]
    assert rolled.scores is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number(rolled, bad):
    with pytest.raises(NumericalError, match="'says' gave"):
        judged(Says((1.0, 2.0, bad, 4.0, 5.0, 6.0)), rolled)


def test_a_wrong_number_of_scores(rolled):
    with pytest.raises(InputError, match="5 scores for 6 replies"):
        judged(Says((1.0,) * 5), rolled)
    with pytest.raises(InputError, match="2 standard deviations for 6 replies"):
        judged(Says((1.0,) * 6, std=(1.0, 1.0)), rolled)


@pytest.mark.parametrize("budget", [1, 20, 40, None])
def test_cuts_hold_every_prompt_once(rolled, budget):
    parts = cuts(rolled, [2, 0, 1], shared=True, budget=budget)
    assert sorted(i for part in parts for i in part) == [0, 1, 2]
    assert len(parts) == {1: 3, 20: 3, 40: 2, None: 1}[budget] or budget in (20, 40)
    if budget == 40:
        assert len(parts) < 3


def test_reading_finds_what_was_drawn(model, rolled):
    torch.testing.assert_close(read(model.module, rolled), rolled.behaviour, atol=1e-4, rtol=0)


def test_shaping_in_its_order():
    """Scores (0, 2, 4), moments of themselves: (-1.22, 0, 1.22), clipped at 1; the last was cut off."""
    scores, ended = torch.tensor([0.0, 2.0, 4.0]), torch.tensor([True, True, False])
    moments = Moments().after(scores)
    shaped = Shaping(normalise=True, clip=1.0, missing_end=0.5).shaped(scores, ended, moments)
    assert shaped.tolist() == pytest.approx([-1.0, 0.0, 0.5], abs=1e-6)
    replaced = Shaping(missing_end=0.5, missing_end_mode="replace").shaped(scores, ended, moments)
    assert replaced.tolist() == [0.0, 2.0, -0.5]
    assert Shaping().shaped(scores, ended, moments).tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("settings", [
    {"place": "loss", "estimator": "k1"},
    {"place": "reward", "estimator": "k3+"},
    {"coef": 0.0, "target": 6.0},
])  # fmt: skip
def test_a_kl_that_cannot_work(settings):
    with pytest.raises(ValidationError):
        KL(**settings)


def test_controllers():
    assert KL(coef=0.2).controller() == FixedKL(0.2)
    assert KL(target=0.1, unit="token").controller() == AdaptiveKL(0.05, 0.1, 10_000, "token")


def test_the_log_of_examples(model, rolled, tmp_path):
    """Ids, prompts and replies, odd letters included, and it goes through tensors unchanged."""
    scored = judged(Says((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), std=(0.5,) * 6), rolled)
    log = ExampleLog()
    for step in (0, 1):
        log.note(step, [2, 0, 1], scored, kl=torch.arange(6.0))
    again = ExampleLog()
    again.restore(log.tensors())
    run = Quiet(work=tmp_path)
    again.write(run, ROWS)
    table = pq.read_table(run.artifact("examples.parquet")).to_pydict()
    assert table["step"] == [0] * 6 + [1] * 6
    assert table["id"] == [ROWS[i].id for i in (2, 2, 0, 0, 1, 1)] * 2
    assert table["prompt"] == table["id"]
    assert table["reply"] == list(rolled.texts) * 2
    assert table["kl"] == [0, 1, 2, 3, 4, 5] * 2
    assert table["reward"][:6] == [1, 2, 3, 4, 5, 6]
    assert table["disagreement"] == [0.5] * 12
    assert table["reply_tokens"][:6] == rolled.lengths.tolist()
    assert table["ended"][:6] == rolled.ended.tolist()
