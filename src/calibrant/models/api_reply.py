"""Parse a server's JSON answer: the completion, with reasoning and reply separate.

Servers put reasoning in three places: into the text, between tags (``core.reasoning``); into a field beside
it (``reasoning_content`` of DeepSeek, vLLM and SGLang, ``reasoning`` of vLLM and OpenRouter, ``thinking`` of
Ollama); or into a part of its own, where the content is a list of parts (Mistral, Anthropic).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from calibrant.core.lm import Completion
from calibrant.models.endpoint import complaint, completion_tokens, quote

_STOPS: dict[str, Literal["eos", "length"]] = {"stop": "eos", "length": "length", "tool_calls": "eos"}
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_TEXTS = ("text", "output_text", "refusal")
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
FILTERED = "content filter of the endpoint"
"""Why such a reply was blocked or, where some of it came through, cut."""


def read_reply(reply: Any, quote: Callable[[object], str] = quote) -> Completion:
    """The completion in a parsed answer; ``stop = "error"`` says what is wrong with one that holds none.

    A call of a tool is part of the reply: a line with its name and arguments. ``quote`` makes a piece of the
    answer fit for a message.
    """
    match reply:
        case {"choices": [{"message": {**fields}, **choice}, *_]}:
            message = {str(name): value for name, value in fields.items()}
        case _:
            text = quote(complaint(reply) or "it says nothing of use")
            return Completion(text="", stop="error", error=f"the answer has no choices: {text}")
    reason = quote(choice.get("finish_reason"))[:40]
    written, thought, odd = _content(message)
    calls = _calls(message)
    result = Completion.read(
        "\n".join(filter(None, (written, *calls))),
        opened=False if thought else None,  # a server that knows its own tags leaves none in the text
        tokens=completion_tokens(reply),
        logprobs=_logprobs(choice.get("logprobs")),
        stop=_STOPS.get(reason, "eos"),
    )
    if thought:
        inline = result.reasoning
        result = result.model_copy(update={"reasoning": f"{thought}\n\n{inline}" if inline else thought})
    if reason == "content_filter":
        # Whoever asked has read what came through, so that is judged, as a reply that was cut.
        stop = "length" if result.text.strip() else "blocked"
        return result.model_copy(update={"stop": stop, "error": FILTERED})
    wrong = f"the reply holds a part of another kind: {quote(odd)[:40]}" if odd else ""
    if not wrong and not result.text and result.reasoning is None:
        wrong = f"the reply is empty or no text (finish_reason '{reason}')"
    if not wrong and (reason not in _STOPS or (reason == "tool_calls" and not calls)):
        wrong = f"unknown finish_reason '{reason}'"
    return result.model_copy(update={"stop": "error", "error": wrong}) if wrong else result


def _content(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """Text; reasoning in fields and parts of its own; the kind of a part that is neither, or ""."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts, thoughts, odd = [], [_field(message)], ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str) or kind in _TEXTS:
            texts.append(_words(part))
        elif kind in _THOUGHTS:
            thoughts.append(_words(part))
        elif part is not None:
            odd = odd or str(kind or type(part).__name__)
    text = "".join(texts) or _words(message.get("refusal"))
    return text, "\n\n".join(filter(None, thoughts)), odd


def _field(message: Mapping[str, Any]) -> str:
    """Reasoning beside the content: the first field that holds any, else OpenRouter's list of details."""
    for name in _FIELDS:
        if text := _words(message.get(name)):
            return text
    return _words(message.get("reasoning_details"))


def _words(value: Any) -> str:
    """All text of a part, nested or not, fit to be written later: a lone surrogate is legal in JSON alone."""
    return "".join(_pieces(value)).encode("utf-8", "replace").decode()


def _pieces(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < 8:
        for one in value:
            yield from _pieces(one, depth + 1)
    elif isinstance(value, dict) and depth < 8:
        for name in ("text", "thinking", "reasoning", "summary", "refusal", "content"):
            yield from _pieces(value.get(name), depth + 1)


def _calls(message: Mapping[str, Any]) -> list[str]:
    """A line for each call of a tool."""
    lines = []
    match message.get("tool_calls"):
        case [*calls]:
            for call in calls:
                match call:
                    case {"function": {"name": str(name), **rest}}:
                        arguments = rest.get("arguments", "")
                        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                        lines.append(_words(f"[calls the tool {name} with {text}]"))
    return lines


def _logprobs(content: Any) -> tuple[float, ...] | None:
    """One log-prob a token, or None where any is missing or no usable number."""
    values: list[float] = []
    match content:
        case {"content": [*tokens]}:
            for token in tokens:
                match token:
                    case {"logprob": float(value) | int(value)} if abs(value) < 1e9:
                        values.append(float(value))
                    case _:
                        return None
    return tuple(values) or None
