"""A server that sends the key back in every reply and every error: it is nowhere in what is kept or shown."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from calibrant.cli.main import main

KEY = "sk-made/up+0123456789"
STUDY = """
story = "told by [key holders]"
[given]
model = "{model}"
[intent]
use = "a trial with {key}"
[[job]]
id = "ask"
use = "measure.refusal"
[job.inputs]
model = "given:model"
goals = "testbed:goals/heldout?n=6"
judge = {{ use = "measure.string_judge" }}
[[job]]
id = "lost"
use = "measure.refusal"
inputs = {{ model = "{model}-lost", goals = "testbed:goals/heldout?n=6", judge = "testbed:judge/harmful" }}
"""


class Echo(BaseHTTPRequestHandler):
    """Says what it was sent, in another way each time."""

    said = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(200, {"data": [{"id": "m"}, {"id": self.headers["Authorization"]}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        sent = self.headers["Authorization"]
        Echo.said += 1
        forms = [sent, quote(sent), b64encode(sent.encode()).decode(), json.dumps(sent), sent.upper()]
        text = f"Sure, here it is: {forms[Echo.said % 5]}"
        if Echo.said % 3 == 0:
            self._answer(400, {"error": {"message": text}})
        else:
            message = {"role": "assistant", "content": text, "reasoning_content": text}
            self._answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    def _answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_key_that_a_server_sends_back_is_neither_kept_nor_shown(
    echo: int, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(f"CALIBRANT_API_KEY_127_0_0_1_{echo}", KEY)
    path = write(STUDY.format(key=KEY, model=f"api:http://127.0.0.1:{echo}/v1#m"))
    for verb in (["run", str(path)], ["log"], ["log", "--json"], ["view", str(path)]):
        with pytest.raises(SystemExit):
            main([*verb, "--ledger", str(tmp_path / "ledger")])
    shown = "".join(capsys.readouterr())
    kept = b"".join(p.read_bytes() for p in (tmp_path / "ledger").rglob("*") if p.is_file())
    everything = kept.decode(errors="replace") + shown
    assert "[key]" in kept.decode(errors="replace") and "did you mean" not in everything
    for part in (
        KEY,
        KEY[3:12],
        KEY.upper(),
        "0123456789",
        quote(KEY, safe="")[3:14],
        b64encode(f"Bearer {KEY}".encode()).decode()[12:24],
    ):
        assert part not in everything
