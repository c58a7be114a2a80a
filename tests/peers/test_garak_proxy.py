"""garak, in its own environment, attacks a model through the guard proxy over a real socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "serve"))

from proxy_stub import REFUSAL, both, front, stub  # noqa: E402

__all__ = ["front", "stub"]
pytestmark = pytest.mark.peers


def test_garak_runs_to_its_end_and_reads_replies_and_refusals(stub, front, peer, tmp_path):
    proxy = front(both(), stub)
    stub.text = "well, I do not know."
    options = {
        "openai": {"OpenAICompatible": {"uri": f"{proxy.url}/v1/", "model": "stub-1", "api_key": "none"}}
    }
    (tmp_path / "options.json").write_text(json.dumps(options))
    command = [
        str(peer("garak")),
        "-m",
        "garak",
        "--target_type",
        "openai.OpenAICompatible",
        "--target_name",
        "stub-1",
    ]
    command += ["--generator_option_file", str(tmp_path / "options.json"), "--probes", "test.Test"]
    command += ["--generations", "1", "--report_prefix", str(tmp_path / "report"), "--skip_unknown"]
    home = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "OPENAICOMPATIBLE_API_KEY": "none"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=home, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "report.report.jsonl").read_text().splitlines()]
    attempts = [line for line in lines if line["entry_type"] == "attempt" and line["status"] == 2]
    said = {output["text"] for attempt in attempts for output in attempt["outputs"]}
    assert said
    assert said <= {stub.text, REFUSAL}
    assert len(proxy.lines()) == len(attempts)
    assert {line["outcome"] for line in proxy.lines()} <= {"answered", "blocked_input"}
