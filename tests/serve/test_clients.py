"""Real clients over a real socket: the openai SDK, curl, and the command line that starts the proxy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import openai
import pytest
from proxy_stub import REFUSAL, ask, both, chunk

from calibrant.core import Completion
from calibrant.models.scripted import ScriptedModel
from calibrant.serve.proxy.audit import read
from calibrant.serve.proxy.upstream import InProcess

UP = ("--upstream", "http://localhost:1/v1")
STACK = """
refusal = "i can not help with that."
[[layer]]
name = "asked"
side = "input"
guard = { use = "defend.pattern_guard", config = { words = ["zorble"] } }
[[layer]]
name = "replied"
side = "output"
guard = { use = "defend.pattern_guard", config = { words = ["zorble"] } }
"""


def sdk(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def hello(client, text="hello", **more):
    return client.chat.completions.create(
        model="stub-1", messages=[{"role": "user", "content": text}], **more
    )


def test_the_openai_sdk(stub, front):
    proxy = front(both(), stub)
    with sdk(proxy.url) as client:
        assert [model.id for model in client.models.list()] == ["stub-1", "stub-2"]
        answer = hello(client)
        assert (answer.choices[0].message.content, answer.usage.completion_tokens) == (stub.text, 5)
        blocked = hello(client, "a zorble")
        assert (blocked.choices[0].message.content, blocked.choices[0].finish_reason) == (
            REFUSAL,
            "content_filter",
        )
        with pytest.raises(openai.BadRequestError, match="log"):
            hello(client, logprobs=True)
        with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
            client.responses.create(model="m", input="x")
        stub.status = 429
        with pytest.raises(openai.RateLimitError):
            hello(client)


def test_the_openai_sdk_streams_with_tools_and_usage(stub, front):
    proxy = front(both(), stub)
    stub.pieces = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": word}) for word in ("let ", "me ", "see. ")),
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "look", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x": 1}'}}]}),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    with (
        sdk(proxy.url) as client,
        client.chat.completions.stream(
            model="m",
            messages=[{"role": "user", "content": "hello"}],
            tools=tools,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == "let me see. "
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"x": 1}'
    assert whole.usage.completion_tokens == 9


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(stub, front):
    proxy = front(both(), stub)
    command = ["curl", "-sS", "--noproxy", "*", f"{proxy.url}/v1/chat/completions"]
    command += ["-H", "content-type: application/json", "-d"]
    told = subprocess.run([*command, json.dumps(ask())], capture_output=True, check=True, timeout=60).stdout
    assert json.loads(told)["choices"][0]["message"]["content"] == stub.text
    told = subprocess.run(
        [*command, json.dumps(ask(stream=True)), "-N"], capture_output=True, check=True, timeout=60
    )
    assert told.stdout.endswith(b"data: [DONE]\n\n")


def test_a_model_in_this_process(front):
    model = ScriptedModel(lambda chat: Completion(text=f"you said {chat.last_user}", ids=(1, 2)))
    proxy = front(both(), InProcess(model, "scripted"))
    with sdk(proxy.url) as client:
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert hello(client).choices[0].message.content == "you said hello"
        pieces = [
            piece.choices[0].delta.content or "" for piece in hello(client, stream=True) if piece.choices
        ]
        assert "".join(pieces) == "you said hello"
        assert len(hello(client, n=3).choices) == 3
        with pytest.raises(openai.BadRequestError, match="tools"):
            hello(client, tools=[{"type": "function", "function": {"name": "f"}}])
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            hello(client, max_tokens=-1)


@pytest.fixture
def command(tmp_path, stub):
    """Starts `calibrant serve guard`; its address, process and what it said."""
    started = []

    def start(*options):
        (tmp_path / "stack.toml").write_text(STACK)
        told = [sys.executable, "-m", "calibrant", "serve", "guard", "stack.toml", "--port", "0", *options]
        environment = {**os.environ, "CALIBRANT_LEDGER": str(tmp_path / "ledger"), "TOKEN": "sesame"}
        said = tmp_path / f"said{len(started)}"
        with said.open("wb") as out:
            process = subprocess.Popen(
                told, cwd=tmp_path, env=environment, stderr=out, start_new_session=True
            )
        started.append(process)
        while "audit: " not in said.read_text() and process.poll() is None:
            time.sleep(0.05)
        line = next(line for line in said.read_text().splitlines() if " at http" in line)
        url = line.split(" at ")[1].removesuffix("/v1")
        while True:
            try:
                httpx.get(f"{url}/healthz", trust_env=False)
                return url, process
            except httpx.HTTPError:
                time.sleep(0.05)

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_command_serves_and_its_audit_can_be_asked_again(command, stub, tmp_path):
    url, process = command("--upstream", stub.url, "--keep", "full")
    with sdk(url) as client:
        assert hello(client).choices[0].message.content == stub.text
        assert hello(client, "a zorble").choices[0].finish_reason == "content_filter"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)
    audit = next((tmp_path / "ledger" / "audit").glob("*.jsonl"))
    assert [line.get("outcome") for line in read(audit)] == [None, "answered", "blocked_input", None]
    again = [sys.executable, "-m", "calibrant", "serve", "replay", str(audit), "stack.toml"]
    told = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout.strip()) == (0, "2 requests asked again, 0 differences")
    (tmp_path / "stack.toml").write_text(STACK.replace('"zorble"', '"hello"'))
    told = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 1
    assert "says no" in told.stdout
    lines = audit.read_text().splitlines()
    audit.write_text("\n".join([lines[0], lines[1].replace("hello", "hullo"), lines[2]]) + "\n")
    told = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 3
    assert "line 3" in told.stderr


def test_a_stack_file_that_hides(command, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.STACK", 'hide = { kinds = ["email"], names = ["Ann Quibble"] }' + STACK)
    url, _ = command("--upstream", stub.url, "--refusal-after", "0.2")
    stub.text = "so <NAME_1> is <EMAIL_1>."
    with sdk(url) as client:
        text = "i am Ann Quibble, ann@example.org, +44 20 7946 0018"
        assert hello(client, text).choices[0].message.content == "so Ann Quibble is ann@example.org."
        assert hello(client, "a zorble").choices[0].finish_reason == "content_filter"
    assert stub.asked[0]["messages"][0]["content"] == "i am <NAME_1>, <EMAIL_1>, +44 20 7946 0018"
    audit = next((tmp_path / "ledger" / "audit").glob("*.jsonl"))
    assert "Quibble" not in audit.read_text()


def test_a_killed_proxy_loses_no_line_that_it_answered(command, stub, tmp_path):
    url, process = command("--upstream", stub.url)
    with sdk(url) as client:
        for _ in range(5):
            hello(client)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    audit = next((tmp_path / "ledger" / "audit").glob("*.jsonl"))
    lines = list(read(audit))
    assert [line["outcome"] for line in lines[1:]] == ["answered"] * 5
    assert stub.text not in audit.read_text()
    assert audit.with_suffix(".salt").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "one of --upstream and --model"),
        (("--upstream", "ftp://x"), "http"),
        ((*UP, "--host", "0.0.0.0"), "--token-env"),
        ((*UP, "--token-env", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE"),
        ((*UP, "--host", "192.0.2.7", "--token-env", "TOKEN"), "cannot listen"),
        ((*UP, "--refusal-after", "120"), "refusals wait 120 s"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_served(options, told, tmp_path):
    (tmp_path / "stack.toml").write_text(STACK)
    ended = subprocess.run(
        [sys.executable, "-m", "calibrant", "serve", "guard", "stack.toml", *options],
        cwd=tmp_path,
        env={**os.environ, "TOKEN": "sesame"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 3
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
