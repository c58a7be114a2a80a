"""Rollouts: what was drawn, how long it is, whether it ended, and under which distribution."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from calibrant.core import (
    CapabilityError,
    Chat,
    Completion,
    ConfigError,
    InputError,
    NumericalError,
    Sampling,
    Scores,
)
from calibrant.models.branches import pack, score
from calibrant.models.rollouts import roll
from calibrant.testbed.nulls import open_null

CHATS = [Chat.ask("how do i mend the barn?"), Chat.ask("who?"), Chat.ask("where is the mill?")]


@pytest.fixture(scope="module")
def model():
    return open_null("tiny", {"seed": "5"})


@pytest.fixture(scope="module")
def ending(model):
    """A model that ends about a third of its replies at each token: its end token is made likely."""
    lm = model.copy()
    with torch.no_grad():
        lm.module.get_output_embeddings().weight.mul_(0.01)
    end = lm.chat_tokens.end_id
    real = lm.module.forward

    def forward(*args, **options):
        out = real(*args, **options)
        out.logits[..., end] += 6.0
        return out

    lm.module.forward = forward
    return lm


def test_each_reply_is_what_was_drawn(model):
    """ids, text, log-probs and prompt as ``generate`` gave them, K to a prompt side by side."""
    sampling = Sampling(max_tokens=5, temperature=0.8, seed=3)
    rolled = roll(model, CHATS, 2, sampling)
    repeated = [chat for chat in CHATS for _ in range(2)]
    drawn = model.generate(repeated, sampling)
    assert rolled.chats == tuple(repeated)
    assert rolled.texts == tuple(c.text for c in drawn)
    assert [ids for group in rolled.branches.replies for ids in group] == [list(c.ids) for c in drawn]
    assert rolled.branches.prompts == [model.prompt_ids(chat) for chat in CHATS]
    for row, n, completion in zip(rolled.behaviour, rolled.lengths.tolist(), drawn, strict=True):
        assert row[:n].tolist() == pytest.approx(completion.logprobs)
        assert not row[n:].any()
    assert len(rolled) == 6
    assert rolled.samples == 2
    assert rolled.tokens == sum(map(len, rolled.branches.prompts)) + int(rolled.lengths.sum())


def test_samples_of_one_prompt_differ_and_a_seed_repeats_them(model):
    first, again, other = (
        roll(model, CHATS, 3, Sampling(max_tokens=5, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first.texts == again.texts != other.texts
    assert len(set(first.texts[:3])) == 3


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_behaviour_is_what_a_training_pass_finds(model, temperature):
    """Old and new log-probs agree only where both divide the logits by the temperature."""
    rolled = roll(model, CHATS, 2, Sampling(max_tokens=6, temperature=temperature))
    packed = pack(rolled.branches, shared=True)
    found = score(model.module, packed, temperature=temperature).padded()
    torch.testing.assert_close(found, rolled.behaviour, atol=1e-4, rtol=0)
    if temperature != 1.0:
        wrong = score(model.module, packed).padded()
        assert float((wrong - rolled.behaviour).abs().max()) > 0.1


def test_ended_and_cut_off_are_told_apart(ending):
    """An ended reply has its stop token, and it counts; a cut one has all the tokens that there were."""
    rolled = roll(ending, CHATS, 20, Sampling(max_tokens=3, temperature=1.0))
    assert 5 < int(rolled.ended.sum()) < 55
    replies = [ids for group in rolled.branches.replies for ids in group]
    for ids, ended, n in zip(replies, rolled.ended.tolist(), rolled.lengths.tolist(), strict=True):
        assert len(ids) == n <= 3
        assert (ids[-1] == ending.chat_tokens.end_id) is ended
        assert ended or n == 3
    assert "" in rolled.texts  # a reply may end at once, and is one token long
    assert int(rolled.lengths[rolled.texts.index("")]) == 1


def test_parts_of_a_rollout(model):
    rolled = roll(model, CHATS, 2, Sampling(max_tokens=4, temperature=1.0))
    part = rolled.of([2, 0])
    assert part.prompts == [rolled.branches.prompts[2], rolled.branches.prompts[0]]
    assert rolled.rows([2, 0]) == [4, 5, 0, 1]
    assert [ids for group in part.replies for ids in group] == [
        rolled.branches.replies[i // 2][i % 2] for i in rolled.rows([2, 0])
    ]


def test_rewards_only_once_there_are_any(model):
    rolled = roll(model, CHATS, 1, Sampling(max_tokens=2, temperature=1.0))
    with pytest.raises(InputError, match="no scores"):
        _ = rolled.rewards
    scored = dataclasses.replace(rolled, scores=Scores(mean=(1.0, 2.0, 3.0)))
    assert scored.rewards.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        rolled.temperature = 2.0


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0, top_p=0.9), Sampling(temperature=0.0)])
def test_sampling_whose_log_probs_are_another_distributions(model, sampling):
    with pytest.raises(ConfigError, match="plain sampling"):
        roll(model, CHATS, 1, sampling)


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        (Completion(text="", stop="error", error="NaN"), NumericalError),
        (Completion(text="hello"), CapabilityError),
        (Completion(text="", ids=(), logprobs=(), stop="length"), CapabilityError),
    ],
)
def test_what_cannot_be_trained_on(model, monkeypatch, completion, error):
    monkeypatch.setattr(model, "generate", lambda chats, sampling: [completion] * len(chats))
    with pytest.raises(error):
        roll(model, CHATS, 1, Sampling(temperature=1.0))
