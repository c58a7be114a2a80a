"""A stub of a model's server and the proxy before it, both on real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from calibrant.defend.defended import Layer
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.serve.proxy.audit import Audit, read
from calibrant.serve.proxy.case import Settings
from calibrant.serve.proxy.run import _bound
from calibrant.serve.proxy.server import Proxy
from calibrant.serve.proxy.upstream import Server, Upstream

WORD = "zorble"
REFUSAL = "i can not help with that."


@contextmanager
def served(app: Any) -> Iterator[str]:
    """``app`` on a free port of this machine, in a thread; its address."""
    listening = _bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def chunk(delta: dict[str, Any], end: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "up", "choices": [{"index": index, "delta": delta, "finish_reason": end}]}


@dataclass
class Stub:
    """A model's server that says what it is told to."""

    url: str = ""
    text: str = "take the flint, and be well."
    pieces: list[Any] | None = None
    """Events of a stream, dicts or raw bytes; None cuts ``text`` into characters."""
    answer: Any = None
    """The whole answer where it does not stream; None wraps ``text``."""
    status: int = 200
    pause: float = 0.0
    """Seconds before each event."""
    hang: float = 0.0
    """Seconds before anything."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.hang)
        if self.status != 200:
            return JSONResponse({"error": {"message": "the stub says no"}}, status_code=self.status)
        if not body.get("stream"):
            if isinstance(self.answer, bytes):
                return Response(self.answer, media_type="application/json")
            return JSONResponse(self.answer if self.answer is not None else self._whole(body))
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {"index": at, "message": {"role": "assistant", "content": self.text}, "finish_reason": "stop"}
            for at in range(body.get("n") or 1)
        ]
        return {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}

    async def _events(self, body: dict[str, Any]) -> Any:
        pieces = self.pieces
        if pieces is None:
            pieces = [chunk({"content": c}) for c in self.text] + [chunk({}, "stop")]
        for piece in pieces:
            await asyncio.sleep(self.pause)
            yield piece if isinstance(piece, bytes) else b"data: " + json.dumps(piece).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "stub-1"}, {"id": "stub-2"}]})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
            ]
        )


@dataclass
class Front:
    """A proxy that runs, and what a test wants to know of it."""

    url: str
    audit: Audit

    def post(self, body: Any, **more: Any) -> httpx.Response:
        with httpx.Client(timeout=30, trust_env=False) as client:
            return client.post(f"{self.url}/v1/chat/completions", json=body, **more)

    def stream(self, body: dict[str, Any], **more: Any) -> list[Any]:
        """Events of a stream; texts are comments."""
        with httpx.Client(timeout=30, trust_env=False) as client:
            raw = client.post(f"{self.url}/v1/chat/completions", json={**body, "stream": True}, **more)
        return events(raw.text)

    def lines(self) -> list[dict[str, Any]]:
        """Lines of the audit after its header."""
        return list(read(self.audit.path))[1:]


def events(text: str) -> list[Any]:
    found: list[Any] = []
    for block in text.split("\n\n"):
        if block.startswith("data: ") and block != "data: [DONE]":
            found.append(json.loads(block[6:]))
        elif block:
            found.append(block)
    return found


def said(found: list[Any], key: str = "content", index: int = 0) -> str:
    """What a client puts together of a stream."""
    return "".join(
        choice["delta"].get(key) or ""
        for one in found
        if isinstance(one, dict)
        for choice in one.get("choices", ())
        if choice["index"] == index
    )


def ends(found: list[Any]) -> list[str]:
    return [
        choice["finish_reason"]
        for one in found
        if isinstance(one, dict)
        for choice in one.get("choices", ())
        if choice["finish_reason"]
    ]


def words(*forbidden: str, **more: Any) -> Any:
    return pattern_guard(PatternGuard(words=forbidden or (WORD,), **more))


def both() -> list[Layer]:
    return [Layer("asked", "input", words()), Layer("replied", "output", words())]


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    with served(stub.app()) as url:
        stub.url = url
        yield stub


@pytest.fixture
def front(tmp_path: Any) -> Iterator[Callable[..., Front]]:
    """``front(layers, upstream)``: a proxy that runs until the test ends."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(layers: list[Layer], upstream: Stub | Upstream, keep: Any = "full", **more: Any) -> Front:
            audit = Audit(
                tmp_path / "audit", {"layers": [{"name": x.name, "side": x.side} for x in layers]}, keep
            )
            behind = Server(upstream.url) if isinstance(upstream, Stub) else upstream
            app = Proxy(layers, behind, audit, Settings(refusal=REFUSAL, **more)).app()
            return Front(stack.enter_context(served(app)), audit)

        yield start


def ask(text: str = "how do i mend the barn?", **more: Any) -> dict[str, Any]:
    return {"model": "stub-1", "messages": [{"role": "user", "content": text}], **more}
