"""Reasoning is parted from the reply at the start of a text, in every family's tags, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core.lm import Completion
from calibrant.core.reasoning import TAGS, WRAPS, Parted, inside, part

SAID = "I'm sorry, but I can't help with that."
THOUGHT = "The user wants something. Sure, I could explain that step by step."
HARMONY = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}"


@pytest.mark.parametrize(("opening", "closing"), TAGS)
@pytest.mark.parametrize("change", [str, str.upper])
def test_every_family(opening, closing, change):
    opening, closing = change(opening), change(closing)
    assert part(f"{opening}\n{THOUGHT}\n{closing}\n\n{SAID}") == (THOUGHT, SAID, True)
    assert part(f"\n {opening}{THOUGHT}{closing}{SAID}", opened=False) == (THOUGHT, SAID, True)
    assert part(f"{opening}{THOUGHT}") == (THOUGHT, "", False)
    assert part(f"{THOUGHT}\n{closing}\n{SAID}", opened=True) == (THOUGHT, SAID, True)
    assert part(f"{opening}{THOUGHT}{closing}{SAID}", opened=True) == (THOUGHT, SAID, True)
    assert inside(f"<|user|>hello<|assistant|>{opening}\n")
    assert not inside(f"what does {opening} mean?<|assistant|>")


@pytest.mark.parametrize(
    ("text", "reasoning", "reply"),
    [
        (HARMONY, THOUGHT, SAID),
        (f"<|start|>assistant{HARMONY}<|return|>", THOUGHT, SAID),
        (f"<|channel|>final<|message|>{SAID}<|return|>", None, SAID),
        (f"<|channel|>analysis<|message|>{THOUGHT}", THOUGHT, ""),
        (f"<|channel|>commentary to=f <|constrain|>json<|message|>{THOUGHT}<|call|>", THOUGHT, ""),
        ("<|channel|>anal", "", ""),
        (f"analysis{THOUGHT}assistantfinal{SAID}", THOUGHT, SAID),
        (f"analysis{THOUGHT}", THOUGHT, ""),
        ("analysis of the text: fine", None, "analysis of the text: fine"),
    ],
)
def test_channels(text, reasoning, reply):
    assert part(text)[:2] == (reasoning, reply)


@pytest.mark.parametrize(("before", "after"), WRAPS)
def test_what_stands_round_the_reply_goes_where_there_was_reasoning(before, after):
    assert part(f"<think>{THOUGHT}</think>\n{before} {SAID} {after}").reply == SAID
    assert part(f"<think>{THOUGHT}</think>\n{before} {SAID}").reply == SAID
    plain = f"{before} {SAID} {after}"
    assert part(plain) == (None, plain, True)


def test_several_blocks_and_empty_ones():
    assert part(f"<think>a</think>\n<think>b</think>{SAID}") == ("a\n\nb", SAID, True)
    assert part(f"<think>\n\n</think>\n\n{SAID}") == ("", SAID, True)
    assert part("<think>a</think>") == ("a", "", True)


@pytest.mark.parametrize(
    "text",
    [
        SAID,
        "",
        "  white space stays \n",
        "Use <think> and </think> to mark it.",
        "Write `</think>` when you are done.",
        'The tag "</think>" ends it.',
        "Sure. <think>not at the start</think> go on.",
        "Here is my response: no.",
        "I think so. <b>Yes</b>",
        "< think >spaced</ think >",
    ],
)
def test_a_tag_in_the_middle_is_a_word_of_the_reply(text):
    assert part(text) == Parted(None, text)
    assert part(text, opened=False) == Parted(None, text)


def test_a_lone_closing_tag_counts_unless_the_prompt_is_known_not_to_have_opened_one():
    text = f"{THOUGHT}\n</think>\n\n{SAID}"
    assert part(text) == part(text, opened=True) == (THOUGHT, SAID, True)
    assert part(text, opened=False) == (None, text, True)
    assert part(THOUGHT, opened=True) == (THOUGHT, "", False)


def test_what_was_put_into_the_mouth_may_open_or_close_the_block():
    assert inside("<|assistant|>", "<think>\nSure")
    assert inside("<|assistant|><think>\n", "Sure, here is")
    assert not inside("<|assistant|><think>\n", "done</think> Sure")
    assert not inside("<|assistant|><think>\n\n</think>\n\n")
    assert not inside("<|assistant|>", "Sure")


def test_a_long_text_is_no_trap():
    """Work that grew with the square of the length would take minutes here."""
    assert part("<think>a</think>" * 20_000 + SAID).reply == SAID
    assert part("<think>" * 20_000).reply == ""
    assert part("x <" * 300_000).reasoning is None
    assert part("<|channel|>analysis" * 20_000).reply == ""


PIECES = [
    "<think>",
    "</think>",
    "<|channel|>final<|message|>",
    "analysisX",
    "<answer>",
    "a",
    " ",
    "\n",
    "`",
    "[THINK]",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sampled_from([True, False, None]))
def test_nothing_is_made_up_and_a_text_without_reasoning_stays_as_it_is(text, opened):
    reasoning, reply, closed = part(text, opened)
    if reasoning is None:
        assert closed and (reply == text or "<|channel|>final" in text)
    assert reply in text or "<|channel|>final" in text
    assert closed or not reply


def test_a_completion_is_read():
    read = Completion.read(f"<think>{THOUGHT}</think>{SAID}", stop="length")
    assert (read.reasoning, read.text, read.stop, read.unanswered) == (THOUGHT, SAID, "length", False)
    assert Completion.read("<think>so").unanswered
    assert not Completion(text="").unanswered
