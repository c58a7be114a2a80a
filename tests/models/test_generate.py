"""Generation: the same tokens as transformers, whatever the batch; draws that follow the distribution."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from calibrant.core import Chat, Completion, Sampling
from calibrant.models.generate import Request, buckets, choose, draw, nucleus
from calibrant.models.open_model import OpenModel
from calibrant.models.seeds import item_seeds

TEXTS = (
    "The cat",
    "",
    "One two three four five six seven",
    "the sky is blue",
    "a",
    "dog sat on the log. The",
)
CHATS = [Chat.ask(text) for text in TEXTS]
Build = Callable[..., OpenModel]


def _reference(lm: OpenModel, chat: Chat, tokens: int) -> tuple[int, ...]:
    """transformers' own greedy search, one prompt at a time."""
    ids = torch.tensor([lm.prompt_ids(chat)])
    out = lm.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=1,
        eos_token_id=list(lm.chat_tokens.stop_ids),
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def _alone(lm: OpenModel, sampling: Sampling) -> list[Completion]:
    return [lm.generate([chat], sampling)[0] for chat in CHATS]


def test_greedy_is_that_of_transformers(lm: OpenModel) -> None:
    """20 tokens pass the sliding window of 6 that two of the families have."""
    found = lm.generate(CHATS, Sampling(max_tokens=20))
    assert [c.ids for c in found] == [_reference(lm, chat, 20) for chat in CHATS]


def test_rows_that_stop_leave_the_others_alone(lm: OpenModel) -> None:
    """Tokens seen midway are made stop tokens, so that rows leave the batch at different steps."""
    free = lm.generate(CHATS, Sampling(max_tokens=12))
    twin = lm.copy()
    twin.chat_tokens.stop_ids = (1, free[0].ids[3], free[2].ids[6])
    found = twin.generate(CHATS, Sampling(max_tokens=12))
    assert [c.ids for c in found] == [_reference(twin, chat, 12) for chat in CHATS]
    assert found[0].stop == "eos" and len(found[0].ids) <= 4
    for c in found:
        assert (c.stop == "eos") == (c.ids[-1] in twin.chat_tokens.stop_ids)
        spelt = c.ids[:-1] if c.stop == "eos" else c.ids
        assert c.text == twin.tokenizer.decode(spelt, skip_special_tokens=True)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=1.0, top_p=0.8, seed=5)],
    ids=["greedy", "sampled"],
)
def test_the_batch_has_no_say(lm: OpenModel, sampling: Sampling) -> None:
    """Alone, together, in reverse, in sub-batches of one or two: the same replies."""
    together = lm.generate(CHATS, sampling)
    assert [c.ids for c in together] == [c.ids for c in _alone(lm, sampling)]
    assert [c.ids for c in lm.generate(CHATS[::-1], sampling)[::-1]] == [c.ids for c in together]
    small = OpenModel(lm.module, lm.tokenizer, identity=lm.identity, token_budget=40)
    assert [c.text for c in small.generate(CHATS, sampling)] == [c.text for c in together]


def test_equal_chats_draw_apart_and_seeds_repeat(tiny: Build) -> None:
    lm, chat = tiny(), Chat.ask("The cat")
    hot = Sampling(max_tokens=8, temperature=1.0, seed=1)
    first = [c.ids for c in lm.generate([chat] * 6, hot)]
    assert len(set(first)) > 1
    assert [c.ids for c in lm.generate([chat] * 6, hot)] == first
    assert [c.ids for c in lm.generate([chat] * 6, hot.model_copy(update={"seed": 2}))] != first
    # Other chats in the call change nothing, and a longer limit only continues the same draw.
    assert lm.generate([CHATS[2], chat], hot)[1].ids == first[0]
    longer = lm.generate([chat], hot.model_copy(update={"max_tokens": 16}))[0]
    assert longer.ids[:8] == first[0]


def test_logprobs_are_those_of_a_scored_reply(lm: OpenModel) -> None:
    """Each token's log-prob equals a plain forward pass over prompt and reply, at temperature 0.5 too."""
    for temperature, scale in [(0.0, 1.0), (1.0, 1.0), (0.5, 0.5)]:
        for chat, c in zip(
            CHATS, lm.generate(CHATS, Sampling(max_tokens=9, temperature=temperature)), strict=True
        ):
            prompt = lm.prompt_ids(chat)
            logits = lm.module(torch.tensor([[*prompt, *c.ids]])).logits[0].double() / scale
            naive = [
                float(logits[len(prompt) - 1 + t].log_softmax(-1)[token]) for t, token in enumerate(c.ids)
            ]
            assert c.logprobs == pytest.approx(naive, abs=1e-4)


def test_draws_follow_the_distribution_exactly() -> None:
    """On an even grid of N numbers, a token of probability p is drawn N p times, give or take one."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    n = 2000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    hot = Sampling(temperature=0.7)
    tokens, logprobs = choose(logits.expand(n, -1), hot, grid)
    probs = (logits[0].double() / 0.7).softmax(-1)
    for token in range(5):
        assert abs(int((tokens == token).sum()) - n * float(probs[token])) <= 1
    assert torch.allclose(logprobs, probs[tokens].log())


def test_nucleus_by_hand() -> None:
    """p = .5, .3, .15, .05: top-p .5 keeps one, which reaches it; .7 keeps two; .81 three."""
    probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64)
    for top_p, kept in [(0.1, 1), (0.5, 1), (0.7, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]:
        assert int((nucleus(probs, top_p) > 0).sum()) == kept
    cut = Sampling(temperature=1.0, top_p=0.7)
    edge = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = choose(probs.log().expand(2, -1), cut, edge)
    assert tokens.tolist() == [1, 3]
    assert logprobs.tolist() == pytest.approx([math.log(0.5), math.log(0.3)])  # before top-p


def test_the_context_ends_a_reply(tiny: Build) -> None:
    """Context 16: a prompt of n tokens leaves 16 - n; a full one leaves none; a longer one is an error."""
    lm = tiny(max_position_embeddings=16)
    lm.chat_tokens.stop_ids = (1,)
    chats = [Chat.ask(t) for t in ("a", "One two three four", "a" * 15, "a" * 16)]
    assert [len(lm.prompt_ids(c)) for c in chats[2:]] == [16, 17]
    short, middle, full, over = lm.generate(chats, Sampling(max_tokens=40))
    for chat, c in [(chats[0], short), (chats[1], middle)]:
        assert c.stop == "eos" or len(lm.prompt_ids(chat)) + len(c.ids) == 16
    assert "length" in {short.stop, middle.stop}
    assert (full.text, full.ids, full.stop) == ("", (), "length")
    assert over.stop == "error" and over.text == "" and over.ids is None
    assert "row 3 has 17 tokens" in over.error and "holds 16" in over.error


def test_broken_logits_fail_that_item_alone(tiny: Build) -> None:
    lm = tiny().copy()
    clean = lm.generate(CHATS, Sampling(max_tokens=6))
    bad = lm.prompt_ids(Chat.ask("User"))[-1]
    used = {token for chat, c in zip(CHATS, clean, strict=True) for token in (*lm.prompt_ids(chat), *c.ids)}
    assert bad not in used
    with torch.no_grad():
        lm.module.get_input_embeddings().weight[bad] = float("nan")
    for sampling in (Sampling(max_tokens=6), Sampling(max_tokens=6, temperature=1.0, top_p=0.5)):
        found = lm.generate([Chat.ask("User"), *CHATS], sampling)
        assert found[0].stop == "error" and found[0].ids == () and "NaN" in found[0].error
        assert all(c.stop != "error" for c in found[1:])
    assert [c.ids for c in lm.generate([Chat.ask("User"), *CHATS], Sampling(max_tokens=6))[1:]] == [
        c.ids for c in clean
    ]


def test_nothing_to_do(tiny: Build) -> None:
    assert tiny().generate([]) == []


def test_buckets_cover_each_index_once_within_budget() -> None:
    costs = [5, 3, 9, 100, 3, 3, 7, 1]
    found = list(buckets(costs, 20))
    assert Counter(i for batch in found for i in batch) == Counter(range(len(costs)))
    assert all(len(b) * max(costs[i] for i in b) <= 20 or len(b) == 1 for b in found)
    assert len(found) < len(costs)


def test_seeds_depend_on_chat_and_occurrence_only() -> None:
    a, b = Chat.ask("a"), Chat.ask("b")
    one, two, three = item_seeds([a, b, a], 7)
    assert len({one, two, three}) == 3
    assert item_seeds([a, a, b], 7) == [one, three, two]
    assert item_seeds([a], 8) != [one]


# A prompt that occurs several times


def test_the_same_prompt_is_read_once_and_drawn_for_each(tiny, monkeypatch):
    """K samples of a prompt: what each draws is what it draws alone, and the prompt passes once."""
    model = tiny("llama")
    ask = [[0, 40, 41, 42], [0, 50], [0, 40, 41, 42], [0, 40, 41, 42], [0, 50]]
    requests = [Request(ids, 6, seed) for seed, ids in enumerate(ask)]
    sampling = Sampling(temperature=1.0)
    alone = [draw(model.module, [r], sampling, [1], 10**6)[0] for r in requests]
    shapes, real = [], model.module.forward

    def watched(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return real(*args, **kwargs)

    watched.__signature__ = inspect.signature(real)
    monkeypatch.setattr(model.module, "forward", watched)
    together = draw(model.module, requests, sampling, [1], 10**6)
    assert shapes[0] == (2, 4)
    assert [d.ids for d in together] == [d.ids for d in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
