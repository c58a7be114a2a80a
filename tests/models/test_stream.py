"""A streamed reply is the reply that ``generate`` gives, on every family; no piece is ever taken back."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, Sampling, StreamingLM
from calibrant.core.reasoning import may_open, part


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_make_the_reply_that_generate_gives(lm, temperature):
    model, sampling = lm, Sampling(max_tokens=12, temperature=temperature, seed=5)
    assert isinstance(model, StreamingLM)
    for text in ("how are you", "x", "tell me of the tower and the river, at length"):
        chat = Chat.ask(text)
        whole = model.generate([chat], sampling)[0]
        pieces = list(model.stream(chat, sampling))
        assert [piece.completion for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        last = pieces[-1].completion
        assert (last.text, last.ids, last.stop) == (whole.text, whole.ids, whole.stop)
        assert last.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
        assert "".join(piece.text for piece in pieces) == whole.text
        assert sum(piece.tokens for piece in pieces) == len(whole.ids)


def test_a_chat_that_can_not_be_served_is_one_piece_with_the_reason(lm):
    chat = Chat.ask("word " * 5000)
    whole = lm.generate([chat])[0]
    if whole.stop != "error":
        pytest.skip("this model has no limit")
    assert [piece.completion for piece in lm.stream(chat)] == [whole]


@pytest.mark.parametrize(
    "text",
    [
        "<think>so</think> yes",
        "\n<thinking> a",
        "<|channel|>analysis<|message|>so<|end|>",
        "analysisThe user",
    ],
)
def test_what_may_be_reasoning_is_known_before_its_tag_is_whole(text):
    assert part(text).reasoning is not None
    first = next(i for i in range(1, len(text) + 1) if part(text[:i]).reasoning is not None)
    assert all(may_open(text[:i]) for i in range(first))


@pytest.mark.parametrize("text", ["Sure", "<b>", "analyse", "[1] a", "the <think> tag", "hello"])
def test_an_ordinary_beginning_is_no_reasoning(text):
    assert not may_open(text)
