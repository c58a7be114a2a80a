"""Reading verbs start quickly and never import what computes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import json, sys
from calibrant.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    sys.stderr.write(json.dumps({"code": left.code, "modules": sorted(sys.modules)}))
"""
TORCH = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "datasets", "pyarrow"}
HEAVY = TORCH | {"numpy", "scipy", "statsmodels", "matplotlib", "httpx", "jinja2", "re2"}
FEW = 600
"""Modules of a light start: what is imported is counted, since seconds are those of a machine."""


def probe(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stderr)


@pytest.mark.parametrize(
    "verb", [("ls",), ("log",), ("status",), ("verify",), ("check", "--help")], ids=lambda v: v[0]
)
def test_reading_is_light(done, verb):
    ledger = ("--ledger", done / "ledger") if verb[0] in ("log", "status", "verify") else ()
    found = probe(*verb, *ledger)
    assert found["code"] == 0 and HEAVY.isdisjoint(found["modules"])
    assert len(found["modules"]) < FEW


def test_a_gate_needs_no_torch(done):
    subject = f"defended:{done / 'guards.toml'}#record:sft/model"
    found = probe("gate", done / "policy.toml", subject, "--ledger", done / "ledger", "--json")
    assert found["code"] == 0 and TORCH.isdisjoint(found["modules"]) and "matplotlib" not in found["modules"]
    assert len(found["modules"]) < 2 * FEW


def test_a_gate_on_a_system_with_an_asking_guard_needs_no_torch(done, tmp_path, model):
    guard = f'{{ use = "defend.ask_guard", inputs = {{ model = "{model}" }} }}'
    (tmp_path / "asked.toml").write_text(f'[[layer]]\nname = "a"\nside = "input"\nguard = {guard}\n')
    subject = f"defended:{tmp_path / 'asked.toml'}#{model}"
    found = probe("gate", done / "policy.toml", subject, "--ledger", tmp_path / "ledger")
    assert found["code"] == 2 and TORCH.isdisjoint(found["modules"])
