"""Replies of the OpenAI chat protocol: parsed from the model's server, and built anew for the client.

Nothing of the server's answer is passed on as it came: text, reasoning and calls of tools are taken out, read
by the output layers, and put into an answer of our own. Fields that are not known stay behind.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from calibrant.serve.proxy.request import ApiError, call_texts

_REASONING = ("reasoning_content", "reasoning")
_ENDS = ("stop", "length", "tool_calls", "function_call", "content_filter")


@dataclass
class Part:
    """What one choice goes on with."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    """Pieces of calls of tools, as they came."""
    end: str = ""
    """Why the choice has ended; "" while it goes on."""


def parts_of(answer: Any, key: str, choices: int) -> list[Part]:
    """The choices in a parsed answer: ``key`` is 'message', or 'delta' in a stream.

    Raises:
        ApiError: 502, the answer is none of the protocol, or an error of the server.
    """
    if not isinstance(answer, dict):
        raise ApiError(502, "the model's server sent no object", code="bad_upstream")
    if answer.get("error"):
        raise ApiError(502, "the model's server reported an error", code="upstream_error")
    listed = answer.get("choices")
    if not isinstance(listed, list):
        raise ApiError(502, "the model's server sent no choices", code="bad_upstream")
    parts = [_part(choice, key, choices) for choice in listed]
    if key == "message" and len({part.index for part in parts}) < len(parts):
        raise ApiError(502, "the model's server sent one choice twice", code="bad_upstream")
    return parts


def _part(choice: Any, key: str, choices: int) -> Part:
    said = choice.get(key) if isinstance(choice, dict) else None
    index = choice.get("index", 0) if isinstance(choice, dict) else None
    if said is None and key == "delta" and isinstance(choice, dict):
        said = {}
    if not isinstance(said, dict) or not isinstance(index, int) or not 0 <= index < choices:
        raise ApiError(502, "the model's server sent a choice that is none", code="bad_upstream")
    calls = said.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ApiError(502, "the model's server sent calls of tools that are none", code="bad_upstream")
    if said.get("function_call"):
        calls = [*calls, {"index": -1, "function": said["function_call"]}]
    end = choice.get("finish_reason")
    return Part(
        index=index,
        text=_text(said.get("content")) + _text(said.get("refusal")),
        reasoning=next((_text(said[name]) for name in _REASONING if said.get(name)), ""),
        calls=calls,
        end=(end if end in _ENDS else "stop") if end else "",
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in value
    ):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise ApiError(502, "the model's server sent a text that is none", code="bad_upstream")
    return value.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text


class Calls:
    """Calls of tools, put together from their pieces; they are held until the reply has ended."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    def add(self, pieces: list[Mapping[str, Any]]) -> None:
        """Take pieces as they come; those of one index make one call."""
        for at, piece in enumerate(pieces):
            index = piece.get("index", at)
            function = piece.get("function") or {}
            if not isinstance(index, int) or not isinstance(function, dict) or len(self._calls) > 256:
                raise ApiError(
                    502, "the model's server sent a call of a tool that is none", code="bad_upstream"
                )
            call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
            given = {"id": piece.get("id"), **{key: function.get(key) for key in ("name", "arguments")}}
            for key, value in given.items():
                if value is None:
                    continue
                text = _text(value if isinstance(value, str) else json.dumps(value))
                call[key] = text if key == "id" else call[key] + text

    def texts(self) -> list[str]:
        """What output layers read of them: names, parsed leaves, and arguments as written."""
        try:
            return call_texts([dict(call) for call in self._calls.values()])
        except ApiError as error:
            raise ApiError(502, f"a call of a tool: {error.message}", code="bad_upstream") from None

    def changed(
        self, change: Callable[[str], str], arguments: Callable[[str], str]
    ) -> list[Mapping[str, Any]]:
        """Every call as one piece, its names and ``arguments`` changed."""
        return [
            {
                "index": index,
                "id": change(call["id"]) or None,
                "function": {"name": change(call["name"]), "arguments": arguments(call["arguments"])},
            }
            for index, call in sorted(self._calls.items())
        ]

    def message(self) -> dict[str, Any]:
        """Their fields in a message; none where there are no calls."""
        named = [(index, call) for index, call in sorted(self._calls.items()) if index >= 0]
        fields: dict[str, Any] = {}
        if named:
            fields["tool_calls"] = [
                {
                    "id": call["id"] or f"call_{uuid.uuid4().hex[:12]}",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for _, call in named
            ]
        if -1 in self._calls:
            old = self._calls[-1]
            fields["function_call"] = {"name": old["name"], "arguments": old["arguments"]}
        return fields


class Builder:
    """Answers of our own, all with one id."""

    def __init__(self, model: str) -> None:
        self._same = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def chunk(self, index: int, delta: Mapping[str, Any], end: str | None = None) -> bytes:
        """One event of a stream."""
        choice = {"index": index, "delta": dict(delta), "finish_reason": end}
        return self._event({"choices": [choice]})

    def counted(self, usage: Mapping[str, int]) -> bytes:
        """The last event where the client wants to know the number of tokens."""
        return self._event({"choices": [], "usage": dict(usage)})

    def whole(self, choices: list[dict[str, Any]], usage: Mapping[str, int]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        return {
            **self._same,
            "object": "chat.completion",
            "choices": choices,
            "usage": dict(usage) or counted(),
        }

    def _event(self, fields: Mapping[str, Any]) -> bytes:
        return event({**self._same, "object": "chat.completion.chunk", **fields})


DONE = b"data: [DONE]\n\n"
HELD = b": the reply is read before it leaves\n\n"
"""A comment that keeps the connection alive."""


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def usage_of(answer: Any) -> dict[str, int]:
    """Numbers of tokens, where the server gives such."""
    given = answer.get("usage") if isinstance(answer, dict) else None
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    if not isinstance(given, dict):
        return {}
    counts = {key: given[key] for key in keys[:2] if isinstance(given.get(key), int)}
    return counted(counts.get(keys[0], 0), counts.get(keys[1], 0)) if counts else {}


def counted(prompt: int = 0, completion: int = 0) -> dict[str, int]:
    """Numbers of tokens as clients want them: all three."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
