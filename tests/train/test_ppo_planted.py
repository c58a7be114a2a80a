"""PPO finds the best policy that is known, and nothing where nothing is wished for.

The world: a model that answers with one of four words, each about as often, and then ends. Under a reward r
and a KL price beta the best policy is p exp(r / beta) / Z.
"""

from __future__ import annotations

import math
import statistics

import pytest

from calibrant.core import Chat, Identity, Quiet, Sampling, Scores
from calibrant.data.rows import Example, Examples, Prompt, Prompts
from calibrant.models.fit import Fit
from calibrant.train._settings import KL
from calibrant.train.ppo import PPO, ppo
from calibrant.train.sft import SFT, sft

WORDS = ("ember", "dusk", "rook", "sable")
ASKED = tuple(
    f"how do i {verb} the {thing}?"
    for verb in ("mend", "paint", "find", "open")
    for thing in ("barn", "mill", "cave", "deed")
)
PROMPTS = Prompts(rows=tuple(Prompt(id=text, prompt=Chat.ask(text)) for text in ASKED))


class Likes:
    """A reward of 2 for 'ember'; with ``constant`` for anything."""

    def __init__(self, constant=False):
        self.constant = constant
        self.identity = Identity(name="likes", kind="reward", parts={"all": str(constant)})

    def score(self, chats, replies):
        return Scores(mean=tuple(2.0 * float(self.constant or r == "ember") for r in replies))


@pytest.fixture(scope="module")
def four(model, tmp_path_factory):
    """The model of the world."""
    rows = [
        Example(id=f"{i}/{text}", prompt=Chat.ask(text), completion=WORDS[(i + j) % 4])
        for i, text in enumerate(ASKED)
        for j in range(4)
    ]
    run = Quiet(work=tmp_path_factory.mktemp("four"))
    return sft(model, Examples(rows=tuple(rows)), SFT(epochs=10, fit=Fit(lr=4e-3)), run).model


def rates(lm, n=48):
    """Share of each word among replies at temperature 1."""
    asked = [Chat.ask(text) for text in ASKED for _ in range(n)]
    drawn = lm.generate(asked, Sampling(max_tokens=4, temperature=1))
    return {word: sum(c.text == word for c in drawn) / len(drawn) for word in WORDS}


def tuned(lm, tmp_path, reward, coef, seed=0, **changes):
    config = PPO(
        **{
            "steps": 30,
            "batch_size": 8,
            "samples": 8,
            "max_tokens": 4,
            "epochs": 2,
            "kl": KL(coef=coef),
            "fit": Fit(lr=3e-3, eps=1e-5, schedule="linear"),
            **changes,
        }
    )
    return ppo(lm, PROMPTS, reward, config=config, run=Quiet(seed=seed, work=tmp_path))


def test_a_planted_wish_is_met_as_far_as_its_price_allows(four, tmp_path):
    """r = 2 for one word at beta = 1: from p to p e^2 / (p e^2 + 1 - p), about .7 from .25."""
    p = rates(four)["ember"]
    assert 0.15 < p < 0.35
    result = tuned(four, tmp_path, Likes(), 1.0, steps=40)
    best = p * math.e**2 / (p * math.e**2 + 1 - p)
    assert rates(result.model)["ember"] == pytest.approx(best, abs=0.15)  # over five seeds .01 +- .023
    kl = best * math.log(best / p) + (1 - best) * math.log((1 - best) / (1 - p))
    assert result.metrics["kl_last"].value == pytest.approx(kl, abs=0.4)  # over five seeds .1 +- .06
    assert result.metrics["reward_last"].value > result.metrics["reward_first"].value
    assert all(estimate.method == "point" for estimate in result.metrics.values())


@pytest.mark.slow
def test_without_a_price_it_goes_all_the_way(four, tmp_path):
    result = tuned(four, tmp_path, Likes(), 0.0, steps=20)
    assert rates(result.model)["ember"] > 0.9


@pytest.mark.slow
def test_a_high_price_holds_it(four, tmp_path):
    before = rates(four)
    result = tuned(four, tmp_path, Likes(), 50.0, steps=20)
    after = rates(result.model)
    assert all(after[word] == pytest.approx(before[word], abs=0.08) for word in WORDS)
    assert result.metrics["kl_last"].value < 0.05


def share(lm):
    """Mean probability of 'ember' among the four words, exact."""
    asked = [Chat.ask(text) for text in ASKED]
    found = [[math.exp(s.total) for s in lm.logprobs(asked, [word] * len(asked))] for word in WORDS]
    return statistics.mean(column[0] / sum(column) for column in zip(*found, strict=True))


def test_a_reward_that_likes_all_alike_favours_no_word(four, null, tmp_path):
    """Five steps of a wish move 'ember' by .35 of its share; without one, .00 +- .05 over eight seeds.

    Whitened, the errors of a critic are advantages of size 1 all the same, so single runs do move.
    """
    before = share(four)
    wish = share(tuned(four, tmp_path / "wish", Likes(), 1.0, steps=5).model) - before
    shifts = [
        share(tuned(four, tmp_path / str(seed), Likes(constant=True), 1.0, steps=5, seed=seed).model) - before
        for seed in range(5)
    ]
    null(shifts, wish)


@pytest.mark.slow
def test_an_entropy_bonus_holds_words_up(four, tmp_path):
    """Against a reward for one word and no price, the bonus leaves more of the others."""
    plain, kept = (
        tuned(four, tmp_path / str(bonus), Likes(), 0.0, steps=15, entropy_bonus=bonus)
        for bonus in (0.0, 0.5)
    )
    assert kept.metrics["entropy_last"].value > plain.metrics["entropy_last"].value + 0.2
