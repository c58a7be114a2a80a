"""Mean reward and KL: exact for a model that says one thing, 0 from itself, and paid for by a trained one."""

from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest
import torch

from calibrant.core import Chat, Identity, InputError, Quiet, Sampling, Scores
from calibrant.data.rows import Prompt, Prompts
from calibrant.measure.reward import RewardConfig, reward
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer

SHORT = RewardConfig(samples=8, sampling=Sampling(max_tokens=6, temperature=1.0))


class Words:
    """The number of words: a reward that anyone can check."""

    identity = Identity(name="words", kind="reward")

    def score(self, chats, replies):
        return Scores(mean=tuple(float(len(reply.split())) for reply in replies), std=(0.5,) * len(replies))


@pytest.fixture(scope="module")
def model():
    tokenizer = build_tokenizer()
    return OpenModel.from_module(build_module("tiny", len(tokenizer), 3), tokenizer, "tiny")


def prompts(*texts):
    return Prompts(rows=tuple(Prompt(id=t, prompt=Chat.ask(t)) for t in texts))


def test_the_mean_is_that_of_the_stored_replies(model, tmp_path):
    found = reward(model, prompts("how", "who"), Words(), None, SHORT, Quiet(work=tmp_path))
    rows = pq.read_table(tmp_path / "artifacts" / "samples.parquet").to_pylist()
    assert len(rows) == 16
    assert all(row["reward"] == len(row["reply"].split()) for row in rows)
    assert found.metrics["reward"].value == pytest.approx(sum(row["reward"] for row in rows) / 16)
    assert found.metrics["reward"].clusters == 2
    assert found.metrics["reward_std"].value == 0.5
    assert "kl" not in found.metrics


def test_a_model_is_no_distance_from_itself(model, tmp_path):
    found = reward(model, prompts("how", "who"), Words(), model, SHORT, Quiet(work=tmp_path))
    assert found.metrics["kl"].value == pytest.approx(0.0, abs=1e-4)
    assert found.metrics["sqrt_kl"].value == pytest.approx(0.0, abs=0.02)


def test_the_kl_is_that_of_the_distributions(model, tmp_path):
    """One token a reply: k1's mean over many draws is the exact KL of two tables of next tokens."""
    other = model.copy()
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    other = OpenModel.from_module(other.module.requires_grad_(False), model.tokenizer, "other")
    one = RewardConfig(samples=4000, sampling=Sampling(max_tokens=1, temperature=0.7))
    found = reward(model, prompts("how"), Words(), other, one, Quiet(work=tmp_path)).metrics["kl"]
    batch = model.encode([Chat.ask("how")])
    ours, theirs = (
        (lm.forward(batch)[0, -1].detach().double() / 0.7).log_softmax(-1) for lm in (model, other)
    )
    exact = float((ours.exp() * (ours - theirs)).sum())
    rows = pq.read_table(tmp_path / "artifacts" / "samples.parquet").to_pylist()
    spread = math.sqrt(sum((r["kl"] - found.value) ** 2 for r in rows) / 4000**2)
    assert exact > 0.01
    assert abs(found.value - exact) < 4 * spread


def test_what_cannot_be_measured_is_said(model):
    with pytest.raises(InputError, match="no prompts"):
        reward(model, Prompts(rows=()), Words())
    with pytest.raises(InputError, match="temperature 0"):
        reward(model, prompts("how"), Words(), None, RewardConfig(sampling=Sampling(temperature=0.0)))
