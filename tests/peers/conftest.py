"""Peers in environments of their own (`make peers`): every test here is opt-in, `pytest -m peers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUIET = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def interpreter(name):
    """The interpreter of a peer's environment, ours for ""; skips where there is none."""
    if not name:
        return sys.executable
    path = ROOT / ".peers" / name / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no environment of peer {name}: run 'make peers' first")
    return path


@pytest.fixture(scope="session")
def peer():
    """``peer("trl")``: that environment's interpreter; skips where there is none."""
    return interpreter


@pytest.fixture(scope="session")
def ask():
    """``ask("trl", script, *arguments)`` runs a script in a peer's environment ("": ours); its stdout."""

    def run(peer, script, *arguments):
        command = [interpreter(peer), ROOT / script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET)
        if done.returncode:
            pytest.fail(
                f"{peer or 'ours'} ended with {done.returncode}:\n{done.stderr[-3000:]}", pytrace=False
            )
        return done.stdout

    return run


@pytest.fixture(scope="session")
def train(ask, peer):
    """``train(job, folder)`` lets TRL train (``benchmarks/_worker_trl.py``); what it tells at its end."""
    peer("trl")

    def run(job, folder):
        path = folder / "job.json"
        path.write_text(json.dumps({"warm": 0, "block": 0, **job}), encoding="utf-8")
        told = ask("trl", "benchmarks/_worker_trl.py", path)
        return json.loads(told.splitlines()[-1])

    return run
