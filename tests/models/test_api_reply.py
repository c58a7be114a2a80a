"""What a server's answer says: parts, fields of reasoning, calls of tools, counts."""

from __future__ import annotations

import pytest

from calibrant.models.api_reply import read_reply

SAID, THOUGHT = "I can't help with that.", "Sure, I could explain."


def answer(content=SAID, reason="stop", usage=None, **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"choices": [choice], "usage": usage}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}


@pytest.mark.parametrize(
    "given",
    [
        answer(f"<think>{THOUGHT}</think>{SAID}"),
        answer(f"{THOUGHT}\n</think>\n\n{SAID}"),
        answer(f"[THINK]{THOUGHT}[/THINK]{SAID}"),
        answer(reasoning_content=THOUGHT),
        answer(reasoning=THOUGHT),
        answer(reasoning_content="", reasoning=THOUGHT),
        answer(thinking=THOUGHT),
        answer(reasoning_details=[{"type": "reasoning.text", "text": THOUGHT}]),
        answer([THINKING, {"type": "text", "text": SAID}]),
        answer([{"type": "thinking", "thinking": THOUGHT, "signature": "x"}, {"type": "text", "text": SAID}]),
        answer(
            [{"type": "reasoning", "summary": [{"text": THOUGHT}]}, {"type": "output_text", "text": SAID}]
        ),
    ],
)
def test_reasoning_wherever_it_stands(given):
    found = read_reply(given)
    assert (found.reasoning, found.text, found.stop) == (THOUGHT, SAID, "eos")


def test_a_server_that_names_the_reasoning_leaves_none_in_the_text():
    text = f"one </think> two. {SAID}"
    assert read_reply(answer(text, reasoning=THOUGHT)).text == text
    both = read_reply(answer(f"<think>more</think>{SAID}", reasoning=THOUGHT))
    assert (both.reasoning, both.text) == (f"{THOUGHT}\n\nmore", SAID)


def test_reasoning_without_a_reply_is_no_error_and_no_reply():
    for given in (
        answer(f"<think>{THOUGHT} ", "length"),
        answer(None, "length", reasoning=THOUGHT),
        answer("", "length", reasoning_content=THOUGHT),
        answer([THINKING], "length"),
    ):
        found = read_reply(given)
        assert (found.text, found.stop, found.error, found.unanswered) == ("", "length", None, True)
        assert found.reasoning == THOUGHT


def test_text_in_parts_is_joined_and_other_parts_are_named():
    parts = [{"type": "text", "text": SAID[:5]}, {"type": "text", "text": SAID[5:]}]
    assert read_reply(answer(parts)).text == SAID
    assert read_reply(answer([SAID])).text == SAID
    assert read_reply(answer([{"type": "refusal", "refusal": SAID}])).text == SAID
    odd = read_reply(answer([*parts, {"type": "image_url", "image_url": {"url": "x"}}]))
    assert (odd.text, odd.stop) == (SAID, "error")
    assert odd.error == "the reply holds a part of another kind: image_url"
    number = read_reply(answer(7))
    assert (number.stop, number.error) == ("error", "the reply holds a part of another kind: int")
    deep = [{"type": "text", "text": SAID}]
    for _ in range(100):
        deep = [{"type": "thinking", "thinking": deep}]
    assert read_reply(answer(deep)).text == ""


def test_calls_of_tools_are_part_of_the_reply():
    call = {"type": "function", "function": {"name": "open_box", "arguments": '{"how": "with care"}'}}
    found = read_reply(answer(None, "tool_calls", tool_calls=[call]))
    assert found.text == '[calls the tool open_box with {"how": "with care"}]' and found.stop == "eos"
    found = read_reply(answer("First:", tool_calls=[call, None, {}]))
    assert found.text.startswith("First:\n[calls the tool open_box")
    assert read_reply(answer(None, "tool_calls", tool_calls=[])).stop == "error"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 5}}, 7),
        ({"completion_tokens": 0}, 0),
        (None, None),
        ({}, None),
        ({"completion_tokens": None}, None),
        ({"completion_tokens": -1}, None),
        ({"completion_tokens": 10**30}, None),
        ({"completion_tokens": "7"}, None),
    ],
)
def test_the_servers_count(usage, tokens):
    assert read_reply(answer(usage=usage)).tokens == tokens


def test_what_cannot_be_written_later_is_replaced_everywhere():
    found = read_reply(answer("a\ud800b", reasoning="c\udfffd"))
    assert (found.text, found.reasoning) == ("a?b", "c?d")
    call = {"function": {"name": "f\ud800", "arguments": {"x": "\ud800"}}}
    read_reply(answer(tool_calls=[call])).model_dump_json()
