"""Personal data stays here: placeholders go to the model's server, and come back as what they stood for.

Each request has a vault of its own (``defend._vault``), so no value reaches another client. Input layers read
what the client sent, output layers what the client will read; between them stands this.

1. Every text of the request is searched: messages, fields, keys, parsed arguments of calls, numbers that are
   no setting. Parts of one message are searched also as they may be put together.
2. In a reply that is streamed only the beginning of a placeholder is held back. Calls of tools come whole, at
   the end of their choice; their arguments are parsed, so that a value with a quotation mark stays JSON.
3. A placeholder that the vault does not know, which the model made up, stays as it is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from calibrant.defend.defended import Restorer, Vault
from calibrant.defend.pii_guard import PiiGuard
from calibrant.serve.proxy.reply import Calls, Part
from calibrant.serve.proxy.request import NUMBERS, TEXT_KEY, Asked
from calibrant.serve.proxy.upstream import Upstream

_SHORT = 2000
"""Characters that are searched without a thread."""
_KEYS = {
    *NUMBERS,
    *("messages", "model", "stream", "stream_options", "include_usage", "tools", "tool_choice", "functions"),
    *("function_call", "response_format", "json_schema", "strict", "schema", "stop", "user", "metadata"),
    *("role", "content", "name", "tool_calls", "tool_call_id", "id", "type", "function", "arguments", "text"),
    *("refusal", "reasoning_content", "parameters", "properties", "required", "description", "enum", "items"),
    *("default", "title", "format", "minimum", "maximum", "minLength", "maxLength", "pattern", "anyOf"),
    *("oneOf", "allOf", "additionalProperties"),
}
"""Keys that are never personal, whatever names are listed: no 'Max' stands in 'max_tokens'."""
_KINDS = ("role", "type")
_NAMED = {
    *("system", "developer", "user", "assistant", "tool", "function", "text", "input_text", "output_text"),
    *("refusal", "object", "string", "number", "integer", "array", "boolean", "null", "json_schema"),
    "json_object",
}
"""Of ``_KINDS``: values that are words of the protocol."""


class Hiding:
    """An upstream that never reads personal data."""

    def __init__(self, upstream: Upstream, config: PiiGuard) -> None:
        """``config``: what is hidden. Raises ConfigError: see ``pii_guard``."""
        self._upstream, self._config = upstream, config
        Vault(config)

    async def whole(self, asked: Asked, headers: Mapping[str, str]) -> tuple[list[Part], dict[str, int]]:
        """See ``Upstream``."""
        vault = Vault(self._config)
        parts, usage = await self._upstream.whole(await _hidden(asked, vault), headers)
        return [_Choice(vault).part(part, ended=True) for part in parts], usage

    async def parts(self, asked: Asked, headers: Mapping[str, str]) -> AsyncIterator[Part | dict[str, int]]:
        """See ``Upstream``."""
        vault = Vault(self._config)
        choices = [_Choice(vault) for _ in range(asked.choices)]
        hidden = await _hidden(asked, vault)
        async with aclosing(self._upstream.parts(hidden, headers)) as parts:  # type: ignore[type-var]
            async for part in parts:
                if isinstance(part, Part):
                    part = choices[part.index].part(part, ended=bool(part.end))
                    if part.text or part.reasoning or part.end:
                        yield part
                else:
                    yield part

    async def models(self, headers: Mapping[str, str]) -> list[str]:
        """See ``Upstream``."""
        return await self._upstream.models(headers)

    async def close(self) -> None:
        """See ``Upstream``."""
        await self._upstream.close()


class _Choice:
    """One choice of a reply, with its values put back."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._text, self._reasoning, self._calls = Restorer(vault), Restorer(vault), Calls()

    def part(self, part: Part, *, ended: bool) -> Part:
        """What can go on after one more part; where it has ``ended``, all."""
        self._calls.add(part.calls)
        text, reasoning = self._text.push(part.text), self._reasoning.push(part.reasoning)
        calls: list[Mapping[str, Any]] = []
        if ended:
            text, reasoning = text + self._text.finish(), reasoning + self._reasoning.finish()
            calls = self._calls.changed(
                self._vault.restore, lambda text: _arguments(text, self._vault.restore)
            )
        return replace(part, text=text, reasoning=reasoning, calls=calls)


async def _hidden(asked: Asked, vault: Vault) -> Asked:
    """The request as the model's server may read it."""
    if sum(len(turn.content) for turn in asked.chat.messages) < _SHORT:
        return replace(asked, body=hidden(asked.body, vault))
    return replace(asked, body=await asyncio.to_thread(hidden, asked.body, vault))


def hidden(body: Mapping[str, Any], vault: Vault) -> dict[str, Any]:
    """The body of a request with placeholders for all that ``vault`` finds; the model's name stays."""
    kept = {key: body[key] for key in body if key == "model" or (key in NUMBERS and not _is_text(body[key]))}
    rest = {key: value for key, value in body.items() if key not in kept}
    return {**kept, **_each(rest, vault.hide)}


def _is_text(value: Any) -> bool:
    return not (value is None or isinstance(value, int | float))


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Parsed JSON with every text and every number that is personal changed."""
    if isinstance(value, str):
        return change(value.encode("utf-8", "replace").decode())  # JSON within JSON may hold half a pair
    if isinstance(value, list):
        return [_each(inner, change) for inner in value]
    if isinstance(value, dict):
        return {
            key if key in _KEYS else change(key): _field(key, inner, change) for key, inner in value.items()
        }
    if value is None or isinstance(value, bool):
        return value
    written = json.dumps(value)
    return value if (changed := change(written)) == written else changed


def _field(key: str, value: Any, change: Callable[[str], str]) -> Any:
    if key in _KINDS and isinstance(value, str) and value in _NAMED:
        return value
    if key == "arguments" and isinstance(value, str):
        return _arguments(value, change)
    if key == "content" and isinstance(value, list) and all(map(_is_part, value)):
        return _content(value, change)
    return _each(value, change)


def _arguments(text: str, change: Callable[[str], str]) -> str:
    """Arguments of a call: their parsed leaves changed, so that they stay JSON."""
    try:
        parsed = json.loads(text)
        changed = _each(parsed, change)
        # A second key of one name is no leaf of what was parsed, but the server reads the text.
        if changed == parsed and change(text) == text:
            return text
        return json.dumps(changed, ensure_ascii=False)
    except (ValueError, RecursionError):
        return change(text)


def _is_part(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and kind in TEXT_KEY and isinstance(value.get(TEXT_KEY[kind]), str)


def _content(parts: list[Any], change: Callable[[str], str]) -> list[Any]:
    """Parts of a message; they are made one where something personal begins in one and ends in another."""
    places = [(part, TEXT_KEY[part["type"]]) for part in parts]
    texts = [part[key] for part, key in places]
    for between in ("", "\n"):  # servers put parts together in one way or the other
        whole = change(between.join(texts))
        if whole != between.join(map(change, texts)):
            first, key = places[0]
            return [_each(first, change) | {key: whole}]
    return [_each(part, change) for part in parts]
