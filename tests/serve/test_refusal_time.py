"""With ``refusal_after`` a refusal leaves at one time, whichever layer fired, by a clock that layers move."""

from __future__ import annotations

import asyncio
import json

import pytest
from proxy_stub import REFUSAL, WORD, ask, events, said, words

from calibrant.core import ConfigError, Identity
from calibrant.defend.defended import Layer, StackSpec
from calibrant.serve.proxy.audit import Audit
from calibrant.serve.proxy.case import Settings
from calibrant.serve.proxy.reply import Part
from calibrant.serve.proxy.run import run
from calibrant.serve.proxy.server import Proxy


class Clock:
    """Moves when a layer, the model or the proxy takes time."""

    now = 100.0

    async def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


class Takes:
    """A guard that takes ``seconds`` and blocks ``word``."""

    def __init__(self, clock, seconds, word):
        self.clock, self.seconds, self.guard = clock, seconds, words(word)
        self.identity = Identity(name=word, kind="guard", parts={"word": word})

    def ask(self, chats, side):
        self.clock.now += self.seconds
        return self.guard.ask(chats, side)


class Model:
    """Takes a second a part; ``pause``: seconds that it really waits."""

    def __init__(self, clock, text, pause):
        self.clock, self.text, self.pause = clock, text, pause

    async def parts(self, asked, headers):
        await asyncio.sleep(self.pause)
        for word in self.text.split(" "):
            self.clock.now += 1.0
            for at in range(asked.choices):
                yield Part(at, f"{word} ")
        for at in range(asked.choices):
            yield Part(at, end="stop")

    async def whole(self, asked, headers):
        self.clock.now += 3.0
        return [Part(at, self.text, end="stop") for at in range(asked.choices)], {}

    async def close(self):
        pass


def sends(tmp_path, asked, reply, after, *, guards=Takes, pause=0.0, **more):
    """When what left: (seconds from the request's beginning, message) for each; and the audit's line."""
    clock = Clock()
    layers = [
        Layer("quick", "input", guards(clock, 0.001, "one")),
        Layer("slow", "input", guards(clock, 2.0, "two")),
        Layer("quick reply", "output", guards(clock, 0.01, "three")),
        Layer("slow reply", "output", guards(clock, 1.5, "four")),
    ]
    audit = Audit(tmp_path / "audit", {"layers": []}, "full")
    settings = Settings(refusal=REFUSAL, refusal_after=after, quiet=0.02 if pause else 60.0, deadline=1000)
    app = Proxy(
        layers, Model(clock, reply, pause), audit, settings, clock=lambda: clock.now, sleep=clock.sleep
    ).app()
    body = json.dumps(ask(asked, **more)).encode()
    left = []

    async def call():
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if not given:
                await asyncio.Event().wait()
            return given.pop()

        async def send(message):
            left.append((clock.now - 100.0, message))

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "method": "POST"}
        scope |= {"path": "/v1/chat/completions", "headers": headers, "query_string": b"", "root_path": ""}
        await app(scope, receive, send)

    asyncio.run(call())
    audit.close()
    return left


FIRES = {
    "quick": ("one", "well"),
    "slow": ("two", "well"),
    "quick reply": ("x", "three"),
    "slow reply": ("x", "four"),
}
"""Layer -> what is asked and replied, so that it blocks."""


def shape(left):
    """What a client can tell: sizes and kinds of what left."""
    return [(message["type"], len(message.get("body", b""))) for _, message in left]


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"stream": True}, {"stream": True, "n": 2}])
def test_every_refusal_leaves_at_the_same_time_whichever_layer_fired(tmp_path, more):
    told = {name: sends(tmp_path, *texts, 60.0, **more) for name, texts in FIRES.items()}
    for name, left in told.items():
        assert {round(at, 6) for at, _ in left} == {60.0}, name  # headers too
        assert REFUSAL.encode() in b"".join(message.get("body", b"") for _, message in left)
        assert shape(left) == shape(told["quick"])


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_without_it_the_time_tells_the_layer(tmp_path, more):
    last = {name: sends(tmp_path, *texts, 0.0, **more)[-1][0] for name, texts in FIRES.items()}
    assert len(set(last.values())) == 4
    assert last["quick"] < 0.01 < 2 < last["slow"] < last["quick reply"] < last["slow reply"]


def test_a_refusal_that_is_later_than_that_is_not_held_longer(tmp_path):
    assert sends(tmp_path, "two", "well", 1.0)[-1][0] == pytest.approx(2.001)


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_a_reply_that_may_pass_is_not_held(tmp_path, more):
    times = [
        [round(at, 6) for at, _ in sends(tmp_path, "x", "all is well", after, **more)]
        for after in (0.0, 60.0)
    ]
    assert times[0][-1] == times[1][-1] < 60.0


def test_a_stream_begins_with_its_first_text(tmp_path):
    left = sends(tmp_path, "x", "all is well, my friend of old", 60.0, stream=True, guards=_Plain)
    began = next(at for at, message in left if message["type"] == "http.response.start")
    first = next(at for at, message in left if b"all" in message.get("body", b""))
    assert began == first < left[-1][0] < 60.0


class _Plain:
    """A pattern guard, which lets a reply leave as it comes."""

    def __new__(cls, clock, seconds, word):
        return words(word)


def test_no_comment_tells_that_a_request_has_passed(tmp_path):
    for after, comments in ((60.0, False), (0.0, True)):
        left = sends(tmp_path, "x", "three", after, stream=True, pause=0.1)
        assert any(message.get("body", b"").startswith(b":") for _, message in left) == comments


def test_a_block_in_the_middle_of_a_stream_ends_no_earlier(tmp_path):
    left = sends(
        tmp_path, "x", "all is well, my friend of old, and three it is", 60.0, stream=True, guards=_Plain
    )
    text = b"".join(message.get("body", b"") for _, message in left).decode()
    assert "all is" in said(events(text))
    assert [round(at, 6) for at, message in left if b"content_filter" in message.get("body", b"")] == [60.0]
    assert WORD not in text


def test_a_time_that_no_request_has_is_refused_before_anything_is_served():
    spec = StackSpec(layer=[{"name": "a", "side": "input", "guard": "x"}])
    with pytest.raises(ConfigError, match="refusals wait 120 s"):
        run(spec, [], None, Settings(upstream="http://localhost:1/v1", refusal_after=120.0), print)
