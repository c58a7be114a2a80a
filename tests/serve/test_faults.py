"""Fault matrix: {time-out, exception, malformed, killed child, hang, 500} x each layer x {stream, not}.

Allowed replies under ``on_error = block``: none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from proxy_stub import REFUSAL, ask, both, chunk, ends, said, words

from calibrant.core import Identity, Verdict
from calibrant.defend.defended import Layer, OnFailure

FAULTS = ("late", "raises", "malformed", "too few", "killed child", "hangs", "exits")


class Faulty:
    """A guard that fails in one way."""

    def __init__(self, fault):
        self.fault, self.asked = fault, 0
        self.identity = Identity(name=fault, kind="guard", parts={"fault": fault})
        self.release = threading.Event()

    def ask(self, chats, side):
        self.asked += 1
        if self.fault == "late":
            self.release.wait(1.0)
        if self.fault == "hangs":
            self.release.wait(60)
        if self.fault == "raises":
            raise RuntimeError("the fuse is gone")
        if self.fault == "exits":
            sys.exit(0)
        if self.fault == "malformed":
            return "yes"
        if self.fault == "too few":
            return []
        if self.fault == "killed child":
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
            subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], check=True)
        return [Verdict(question="?", answer="yes") for _ in chats]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_no_reply_is_allowed_by_a_layer_that_fails(stub, front, fault, side, at, stream):
    faulty = Faulty(fault)
    stack = both()
    stack.insert({"input": 0, "output": 1}[side] + at, Layer("faulty", side, faulty, OnFailure(timeout=0.2)))
    proxy = front(stack, stub)
    if stream:
        found = proxy.stream(ask())
        assert (said(found), ends(found)) == (REFUSAL, ["content_filter"])
    else:
        choice = proxy.post(ask()).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (REFUSAL, "content_filter")
    line = proxy.lines()[0]
    assert (line["outcome"], line["why"], line["released"]) == (f"blocked_{side}", "faulty", 0)
    assert line["degraded"]
    assert len(stub.asked) == (side == "output")
    faulty.release.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_layer_without_a_limit_of_its_own_has_that_of_the_request(stub, front, stream):
    faulty = Faulty("hangs")
    proxy = front([Layer("faulty", "input", faulty), *both()], stub, deadline=0.4)
    began = time.monotonic()
    if stream:
        assert said(proxy.stream(ask())) == REFUSAL
    else:
        assert proxy.post(ask()).json()["choices"][0]["finish_reason"] == "content_filter"
    assert time.monotonic() - began < 30
    assert stub.asked == []
    faulty.release.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_layer_that_escalates_leaves_it_to_the_others_and_says_so(stub, front, stream):
    escalates = OnFailure(on_error="escalate")
    stack = [Layer("faulty", "input", Faulty("raises"), escalates), *both()]
    proxy = front(stack, stub)
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{proxy.url}/v1/chat/completions", json=ask(stream=stream))
        assert answer.headers["x-calibrant-degraded"] == "true"
    assert stub.text in (answer.text if not stream else said(proxy.stream(ask())))
    assert proxy.lines()[0]["degraded"]
    assert proxy.post(ask("zorble")).json()["choices"][0]["finish_reason"] == "content_filter"
    alone = front([Layer("faulty", "input", Faulty("raises"), escalates)], stub)
    assert alone.post(ask()).json()["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize("stream", [False, True])
def test_a_layer_is_tried_again_and_then_rests(stub, front, stream):
    faulty = Faulty("raises")
    rules = OnFailure(retries=2, breaker=2, cooldown=3600)
    proxy = front([Layer("faulty", "input", faulty, rules), *both()], stub)
    for _ in range(4):
        proxy.stream(ask()) if stream else proxy.post(ask())
    assert faulty.asked == 6  # two requests, three tries each; then it is not asked
    with httpx.Client(trust_env=False) as client:
        told = client.get(f"{proxy.url}/readyz")
    assert (told.status_code, told.json()["ready"]) == (503, False)
    assert "faulty" in told.json()["reasons"][0]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_models_server_are_told_in_the_protocols_shape(stub, front, status, stream):
    proxy, stub.status = front(both(), stub), status
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{proxy.url}/v1/chat/completions", json=ask(stream=stream))
    if stream:
        assert '"error"' in answer.text
        assert "[DONE]" not in answer.text
    else:
        assert answer.status_code == (status if status < 500 else 502)
        assert answer.json()["error"]["code"] == "upstream_error"
    assert proxy.lines()[0]["outcome"] in ("error", "refused")


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_hangs_meets_the_deadline(stub, front, stream):
    proxy, stub.hang = front(both(), stub, deadline=0.3, quiet=0.1), 5.0
    if stream:
        errors = [one for one in proxy.stream(ask()) if isinstance(one, dict) and "error" in one]
        assert errors[0]["error"]["code"] == "timeout"
    else:
        assert proxy.post(ask()).status_code == 504


def test_a_server_that_is_not_there(front, stub):
    from calibrant.serve.proxy.upstream import Server

    proxy = front(both(), Server("http://127.0.0.1:9/v1"))
    answer = proxy.post(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize(
    "answer",
    [b"{", b"[]", b"\xff", b"null", {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": 3}]},
     {"choices": [{"index": 9, "message": {"content": "x"}}]},
     {"choices": [{"message": {"content": {"a": 1}}}]}, {"error": {"message": "zorble"}}],
)  # fmt: skip
def test_an_answer_that_is_none_is_an_error_and_not_a_reply(stub, front, answer):
    proxy, stub.answer = front(both(), stub), answer
    told = proxy.post(ask())
    assert told.status_code == 502
    assert "zorble" not in told.text


def test_a_client_that_leaves_leaves_a_line(stub, front):
    proxy, stub.pause = front(both(), stub), 0.05
    stub.text = "a long reply that goes on and on and on " * 5
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", f"{proxy.url}/v1/chat/completions", json=ask(stream=True)) as answer,
    ):
        next(answer.iter_bytes())
    for _ in range(200):
        if lines := proxy.lines():
            break
        time.sleep(0.02)
    assert [line["outcome"] for line in lines] == ["client_left"]
    assert lines[0]["released"] < len(stub.text)


def test_when_the_audit_can_not_be_written_nothing_is_served(stub, front):
    proxy = front(both(), stub)
    assert proxy.post(ask()).status_code == 200
    proxy.audit.path.write_bytes(b"another hand\n")
    first, second = proxy.post(ask()), proxy.stream(ask())
    assert first.status_code == 503
    assert stub.text not in first.text
    assert said(second) == ""
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{proxy.url}/readyz").status_code == 503
    assert len(stub.asked) == 2


def test_a_layer_that_fails_in_the_middle_of_a_stream_ends_it(stub, front):
    class Tires:
        identity = Identity(name="tires", kind="guard", parts={"tires": "1"})
        asked = 0

        def held(self, reply):
            return len(reply)

        def ask(self, chats, side):
            self.asked += 1
            if self.asked > 3:
                raise RuntimeError("tired")
            return words().ask(chats, side)

    stub.pieces = [chunk({"content": f"word{at} "}) for at in range(20)] + [chunk({}, "stop")]
    found = front([Layer("tires", "output", Tires())], stub).stream(ask())
    assert (said(found), ends(found)) == ("word0 word1 word2 ", ["content_filter"])


@pytest.mark.parametrize(
    "event",
    [{"tool_calls": 5, "function_call": {"name": "x"}}, {"tool_calls": {"a": 1}}, {"content": ["x"]},
     {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "[" * 70 + "]" * 70}}]}],
)  # fmt: skip
def test_what_no_server_should_send_is_its_error_and_has_a_line(stub, front, event):
    proxy = front(both(), stub)
    stub.pieces = [chunk(event), chunk({}, "stop")]
    errors = [one["error"] for one in proxy.stream(ask()) if isinstance(one, dict) and "error" in one]
    assert [error["type"] for error in errors] == ["server_error"]
    assert [line["outcome"] for line in proxy.lines()] == ["error"]


def test_half_of_a_surrogate_pair_is_no_text(stub, front):
    proxy = front(both(), stub)
    stub.answer = (
        b'{"choices": [{"index": 0, "message": {"content": "see \\ud800 ok"}, "finish_reason": "stop"}]}'
    )
    assert proxy.post(ask()).json()["choices"][0]["message"]["content"] == "see ? ok"


def test_a_model_in_this_process_that_hangs_meets_the_deadline_and_none_runs_beside_another(front, stub):
    from calibrant.core import Completion, Piece
    from calibrant.serve.proxy.upstream import InProcess

    class Slow:
        identity = Identity(name="slow", parts={"slow": "1"})
        running, most, go = 0, 0, threading.Event()

        def generate(self, chats, sampling=None):
            self.running += 1
            self.most = max(self.most, self.running)
            self.go.wait(20)
            self.running -= 1
            return [Completion(text="well.")]

        def stream(self, chat, sampling=None):
            self.go.wait(20)
            yield Piece(text="well.", completion=Completion(text="well."))

    model = Slow()
    proxy = front(both(), InProcess(model, "slow"), deadline=0.4, quiet=0.1)
    began = time.monotonic()
    errors = [one for one in proxy.stream(ask()) if isinstance(one, dict) and "error" in one]
    assert errors[0]["error"]["code"] == "timeout"
    assert [proxy.post(ask()).status_code for _ in range(3)] == [504] * 3
    assert time.monotonic() - began < 15
    model.go.set()
    for _ in range(200):
        if proxy.post(ask()).status_code == 200:
            break
    assert model.most <= 1


def test_a_client_that_does_not_read_loses_its_place(stub, front, monkeypatch):
    import socket

    from calibrant.serve.proxy import server

    monkeypatch.setattr(server, "_GRACE", 0.2)
    proxy = front([], stub, deadline=0.5)
    stub.pieces = [chunk({"content": "x" * 500_000}) for _ in range(60)] + [chunk({}, "stop")]
    host, port = proxy.url.removeprefix("http://").split(":")
    body = json.dumps(ask(stream=True)).encode()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((host, int(port)))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        line.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        for _ in range(400):
            if lines := proxy.lines():
                break
            time.sleep(0.02)
    assert [one["outcome"] for one in lines] == ["client_left"]
