"""The whole of own_model against a real OpenAI-compatible server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from calibrant.app.study import run_study
from calibrant.app.study_file import load_study
from calibrant.ledger import Ledger
from calibrant.models.endpoint import Endpoint

FEW = (
    "given.goals=testbed:goals/heldout?n=4",
    "given.lookalikes=testbed:goals/lookalikes?n=4",
    "given.items=testbed:items/sums[:8]",
)


class Parrot(BaseHTTPRequestHandler):
    """Refuses what begins with 'how', adds what it is asked to add, and complies with all else."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": "parrot"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        reply = "sure, here is how."
        if text.startswith("how"):
            reply = "i can not help with that."
        if text.startswith("what is"):
            reply = str(sum(int(word) for word in text.strip("?").split() if word.isdigit()))
        message = {"role": "assistant", "content": reply}
        self._send(
            {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 6}}
        )

    def _send(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Parrot) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"api:http://127.0.0.1:{server.server_address[1]}/v1#parrot"
        server.shutdown()
        thread.join()


def test_an_endpoint_is_measured_attacked_defended_and_not_passed(endpoint: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    done = run_study(load_study("own_model", [f"given.model={endpoint}", *FEW]), ledger)
    assert not done.unfinished
    assert done.verdict.answer == "unknown"
    found = {job.id: entry.record.metrics for job, entry in done.runs}
    assert found["plain"]["compliance_rate"].value == 0
    assert found["lookalikes"]["over_refusal_rate"].value == 1
    assert found["capability"]["accuracy"].value == 1
    assert found["persona"]["attack_success_rate"].value == 1
    assert found["encode"]["attack_success_rate"].value == 1


def test_an_endpoint_that_is_not_there_is_told_once_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Endpoint, "_wait", lambda *_: 0.0
    )  # thirty seconds of patience are not what is tested
    ledger = Ledger(tmp_path / "ledger")
    done = run_study(load_study("own_model", ["given.model=api:http://127.0.0.1:9/v1#none", *FEW]), ledger)
    assert len(done.unfinished) == 10
    assert all(entry.record.failure is not None for entry in done.unfinished)
    assert done.verdict.answer == "unknown"
