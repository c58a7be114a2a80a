"""The fast scorer: the numbers of whole rows in every family, whatever is shared and however batched."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from calibrant.attack.suffix import scorer
from calibrant.attack.suffix.scorer import Candidates, Frame, check_length
from calibrant.core import InputError, NumericalError
from calibrant.maths.gcg import target_losses

FRAME = Frame(before=[0, 17, 44, 108, 33, 61, 62, 63], after=[21, 60], target=[77, 13, 250])
NEAR = torch.tensor([30, 31, 32, 33, 34])


def rows_near(count, changes=1):
    generator = torch.Generator().manual_seed(changes)
    rows = NEAR.repeat(count, 1)
    places = torch.rand(count, len(NEAR), generator=generator).argsort()[:, :changes]
    return rows.scatter_(1, places, torch.randint(10, 290, places.shape, generator=generator))


@torch.no_grad()
def slowly(module, frame, rows, mellow=None):
    """Row by row, everything read anew."""
    found = []
    for row in rows.tolist():
        ids = torch.tensor([[*frame.before, *row, *frame.after, *frame.target]])
        logits = module(input_ids=ids).logits[:, -len(frame.target) - 1 : -1]
        found.append(target_losses(logits, torch.tensor(frame.target), mellow))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


@pytest.mark.parametrize("near", [NEAR, None])
def test_losses_are_those_of_whole_rows_in_every_family(lm, near):
    scorer = Candidates(lm.module, FRAME)
    rows = rows_near(40)
    losses, reached = scorer.losses(rows, near)
    slow = slowly(lm.module, FRAME, rows)
    assert_close(losses, slow[0], atol=1e-4, rtol=0)
    assert torch.equal(reached, slow[1])
    assert scorer.shares  # also where the sliding window is shorter than what precedes


@pytest.mark.parametrize("mellow", [None, 2.0])
def test_the_gradient_is_that_of_one_hot_choices(lm, mellow):
    """Whole row, one-hot times the table, autograd through it all."""
    table = lm.module.get_input_embeddings()
    choice = torch.nn.functional.one_hot(NEAR, table.num_embeddings).float().requires_grad_()
    every = table(torch.arange(table.num_embeddings)).detach()  # Gemma scales what it looks up
    parts = [table(torch.tensor(FRAME.before)), choice @ every]
    parts += [table(torch.tensor([*FRAME.after, *FRAME.target]))]
    logits = lm.module(inputs_embeds=torch.cat(parts)[None]).logits[:, -len(FRAME.target) - 1 : -1]
    loss = target_losses(logits, torch.tensor(FRAME.target), mellow)[0].sum()
    (slow,) = torch.autograd.grad(loss, choice)
    scorer = Candidates(lm.module, FRAME, mellow=mellow)
    scorer.losses(NEAR[None])
    assert_close(scorer.gradient(NEAR), slow, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_batches_change_nothing(tiny, monkeypatch, tokens):
    lm, rows = tiny("llama"), rows_near(60, changes=2)
    slow = slowly(lm.module, FRAME, rows, 1.5)
    monkeypatch.setattr(scorer, "_CPU_TOKENS", tokens)
    found = Candidates(lm.module, FRAME, mellow=1.5).losses(rows, NEAR)
    assert_close(found[0], slow[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frame", [FRAME._replace(before=[]), FRAME._replace(after=[], target=[9])])
def test_nothing_before_or_after_the_suffix(tiny, frame):
    lm, rows = tiny("llama"), rows_near(20)
    scorer = Candidates(lm.module, frame)
    losses, _ = scorer.losses(rows, NEAR)
    assert_close(losses, slowly(lm.module, frame, rows)[0], atol=1e-4, rtol=0)
    assert scorer.gradient(NEAR).shape == (5, 300)


def test_equal_rows_are_read_once_and_shared_tokens_are_not_read_again(tiny):
    lm = tiny("llama")
    size = sum(p.numel() for p in lm.module.parameters())
    scorer = Candidates(lm.module, FRAME)
    scorer.losses(NEAR[None], NEAR)
    spent = scorer.flops
    last = torch.tensor([[30, 31, 32, 33, 99], [30, 31, 32, 33, 98], [30, 31, 32, 33, 99]])
    losses, _ = scorer.losses(last, NEAR)
    assert losses[0] == losses[2]
    # Two rows of one changed token, two tokens after it and two of the target; and the suffix itself once.
    assert scorer.flops - spent == 2 * size * (2 * 5 + 5)


def test_a_state_that_cannot_be_shared_is_found_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4)
        module = MambaForCausalLM(config).eval()
    scorer, rows = Candidates(module, FRAME), rows_near(10)
    losses, _ = scorer.losses(rows, NEAR)
    assert scorer.shares is False
    assert_close(losses, slowly(module, FRAME, rows)[0], atol=1e-4, rtol=0)
    assert scorer.gradient(NEAR).shape == (5, 300)


def test_memory_that_runs_out_halves_the_batch(tiny):
    lm, rows = tiny("llama"), rows_near(40)
    slow = slowly(lm.module, FRAME, rows)
    scorer = Candidates(lm.module, FRAME)
    scorer.losses(rows[:2])
    plain, seen = scorer._logits, []

    def small(given, kept, cache=None):
        seen.append(len(given))
        if len(given) > 3:
            raise torch.OutOfMemoryError("no room")
        return plain(given, kept, cache)

    scorer._logits = small
    losses, _ = scorer.losses(rows, NEAR)
    assert_close(losses, slow[0], atol=1e-4, rtol=0)
    assert max(seen) > 3 and set(seen[-5:]) <= {1, 2, 3}


def test_broken_weights_are_an_error(tiny):
    lm = tiny("llama")
    lm.module.lm_head.weight[5] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        Candidates(lm.module, FRAME).losses(NEAR[None])


def test_the_module_is_left_as_it_was():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        module = GPT2LMHeadModel(config).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scorer = Candidates(module, FRAME)
    scorer.losses(rows_near(5), NEAR)
    scorer.gradient(NEAR)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert not module.training


@pytest.mark.parametrize(
    ("frame", "most", "words"), [(FRAME._replace(target=[]), 64, "no token"), (FRAME, 17, "18 tokens")]
)
def test_what_cannot_be_held_is_refused(frame, most, words):
    with pytest.raises(InputError, match=words):
        check_length(frame, 5, most)
