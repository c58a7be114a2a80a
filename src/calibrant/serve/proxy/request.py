"""A request of the OpenAI chat protocol, checked: what a guard must read, and what the model is sent.

Every text that reaches the model is read: messages of all roles, calls of tools with their parsed arguments,
results of tools, and whatever else holds a text (definitions of tools, stop words, fields of a vendor). What
no guard can read is refused: images, audio, files. The model is sent the parsed request, never its bytes, so
that no second key of the same name passes unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from calibrant.core import Chat, Message
from calibrant.core.errors import nearest
from calibrant.core.lm import Role

CHOICES = 16
"""Most replies to one request."""
DEPTH = 64
"""Deepest nesting that is read."""
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
TEXT_KEY = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a part of a message -> where its text stands."""
_REFUSED = {
    "logprobs": "would carry texts that no layer reads",
    "top_logprobs": "would carry texts that no layer reads",
    "chat_template": "would make texts that no layer reads",
    "audio": "is read by no guard; only text is served",
}
NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "n", "seed", "max_tokens", "max_completion_tokens", "stream",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "parallel_tool_calls", "store",
)  # fmt: skip
"""Settings that are no text for the model, where they are numbers."""
_NAME = re.compile(r"[\w.:/@+-]{0,200}", re.ASCII)
"""Of a model: no text that it reads, and none that a guard has to."""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


class ApiError(Exception):
    """A request that is not served, in the shape of OpenAI's errors."""

    def __init__(self, status: int, message: str, *, code: str = "invalid_request", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.message = message

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param or None,
                "code": self.code,
            }
        }


@dataclass(frozen=True)
class Asked:
    """A request as the proxy serves it."""

    chat: Chat
    """What input layers read."""
    body: Mapping[str, Any]
    """What the model is sent."""
    model: str
    stream: bool
    choices: int
    usage: bool
    """Whether a stream ends with the number of tokens."""


def read(raw: bytes, content_type: str) -> Asked:
    """The request in ``raw``.

    Raises:
        ApiError: 400 or 415, with what is wrong and the field that it is wrong in.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
    body = _parsed(raw)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "'messages' must be a list with at least one message", param="messages")
    turns = [turn for at, message in enumerate(messages) for turn in _turns(message, f"messages[{at}]")]
    for key, why in _REFUSED.items():
        if body.get(key):
            raise ApiError(400, f"'{key}' {why}", code="not_read", param=key)
    if body.get("modalities") not in (None, ["text"]):
        raise ApiError(400, "only text is guarded", code="not_read", param="modalities")
    choices, stream = body.get("n", 1), body.get("stream", False)
    if choices is None:
        choices = 1
    if not isinstance(choices, int) or isinstance(choices, bool) or not 1 <= choices <= CHOICES:
        raise ApiError(400, f"'n' must be a number from 1 to {CHOICES}", param="n")
    if stream not in (True, False, None):
        raise ApiError(400, "'stream' must be true or false", param="stream")
    model = body.get("model") or ""
    if not isinstance(model, str) or not _NAME.fullmatch(model):
        raise ApiError(400, "'model' must be a name of letters, digits and ._:/@+-", param="model")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or not all(value in (True, False, None) for value in options.values()):
        raise ApiError(400, "'stream_options' must hold true or false", param="stream_options")
    beside = {
        key: value
        for key, value in body.items()
        if key not in ("messages", "model", "stream_options") and not (key in NUMBERS and _is_number(value))
    }
    if texts := list(leaves(beside)):
        turns.insert(0, Message(role="system", content="\n".join(texts)))
    return Asked(
        chat=Chat(messages=tuple(turns)),
        body=body,
        model=model,
        stream=bool(stream),
        choices=choices,
        usage=bool(options.get("include_usage")),
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def leaves(value: Any, depth: int = 0) -> Iterator[str]:
    """Every text in parsed JSON, keys and numbers included; one with escapes or JSON inside is read as that,
    too.
    """
    if depth > DEPTH:
        raise ApiError(400, f"it is nested more than {DEPTH} deep", code="too_deep")
    if isinstance(value, str):
        yield from _readings(value, depth)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _readings(str(key), depth)
            yield from leaves(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, depth + 1)
    elif value is not None:
        yield json.dumps(value)


def _readings(text: str, depth: int) -> Iterator[str]:
    if text:
        yield text
    if "\\" in text:
        if (plain := _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)) != text:
            yield plain
        if text.lstrip()[:1] in ("{", "[", '"'):
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                return
            yield from leaves(inner, depth + 1)


def call_texts(calls: Any) -> list[str]:
    """What calls of tools say: names, and the leaves of their arguments, which are JSON in a text."""
    found: list[str] = []
    for text in leaves(calls):
        found.append(text)
        if text.lstrip()[:1] in ("{", "["):
            try:
                found += leaves(json.loads(text))
            except (ValueError, RecursionError):
                continue
    return list(dict.fromkeys(found))


def _parsed(raw: bytes) -> dict[str, Any]:
    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=no_number)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")  # surrogates, 1e999
    except UnicodeError:
        raise ApiError(400, "the request is not UTF-8 text", code="invalid_unicode") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError(400, f"the request is not JSON: {why}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the request must be a JSON object", code="invalid_json")
    return body


def _turns(message: Any, where: str) -> Iterator[Message]:
    """What a guard reads of one message."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        told = f"unknown role{nearest(str(role)[:40], list(_ROLES))}; known: {', '.join(_ROLES)}"
        raise ApiError(400, f"{where}: {told}", code="unknown_role", param=f"{where}.role")
    texts = [_content(message.get("content"), f"{where}.content")]
    beside = {key: value for key, value in message.items() if key not in ("role", "content")}
    texts += call_texts(beside)
    yield Message(role=_ROLES[role], content="\n".join(filter(None, texts)))


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be a text or a list of parts", param=where)
    texts: list[str] = []
    beside: list[str] = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in TEXT_KEY:
            raise ApiError(
                400,
                f"{where}[{at}]: no guard reads a part of this type; only text is served",
                code="not_read",
                param=f"{where}[{at}]",
            )
        text = part.get(TEXT_KEY[kind])
        if not isinstance(text, str):
            raise ApiError(400, f"{where}[{at}] holds no text", param=f"{where}[{at}]")
        texts.append(text)
        beside += leaves({key: value for key, value in part.items() if key not in ("type", TEXT_KEY[kind])})
    # Servers put parts together in one way or the other.
    return "\n".join(dict.fromkeys(("".join(texts), "\n".join(texts), *beside)))


def plain(content: Any) -> str:
    """The text of a message whose content ``read`` has let pass, as a local model is given it."""
    if isinstance(content, list):
        return "".join(part[TEXT_KEY[part["type"]]] for part in content)
    return content or ""
