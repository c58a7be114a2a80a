"""Parse a server's JSON answer, whole or in events: the completion, with reasoning and reply separate.

Servers put reasoning in three places: into the text, between tags (``core.reasoning``); into a field beside
it (``reasoning_content`` of DeepSeek, vLLM and SGLang, ``reasoning`` of vLLM and OpenRouter, ``thinking`` of
Ollama); or into a part of its own, where the content is a list of parts (Mistral, Anthropic).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from calibrant.core.lm import Completion, Piece
from calibrant.core.reasoning import may_open, part
from calibrant.models.endpoint import complaint, completion_tokens, quote
from calibrant.models.endpoint_budget import EndpointError

_STOPS: dict[str, Literal["eos", "length"]] = {"stop": "eos", "length": "length", "tool_calls": "eos"}
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_TEXTS = ("text", "output_text", "refusal")
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
FILTERED = "content filter of the endpoint"
"""Why such a reply was blocked or, where some of it came through, cut."""


_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def read_reply(reply: Any, quote: Callable[[object], str] = quote, lone_tags: bool = True) -> Completion:
    """The completion in a parsed answer; ``stop = "error"`` says what is wrong with one that holds none.

    A call of a tool is part of the reply: a line with its name and arguments. ``quote`` makes a piece of the
    answer fit for a message. ``lone_tags``: see ``ApiConfig``.
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
        # A server that knows its own tags leaves none in the text.
        opened=False if thought or not lone_tags else None,
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
    for one in parts:
        kind = one.get("type") if isinstance(one, dict) else None
        if isinstance(one, str) or kind in _TEXTS:
            texts.append(_words(one))
        elif kind in _THOUGHTS:
            thoughts.append(_words(one))
        elif one is not None:
            odd = odd or str(kind or type(one).__name__)
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
    return _fit(_raw(value))


def _raw(value: Any) -> str:
    return "".join(_pieces(value))


def _fit(text: str) -> str:
    whole = _HALVES.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return whole.encode("utf-8", "replace").decode()


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


class Gathering:
    """A reply that comes in events: what can be told of it, and in the end the completion that it makes.

    What is told is never taken back. Of a reply that may begin with reasoning nothing is told before its end.
    """

    def __init__(
        self,
        quote: Callable[[object], str] = quote,
        lone_tags: bool = True,
        struck: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        """``struck`` takes keys out of the whole: one may be cut over two events."""
        self._quote, self._lone_tags, self._struck = quote, lone_tags, struck
        self._text, self._thought = _Growing(), _Growing()
        self._plain: bool | None = None  # whether the text begins with the reply; None while it may not
        self._parted = False  # whether text stands behind the reasoning
        self._refusal, self._odd, self._end = "", "", None  # type: tuple[str, str, Any]
        self._calls: dict[int, dict[str, str]] = {}
        self._logprobs: list[Any] = []
        self.answer: dict[str, Any] = {}
        """What the server says of the whole: model, usage."""

    def push(self, event: Any) -> Piece | None:
        """Take an event; what can be told now, or None.

        Raises:
            EndpointError: it is an error of the server, or no event of the protocol.
        """
        match event:
            case {"error": error} if error:
                said = EndpointError(f"the server reports: {self._quote(complaint(event) or error)}")
                said.blocked = isinstance(error, dict) and error.get("code") == "content_filter"
                raise said
            case {"choices": [*choices]}:
                pass
            case {"usage": {}}:
                choices = []
            case _:
                text = self._quote(complaint(event) or "it says nothing of use")
                raise EndpointError(f"an event of the stream has no choices: {text}")
        said_of_all = {key: event.get(key) for key in ("model", "usage")}
        self.answer |= {key: value for key, value in said_of_all.items() if value}
        for choice in choices:
            match choice:
                case {"delta": {**delta}} | {"message": {**delta}}:
                    pass
                case {"finish_reason": _}:  # the last event of some servers
                    delta = {}
                case _:
                    raise EndpointError(f"an event of the stream is malformed: {self._quote(choice)[:40]}")
            if choice.get("index", 0) != 0:
                raise EndpointError("an event of the stream belongs to a choice that was not asked for")
            self._take({str(key): value for key, value in delta.items()}, choice)
        return self._told()

    def finish(self) -> Piece:
        """The last piece, with the completion.

        Raises:
            EndpointError: it has not ended, or does not go on as it was told.
        """
        if self._end is None:
            raise EndpointError("the stream ended in the middle of the reply")
        content: Any = self._text.whole
        message = {
            "content": [content, {"type": self._odd}] if self._odd else content,
            "reasoning_content": self._thought.whole,
            "refusal": self._refusal,
            "tool_calls": [{"function": call} for _, call in sorted(self._calls.items())],
        }
        logprobs = {"content": self._logprobs}
        choice = {"message": message, "finish_reason": self._end, "logprobs": logprobs}
        whole = self._struck({**self.answer, "choices": [choice]})
        done = read_reply(whole, self._quote, self._lone_tags)
        text, thought = self._text.rest(done.text), self._thought.rest(done.reasoning or "")
        if text is None or thought is None:
            raise EndpointError("the reply ends otherwise than it began")
        return Piece(text=text, reasoning=thought, tokens=done.tokens or 0, completion=done)

    def broken(self, reason: str, *, blocked: bool = False) -> Piece:
        """The last piece of a reply that broke off: what was told of it, and the reason."""
        text, thought = self._text.told, self._thought.told
        stop: Literal["blocked", "error"] = "blocked" if blocked and not text else "error"
        return Piece(completion=Completion(text=text, reasoning=thought or None, stop=stop, error=reason))

    def _take(self, delta: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        fields = (*_FIELDS, "reasoning_details")
        self._thought.add(next((text for name in fields if (text := _raw(delta.get(name)))), ""))
        content = delta.get("content")
        parts = content if isinstance(content, list) else [content]
        for one in parts:
            kind = one.get("type") if isinstance(one, dict) else None
            if isinstance(one, str) or kind in _TEXTS:
                self._text.add(_raw(one))
                self._parted |= bool(self._thought and _raw(one))
            elif kind in _THOUGHTS:
                # Blocks of one event, or with text between them, are blocks of their own.
                self._thought.add("\n\n" * self._parted + _raw(one))
                self._parted = one is not parts[-1]
            elif one is not None:
                self._odd = self._odd or str(kind or type(one).__name__)
        self._refusal += _raw(delta.get("refusal"))
        calls = delta.get("tool_calls") or []
        for at, call in enumerate(calls if isinstance(calls, list) else [calls]):
            match call:
                case {"function": {**function}} if isinstance(index := call.get("index", at), int):
                    kept = self._calls.setdefault(index, {})
                case _:
                    raise EndpointError("an event of the stream has a malformed call of a tool")
            for key in ("name", "arguments"):
                if (more := function.get(key)) is not None:
                    written = more if isinstance(more, str) else json.dumps(more)
                    kept[key] = kept.get(key, "") + written
        match choice.get("logprobs"):
            case {"content": [*tokens]}:
                self._logprobs += tokens
        if choice.get("finish_reason") is not None:
            self._end = choice["finish_reason"]

    def _told(self) -> Piece | None:
        if self._plain is None and (self._thought or not self._lone_tags):
            begun = self._text.whole
            if begun.strip() and not may_open(begun):
                self._plain = part(begun, False).reasoning is None
        text = self._text.next() if self._plain else ""
        thought = self._thought.next()
        return Piece(text=text, reasoning=thought) if text or thought else None


class _Growing:
    """A text that comes in pieces, and what was told of it; half of a surrogate pair waits for the other."""

    def __init__(self) -> None:
        self._told, self._new = [], ""  # type: tuple[list[str], str]

    def __bool__(self) -> bool:
        return bool(self._told or self._new)

    @property
    def told(self) -> str:
        return "".join(self._told)

    @property
    def whole(self) -> str:
        return self.told + self._new

    def add(self, text: str) -> None:
        self._new += text

    def next(self) -> str:
        """What can be told now."""
        half = self._new[-1:] if "\ud800" <= self._new[-1:] <= "\udbff" else ""
        text, self._new = _fit(self._new[: len(self._new) - len(half)]), half
        if text:
            self._told.append(text)
        return text

    def rest(self, whole: str) -> str | None:
        """What is left to tell of the text as it is in the end; None where it does not begin as was told."""
        told = self.told
        return whole[len(told) :] if whole.startswith(told) else None
