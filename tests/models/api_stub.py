"""A real HTTP server on this machine that answers as a test tells it to, and a model that asks it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from calibrant.models.api import ApiConfig, ApiModel, Pacing

Answer = Callable[[BaseHTTPRequestHandler, Any], None]
KEY = "make-believe-key-123"


class Server:
    """A server whose answer to each request is a function; keeps what it was sent."""

    def __init__(self) -> None:
        self.answer: Answer = say("hi")
        self.models: Answer = as_json({"data": [{"id": "toy"}, {"id": "toy-large"}]})
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                server.keys.append(self.headers["authorization"])
                (server.models if self.path == "/v1/models" else status(404))(self, None)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.bodies.append(body)
                server.keys.append(self.headers["authorization"])
                (server.answer if self.path == "/v1/chat/completions" else status(404))(self, body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = False  # so that closing waits for every handler
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def raw(body: bytes, code: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _: Any) -> None:
        handler.send_response_only(code)
        for name, value in ({"content-length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def as_json(value: object, code: int = 200, **headers: str) -> Answer:
    return raw(json.dumps(value).encode(), code, **headers)


def status(code: int, message: str = "made-up fault", **headers: str) -> Answer:
    return as_json({"error": {"message": message}}, code, **headers)


def reply(text: object = "hi", reason: object = "stop", **more: object) -> dict[str, Any]:
    usage = more.pop("usage", None)
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason, **more}
    return {"choices": [choice]} | ({"usage": {"completion_tokens": usage}} if usage is not None else {})


def say(text: object, reason: object = "stop", **more: object) -> Answer:
    return as_json(reply(text, reason, **more))


def drop(handler: BaseHTTPRequestHandler, _: Any) -> None:
    """Hang up without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def trickle(handler: BaseHTTPRequestHandler, _: Any) -> None:
    """A body that always comes and never ends: no single read is slow."""
    handler.send_response_only(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    try:
        for _step in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:
        pass  # the client has hung up, as it should


def in_turn(*answers: Answer) -> Answer:
    queue = list(answers)
    return lambda handler, body: queue.pop(0)(handler, body)


def patient(waits: list[float] | None = None, jitter: float = 1.0) -> Pacing:
    """Does not sleep; notes for how long it would have."""
    noted = waits if waits is not None else []
    return Pacing(sleep=noted.append, jitter=lambda: jitter)


def model_at(server: Server, waits: list[float] | None = None, **config: Any) -> ApiModel:
    return ApiModel.open(server.url, "toy", ApiConfig(**config), patient(waits))
