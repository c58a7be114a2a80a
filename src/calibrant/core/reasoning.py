"""Split a reasoning model's output into its reasoning (chain of thought) and its reply.

    part("<think>The user wants ...</think>I can't help.").reply        # "I can't help."

Reasoning models write their reasoning into the same text as the reply, between tags of their family; a judge
that reads both mistakes "Sure, I could explain ..." in the reasoning for compliance. Sources of the tags: the
families' chat templates, and the reasoning parsers of vLLM and llama.cpp.

1. Reasoning comes first. A tag later in the text is part of the reply.
2. A block that is never closed is reasoning to its end: there is no reply.
3. Some templates open the block themselves, so that the model writes only the closing tag. For local weights
   it is known whether the block was opened. Where it is not known (an API), a closing tag without its opening
   one, not in quotation marks, is taken for the end of the reasoning.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TAGS = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen 3, GLM, Kimi K2, MiniMax, Nemotron, OLMo 3, Phi, ...
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep, Marco-o1
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<scratchpad_reasoning>", "</scratchpad_reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<mm:think>", "</mm:think>"),  # MiniMax M3
    ("<longcat_think>", "</longcat_think>"),
    ("[think]", "[/think]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi VL
    ("<|start_thinking|>", "<|end_thinking|>"),  # Command A, Command R7B
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("<|im_start|>think", "<|im_start|>answer"),  # s1
    ("[unused16]", "[unused17]"),  # Pangu
    ("here is my thought process:", "here is my response:"),  # Granite 3.2
    ("here's my thought process:", "here is my response:"),
    ("here are my reasoning steps:", "[begin final response]"),  # Apriel
)
"""Opening and closing tags, compared without regard to case."""

WRAPS = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<output>", "</output>"),
    ("<|start_response|>", "<|end_response|>"),
    ("<|start_text|>", "<|end_text|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("", "[end final response]"),
)
"""Markup of some families around the reply after reasoning."""

_CLOSE = {opening: re.compile(re.escape(closing), re.IGNORECASE) for opening, closing in TAGS}
_OPENINGS = "|".join(re.escape(opening) for opening, _ in TAGS)
_OPEN = re.compile(rf"\s*({_OPENINGS})", re.IGNORECASE)
_OPENED = tuple(opening for opening, _ in TAGS)
_END = re.compile("|".join(sorted({re.escape(closing) for _, closing in TAGS})), re.IGNORECASE)
_HARMONY = re.compile(r"\s*(?:<\|start\|>assistant[^<]{0,200})?<\|channel\|>")
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)
_MARKED = ("<|start|>assistant", "<|channel|>", "analysis")
_NAMES = re.compile(r"\s*analysis(?=[A-Z\"\u201c])")
_QUOTES = ("`", "'", '"', "\u2018", "\u2019", "\u201c", "\u201d")
_PROSE = ("here is my response:",)
"""Closing words that may occur in ordinary text: they close nothing that was not opened."""


class Parted(NamedTuple):
    """An output in its two parts."""

    reasoning: str | None
    """The reasoning, without tags and outer white space; None where there is none."""
    reply: str
    """The reply; the whole text where there is no reasoning."""
    closed: bool = True
    """False where the text ends inside the reasoning."""


def part(text: str, opened: bool | None = None) -> Parted:
    """Split a model's output into its reasoning and its reply.

    Args:
        text: the whole output, with special tokens decoded where a family's tags are special tokens.
        opened: whether the prompt ended inside a block of reasoning; None where unknown.
    """
    if _HARMONY.match(text):
        return _by_channel(text)
    if not opened and (named := _NAMES.match(text)):
        # gpt-oss behind a server that drops the marks and keeps the names of the channels.
        thought, final, said = text[named.end() :].partition("assistantfinal")
        return Parted(thought.strip(), said.strip(), closed=bool(final))
    thoughts: list[str] = []
    place = 0
    end = _END.search(text) if opened else _lone_end(text) if opened is None else None
    if opened and end is None:
        return Parted(_bare(text), "", closed=False)
    if end is not None:
        thoughts.append(_bare(text[: end.start()]))
        place = end.end()
    while found := _OPEN.match(text, place):
        close = _CLOSE[found[1].lower()].search(text, found.end())
        thoughts.append(text[found.end() : close.start() if close else None].strip())
        if close is None:
            return Parted(_joined(thoughts), "", closed=False)
        place = close.end()
    return Parted(_joined(thoughts), _unwrapped(text[place:])) if thoughts else Parted(None, text)


def may_open(begun: str) -> bool:
    """Whether a text that has begun so may turn out to begin with reasoning."""
    text = begun.lstrip().lower()
    if text.startswith(_MARKED[0]):
        return len(text) < 250 and "<|channel|>" not in text
    return any(mark.startswith(text) for mark in (*_OPENED, *_MARKED))


def inside(prompt: str, begun: str = "") -> bool:
    """Whether a reply to ``prompt`` starts inside a block of reasoning that the prompt opened.

    ``begun``: the prefill after the prompt; it may close the block, or open one.
    """
    return not part(begun, prompt[-200:].rstrip().lower().endswith(_OPENED)).closed


def speaks_of_reasoning(token: str) -> bool:
    """Whether a special token begins or ends reasoning in some family, so that it must be decoded."""
    return token == "<|channel|>" or any(token.lower() in pair for pair in TAGS)


def _lone_end(text: str) -> re.Match[str] | None:
    """The first closing tag of a text that did not open it before, and does not quote it."""
    low = text.lower()
    if not any(closing in low for _, closing in TAGS) or _OPEN.match(text):  # quick, for long replies
        return None
    end = next((e for e in _END.finditer(text) if e[0].lower() not in _PROSE), None)
    if end is None:
        return None
    before = text[: end.start()].lower()
    named = any(closing == end[0].lower() and opening in before for opening, closing in TAGS)
    quoted = before.endswith(_QUOTES) or text.startswith(_QUOTES, end.end())
    return None if named or quoted else end


def _by_channel(text: str) -> Parted:
    """The harmony format: every message but those on the channel 'final' is reasoning."""
    said = [(found[1], found[2].strip()) for found in _CHANNEL.finditer(text)]
    finals = [words for channel, words in said if channel == "final"]
    thoughts = [words for channel, words in said if channel != "final" and words]
    if not said:  # cut inside the first head
        return Parted("", "", closed=False)
    reasoning = _joined(thoughts) if thoughts or not finals else None
    return Parted(reasoning, "\n\n".join(finals), closed=bool(finals))


def _unwrapped(text: str) -> str:
    """A reply without its family's markup."""
    text = text.strip()
    for before, after in WRAPS:
        if text[: len(before)].lower() == before:
            text = text[len(before) :].lstrip()
            return text[: -len(after)].rstrip() if text.lower().endswith(after) else text
    return text


def _bare(text: str) -> str:
    """Reasoning without a repeated opening tag."""
    found = _OPEN.match(text)
    return (text[found.end() :] if found else text).strip()


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(thought for thought in thoughts if thought)
