"""A reply as a stream of events: what leaves after each part of it, and a client that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from calibrant.serve.proxy.case import Settings
from calibrant.serve.proxy.release import Release
from calibrant.serve.proxy.reply import Calls, Part

BLOCKED = "content_filter"
"""Why a blocked choice ends, in the words of the protocol."""


@dataclass
class Live:
    """One choice of a stream."""

    release: Release
    settings: Settings
    calls: Calls = field(default_factory=Calls)
    over: bool = False

    def pass_on(self, part: Part) -> list[tuple[dict[str, Any], str | None]]:
        """What leaves after one more part of a choice; runs in a thread."""
        self.calls.add(part.calls)
        reasoning = part.reasoning if self.settings.show_reasoning else ""
        outs = [self.release.push(part.text, reasoning)] if part.text or reasoning else []
        if part.end:
            outs.append(self.release.finish(self.calls.texts()))
        events: list[tuple[dict[str, Any], str | None]] = []
        for out in outs:
            delta = {"reasoning_content": out.reasoning, "content": out.text}
            if kept := {key: text for key, text in delta.items() if text}:
                events.append((kept, None))
        if self.release.blocked is not None:
            self.over = True
            if not self.release.released:
                events.append(({"content": self.settings.refusal}, None))
            events.append(({}, BLOCKED))
        elif part.end:
            self.over = True
            if (message := self.calls.message()) and "tool_calls" in message:
                message["tool_calls"] = [
                    {"index": at, **call} for at, call in enumerate(message["tool_calls"])
                ]
            if message:
                events.append((message, None))
            events.append(({}, part.end))
        return events


class EventStream(StreamingResponse):
    """Events, with a limit also for a client that does not read; what is open is closed at once."""

    def __init__(
        self, body: AsyncGenerator[bytes], headers: Mapping[str, str], seconds: float, *, late: bool = False
    ) -> None:
        """``late``: the answer begins with its first event, so that its headers tell nothing before."""
        super().__init__(body, media_type="text/event-stream", headers=headers)
        self._body, self._seconds, self._late = body, seconds, late

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, for as long as the client may take."""
        body = self._body
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    if self._late:
                        body = _again(await anext(self._body, b""), body)
                        self.body_iterator = body
                    await super().__call__(scope, receive, send)
        finally:
            await body.aclose()
            await self._body.aclose()


async def _again(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for one in rest:
        yield one
