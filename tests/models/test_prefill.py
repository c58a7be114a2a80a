"""A chat that ends with an assistant turn is continued from there, and only what follows is the reply."""

from __future__ import annotations

from pathlib import Path

import pytest

import calibrant.testbed
from calibrant.core import Chat, InputError, Message, Sampling
from calibrant.models.chat_tokens import plain_text
from calibrant.models.open_model import OpenModel

ASKED = Chat.ask("the cat", system="a")
BEGUN = ("sat on", "User: what", "One two three,")
GREEDY = Sampling(max_tokens=8)


@pytest.mark.parametrize("begun", BEGUN)
def test_plain_format_goes_on_as_the_joined_text_does(lm, begun):
    """In the plain format a lone user turn is its text, so the joined text is a prompt of its own."""
    chat = ASKED.then("assistant", begun)
    text = f"System:\na\nUser:\nthe cat\nAssistant:\n{begun}"
    assert plain_text(chat) == lm.chat_tokens.prompt_text(chat) == text
    one, other = lm.generate([chat, Chat.ask(text)], GREEDY)
    assert one.ids == other.ids
    assert one.text == other.text
    assert not one.text.startswith(begun)


@pytest.mark.parametrize("begun", BEGUN)
def test_a_template_opens_the_reply_and_leaves_it_open(tiny, chatml, begun):
    lm = tiny(template=chatml)
    chat = ASKED.then("assistant", begun)
    assert lm.chat_tokens.prompt_text(chat) == f"{lm.chat_tokens.prompt_text(ASKED)}{begun}"
    assert lm.chat_tokens.prompt_text(chat).endswith(f"<|assistant|>{begun}")
    (reply,) = lm.generate([chat], GREEDY)
    plain = tiny()  # the same weights; a lone user turn is taken as it stands
    (same,) = plain.generate([Chat.ask(lm.chat_tokens.prompt_text(chat))], GREEDY)
    assert lm.prompt_ids(chat) == plain.prompt_ids(Chat.ask(lm.chat_tokens.prompt_text(chat)))[1:]  # no <s>
    assert len(reply.ids) == len(same.ids)


def test_the_first_token_is_the_likeliest_behind_the_beginning(tiny, chatml):
    lm = tiny(template=chatml)
    chat = ASKED.then("assistant", "sat on")
    (reply,) = lm.generate([chat], Sampling(max_tokens=4))
    ids = lm.prompt_ids(chat)
    batch = lm.encode([chat])
    assert batch.ids[0, batch.mask[0]].tolist() == ids
    assert int(lm.forward(batch)[0, -1].argmax()) == reply.ids[0]


def test_a_lone_question_and_the_beginning_of_its_answer(lm):
    chat = Chat.ask("the cat").then("assistant", " sat on")
    one, other = lm.generate([chat, Chat.ask("the cat sat on")], GREEDY)
    assert one.ids == other.ids


def test_going_on_is_what_would_have_been_said_anyway():
    """Begun with what it says by itself, a model says the rest of it, word by word."""
    lm = OpenModel.from_folder(Path(calibrant.testbed.__file__).parent / "weights" / "tiny")
    chat = Chat.ask("what does the zorble eat?")
    (whole,) = lm.generate([chat], Sampling(max_tokens=16))
    words = whole.text.split(" ")
    assert len(words) > 3
    for cut in range(1, len(words)):
        begun = " ".join(words[:cut])
        (rest,) = lm.generate([chat.then("assistant", begun)], Sampling(max_tokens=16))
        assert begun + rest.text == whole.text


def test_log_probs_of_what_follows_are_those_of_the_reply_behind_the_beginning(lm):
    chat = ASKED.then("assistant", "sat on")
    (joined,) = lm.logprobs([Chat.ask(plain_text(chat))], [" the mat"])
    (begun,) = lm.logprobs([chat], [" the mat"])
    assert begun.ids == joined.ids
    assert begun.logprobs == pytest.approx(joined.logprobs, abs=1e-5)


def test_batches_mix_begun_and_other_chats(tiny, chatml):
    for lm in (tiny(), tiny(template=chatml)):
        chats = [ASKED, ASKED.then("assistant", "sat on"), ASKED.then("assistant", "x"), Chat.ask("One two")]
        together = lm.generate(chats, GREEDY)
        alone = [lm.generate([chat], GREEDY)[0] for chat in chats]
        assert [reply.ids for reply in together] == [reply.ids for reply in alone]


def test_an_assistant_turn_in_the_middle_is_closed(tiny, chatml):
    chat = ASKED.then("assistant", "sat").then("user", "on")
    assert plain_text(chat).endswith("Assistant:\nsat\nUser:\non\nAssistant:\n")
    assert (
        tiny(template=chatml)
        .chat_tokens.prompt_text(chat)
        .endswith("sat<|end|><|user|>on<|end|><|assistant|>")
    )


def test_a_beginning_without_a_question(tiny, chatml):
    lone = Chat(messages=(Message(role="assistant", content="sat on"),))
    assert plain_text(lone) == "Assistant:\nsat on"
    with pytest.raises(InputError, match="nothing but the beginning of a reply"):
        tiny(template=chatml).chat_tokens.prompt_text(lone)


def test_an_empty_beginning_is_none(tiny, chatml):
    for lm in (tiny(), tiny(template=chatml)):
        empty = Chat.ask("the cat", system="a").then("assistant", "")
        assert lm.chat_tokens.prompt_text(empty) == lm.chat_tokens.prompt_text(
            Chat.ask("the cat", system="a")
        )
