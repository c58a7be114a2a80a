"""Credit for a reply's score: our default, TRL 1.12 and Huang et al. on the same replies, by slow loops."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from calibrant.train._ppo_critic import Values
from calibrant.train._ppo_rollout import credited
from calibrant.train._settings import KL, Shaping
from calibrant.train.ppo import PPO

GAMMA, LAM, COEF = 0.98, 0.9, 0.07


class Batch:
    """Replies of many lengths in plain lists: a KL a token, values, one value behind the last token."""

    def __init__(self, seed, lengths=(1, 4, 2, 6, 6, 3)):
        rng = random.Random(seed)
        self.lengths, self.width = lengths, max(lengths)
        self.kl = [[rng.uniform(-1, 1) for _ in range(n)] for n in lengths]
        self.values = [[rng.uniform(-1, 1) for _ in range(n)] for n in lengths]
        self.after = [rng.uniform(-1, 1) for _ in lengths]
        self.scores = [rng.uniform(-2, 2) for _ in lengths]
        self.ended = [n < self.width or i == lengths.index(self.width) for i, n in enumerate(lengths)]

    def padded(self, rows, fill):
        return torch.tensor([row + [fill] * (self.width - len(row)) for row in rows], dtype=torch.float64)

    def credited(self, **changes):
        """By the function under test; the penalty holds NaN beyond the replies."""
        return credited(
            torch.tensor(self.scores, dtype=torch.float64),
            COEF * self.padded(self.kl, math.nan),
            Values(self.padded(self.values, 0.0), torch.tensor(self.after, dtype=torch.float64)),
            torch.tensor(self.lengths),
            torch.tensor(self.ended),
            PPO(gamma=GAMMA, lam=LAM, kl=KL(coef=COEF), **changes),
        )


def slow_gae(rewards, values, ahead=0.0):
    advantages, running = [], 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        running = reward + GAMMA * ahead - value + GAMMA * LAM * running
        advantages.append(running)
        ahead = value
    return advantages[::-1]


def slow_whiten(rows, unbiased, shift):
    flat = [x for row in rows for x in row]
    mean, spread = statistics.mean(flat), (statistics.stdev if unbiased else statistics.pstdev)(flat)
    root = math.sqrt(spread**2 + 1e-8)
    return [[(x - mean) / root + (0.0 if shift else mean) for x in row] for row in rows]


def slow_trl(batch, *, whiten_rewards, unbiased):
    """TRL 1.12's steps 4 to 6 on whole tables, padding included, as its loop has them.

    The response ends at index e. The score goes to e + 1 where the table has it; values and rewards exist up
    to there; advantages are whitened over the tokens alone.
    """
    rewards, values, exists = [], [], []
    for i, n in enumerate(batch.lengths):
        pads = batch.width - n
        row = [-COEF * k for k in batch.kl[i]] + [0.0] * pads
        row[n if n < batch.width else n - 1] += batch.scores[i]
        rewards.append(row)
        values.append((batch.values[i] + [batch.after[i]] + [0.0] * pads)[: batch.width])
        exists.append(min(n + 1, batch.width))
    if whiten_rewards:
        white = slow_whiten([row[:n] for row, n in zip(rewards, exists, strict=True)], unbiased, shift=False)
        rewards = [row + [0.0] * (batch.width - len(row)) for row in white]
    advantages = [slow_gae(r, v) for r, v in zip(rewards, values, strict=True)]
    returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(advantages, values, strict=True)]
    kept = [row[:n] for row, n in zip(advantages, batch.lengths, strict=True)]
    returns = [row[:n] for row, n in zip(returns, exists, strict=True)]
    return slow_whiten(kept, unbiased, shift=True), returns


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("unbiased", [True, False], ids=["TRL 1.12", "Huang et al."])
def test_the_numbers_of_trl_and_of_huang(unbiased, whiten_rewards, seed):
    batch = Batch(seed)
    found = batch.credited(score_at="after", unbiased=unbiased, shaping=Shaping(whiten=whiten_rewards))
    advantages, returns = slow_trl(batch, whiten_rewards=whiten_rewards, unbiased=unbiased)
    torch.testing.assert_close(found.advantages, batch.padded(advantages, 0.0), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.returns, batch.padded(returns, 0.0), rtol=0, atol=1e-9)
    assert found.masks.steps.sum(1).tolist() == [min(n + 1, 6) for n in batch.lengths]
    assert found.masks.tokens.sum(1).tolist() == list(batch.lengths)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("truncated", ["terminal", "bootstrap"])
def test_our_own_rule_by_a_slow_loop(truncated, seed):
    """Each reply alone: score on its last token; what was cut off is followed by nothing, or by its value."""
    batch = Batch(seed)
    found = batch.credited(truncated=truncated, whiten_advantages=False)
    for i, n in enumerate(batch.lengths):
        rewards = [-COEF * k for k in batch.kl[i]]
        rewards[-1] += batch.scores[i]
        ahead = batch.after[i] if truncated == "bootstrap" and not batch.ended[i] else 0.0
        slow = slow_gae(rewards, batch.values[i], ahead)
        assert found.advantages[i, :n].tolist() == pytest.approx(slow, abs=1e-12)
        assert found.returns[i, :n].tolist() == pytest.approx(
            [a + v for a, v in zip(slow, batch.values[i], strict=True)], abs=1e-12
        )
        assert not found.advantages[i, n:].any()
        assert not found.returns[i, n:].any()


def test_the_two_places_of_the_score_give_different_advantages():
    """With gamma lam below 1; and each mode would fail the other's transcription."""
    on, behind = (Batch(0).credited(score_at=at) for at in ("last", "after"))
    assert float((on.advantages - behind.advantages).abs().max()) > 0.05


def test_cut_off_matters_only_where_something_was_cut_off():
    batch = Batch(1)
    ended = [i for i, e in enumerate(batch.ended) if e]
    one, two = (batch.credited(truncated=t, whiten_advantages=False) for t in ("terminal", "bootstrap"))
    torch.testing.assert_close(one.advantages[ended], two.advantages[ended])
    assert not torch.allclose(one.advantages, two.advantages)


def test_whitened_advantages_have_mean_0_and_variance_1_over_tokens():
    found = Batch(2).credited()
    inside = found.advantages[found.masks.tokens]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(inside.var()) == pytest.approx(1.0, abs=1e-6)


def test_whitened_rewards_keep_their_mean():
    """With lambda 1 and no values the first return of a reply is its summed reward."""
    batch = Batch(0)
    batch.values = [[0.0] * n for n in batch.lengths]
    plain, white = (
        batch.credited(shaping=Shaping(whiten=w), whiten_advantages=False).returns for w in (False, True)
    )
    back = lambda t: t - GAMMA * LAM * torch.nn.functional.pad(t, (0, 1))[:, 1:]  # noqa: E731
    mask = torch.arange(6) < torch.tensor(batch.lengths)[:, None]
    assert float(back(white)[mask].mean()) == pytest.approx(float(back(plain)[mask].mean()), abs=1e-9)
    assert float(back(white)[mask].std()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("score_at", ["last", "after"])
def test_other_replies_do_not_matter(score_at):
    """Without whitening, a reply's credit is the same alone and in a batch, however long the others are."""
    batch = Batch(3)
    whole = batch.credited(score_at=score_at, whiten_advantages=False)
    short = Batch(3)
    for name in ("kl", "values", "after", "scores", "ended", "lengths"):
        setattr(short, name, getattr(batch, name)[:3])
    short.width = 5  # the longest of the three has 4 tokens: one place more, for the score behind it
    part = short.credited(score_at=score_at, whiten_advantages=False)
    torch.testing.assert_close(part.advantages, whole.advantages[:3, :5])
