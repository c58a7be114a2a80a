"""Bad input: a clear error in OpenAI's shape, a line in the audit, and the server lives on."""

from __future__ import annotations

import json

import httpx
import pytest
from proxy_stub import ask, both


def request(**changes):
    return {**ask(), **changes}


BAD = {
    "no JSON": (b"{", 400),
    "no object": (b"[]", 400),
    "empty": (b"", 400),
    "no UTF-8": (b'{"messages": "\xff"}', 400),
    "a lone surrogate": (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', 400),
    "NaN": (b'{"temperature": NaN, "messages": [{"role":"user","content":"x"}]}', 400),
    "nested too deep": (b'{"messages": ' + b"[" * 100_000, 400),
    "nested in a field": (json.dumps(request(x=json.loads("[" * 80 + "]" * 80))).encode(), 400),
    "no messages": (request(messages=None), 400),
    "no message": (request(messages=[]), 400),
    "messages that are none": (request(messages=["hello"]), 400),
    "an unknown role": (request(messages=[{"role": "root", "content": "x"}]), 400),
    "a role that is none": (request(messages=[{"role": {}, "content": "x"}]), 400),
    "content that is none": (request(messages=[{"role": "user", "content": 3}]), 400),
    "a picture": (
        request(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        400,
    ),
    "a part that is none": (request(messages=[{"role": "user", "content": ["x"]}]), 400),
    "too many choices": (request(n=100), 400),
    "choices that are none": (request(n="2"), 400),
    "log-probs": (request(logprobs=True), 400),
    "audio": (request(modalities=["text", "audio"]), 400),
    "a stream that is none": (request(stream="yes"), 400),
    "a model that is none": (request(model=3), 400),
    "too large": (request(messages=[{"role": "user", "content": "x" * 300_000}]), 413),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_by_name(stub, front, name):
    proxy = front(both(), stub, most_bytes=200_000)
    body, status = BAD[name]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = proxy.post(None, content=raw, headers={"content-type": "application/json"})
    assert told.status_code == status
    error = told.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in told.text
    assert stub.asked == []
    assert [line["outcome"] for line in proxy.lines()] == ["refused"]
    assert proxy.post(ask()).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(stub, front, kind):
    """A page in a browser can send those to this machine without being asked."""
    told = front(both(), stub).post(None, content=json.dumps(ask()).encode(), headers={"content-type": kind})
    assert told.status_code == 415
    assert stub.asked == []


def test_a_length_that_is_no_number(stub, front):
    import socket

    proxy = front(both(), stub)
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n{}")
        assert b" 400 " in line.recv(200)
    assert proxy.post(ask()).status_code == 200


def test_a_body_that_does_not_end_meets_the_deadline_or_leaves_a_line(stub, front):
    import socket

    proxy = front(both(), stub, deadline=0.3)
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 500\r\n\r\n{"
        )
        assert b" 408 " in line.recv(200)
    assert [line["outcome"] for line in proxy.lines()] == ["refused"]


def test_too_many_at_once(stub, front):
    import threading

    proxy, stub.hang = front(both(), stub, most_at_once=1), 1.0
    first = threading.Thread(target=proxy.post, args=(ask(),))
    first.start()
    while not stub.asked:
        pass
    assert proxy.post(ask()).status_code == 503
    first.join()
    assert proxy.post(ask()).status_code == 200


def test_a_pattern_that_would_backtrack_for_ever_takes_linear_time(stub, front):
    from calibrant.defend.defended import Layer
    from calibrant.defend.pattern_guard import PatternGuard, pattern_guard

    guard = pattern_guard(PatternGuard(patterns=("(a+)+b", "(x|xx)+y")))
    proxy = front([Layer("p", "input", guard)], stub)
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(f"{proxy.url}/v1/chat/completions", json=ask("a" * 50_000 + "x" * 50_000))
    assert answer.status_code == 200
