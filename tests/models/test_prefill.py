"""A chat that ends with an assistant turn is continued from there, and only what follows is the reply."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, Sampling
from calibrant.models.chat_tokens import plain_text

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


def test_templates_by_hand_continue_the_joined_ids(tiny, chatml):
    """Greedy, token by token: the most likely next token after the joined prompt, again and again."""
    lm = tiny(template=chatml)
    chat = ASKED.then("assistant", "sat on")
    (reply,) = lm.generate([chat], Sampling(max_tokens=4))
    ids = lm.prompt_ids(chat)
    batch = lm.encode([chat])
    assert batch.ids[0, batch.mask[0]].tolist() == ids
    assert int(lm.forward(batch)[0, -1].argmax()) == reply.ids[0]


def test_going_on_is_what_would_have_been_said_anyway(tiny, chatml):
    """Begun with what it says by itself, the model says the rest of it."""
    for lm in (tiny(), tiny(template=chatml)):
        chat = Chat.ask("the cat", system="a")
        (whole,) = lm.generate([chat], Sampling(max_tokens=12))
        found = 0
        for cut in range(1, 12):
            begun = lm.tokenizer.decode(whole.ids[:cut])
            after = chat.then("assistant", begun)
            if lm.prompt_ids(after) != [*lm.prompt_ids(chat), *whole.ids[:cut]]:
                continue  # the joined text is cut into other tokens, so it is another prompt
            (rest,) = lm.generate([after], Sampling(max_tokens=12 - cut))
            assert rest.ids == whole.ids[cut:]
            found += 1
        assert found


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
    assert tiny(template=chatml).chat_tokens.prompt_text(chat).endswith("sat<|end|><|user|>on<|end|><|assistant|>")


def test_a_beginning_without_a_question(tiny, chatml):
    lone = Chat(messages=(*Chat.ask("x").then("assistant", "sat on").messages[1:],))
    assert plain_text(lone) == "Assistant:\nsat on"
    assert tiny(template=chatml).chat_tokens.prompt_text(lone) == "<|assistant|>sat on"


def test_an_empty_beginning_is_none(tiny, chatml):
    for lm in (tiny(), tiny(template=chatml)):
        empty = Chat.ask("the cat", system="a").then("assistant", "")
        assert lm.chat_tokens.prompt_text(empty) == lm.chat_tokens.prompt_text(Chat.ask("the cat", system="a"))
