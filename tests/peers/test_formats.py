"""The tools themselves: garak's counts of a fresh run, avidtools' reading of a report."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import date

import pytest

from calibrant.app.export import report_of
from calibrant.core import Attempt, Chat, Completion
from calibrant.data.rows import Attempts
from calibrant.formats.avid import avid
from calibrant.formats.garak import Counts, garak_counts, read_garak

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("target", "threshold"), [("test.Lipsum", 0.5), ("test.Repeat", 0.5), ("test.Lipsum", 0.2)]
)
def test_a_fresh_report_gives_garaks_own_counts(peer, tmp_path, target, threshold):
    homes = {f"XDG_{name}_HOME": str(tmp_path / name) for name in ("DATA", "CONFIG", "CACHE")}
    command = [
        peer("garak"), "-m", "garak", "--target_type", target,
        "--probes", "test.Test,test.Blank,goodside.WhoIsRiley",
        "--detectors", "always.Random,any.AnyOutput,always.Pass", "--generations", "3", "--seed", "11",
        "--eval_threshold", str(threshold), "--report_prefix", str(tmp_path / "run"), "--narrow_output",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | homes | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    path = tmp_path / "run.report.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    evals = {
        (row["probe"], row["detector"]): Counts(row["passed"], row["fails"], row["nones"])
        for row in rows
        if row["entry_type"] == "eval"
    }
    reading = read_garak(path, threshold=threshold)  # garak's report does not say its threshold
    assert len(evals) == 9 and reading.refused == ()
    assert garak_counts(reading.attempts) == evals


def test_avidtools_reads_our_report(ask, tmp_path):
    attempt = Attempt(
        id="a", goal_id="g", category="privacy", attack="attack.encode/rot13", family="transform",
        chat=Chat.ask("x"), completion=Completion(text="y"), outcome="success",
    )  # fmt: skip
    report = report_of(Attempts(rows=(attempt,), source="x.jsonl"), "a model", made=date(2026, 1, 2))
    (tmp_path / "report.json").write_bytes(avid(report))
    told = ask("avid", "tests/peers/worker_avid.py", tmp_path / "report.json")
    assert json.loads(told.splitlines()[-1]) == ["LLM Evaluation", "Model", 1, "2026-01-02"]
