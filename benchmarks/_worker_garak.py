"""garak's side of ``attack_campaign.py``: its probewise core loop on prompts of ours and a scripted target.

Its own harness, evaluator and report file; the setup of a run and the imports are outside the clock. A job
is ``{"n": attempts, "latency": seconds a reply, "parallel": processes, "folder": where reports go}``.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import garak.attempt
import garak.detectors.any
import garak.evaluators
import garak.harnesses.base
import garak.probes.test
from _pace import Pace, read_job
from garak import _config, command
from garak.generators.base import Generator


class Scripted(Generator):  # type: ignore[misc]
    """Answers every second prompt."""

    generator_family_name = "Scripted"
    supports_multiple_generations = False
    latency = 0.0

    def _call_model(self, prompt: Any, generations_this_call: int = 1) -> list[Any]:
        if self.latency:
            time.sleep(self.latency)
        number = int(prompt.last_message().text.rpartition(" ")[2])
        return [garak.attempt.Message("it is brewed" if number % 2 else "")]


def main() -> None:
    """Attack once a line on stdin, the first time unasked."""
    job = read_job()
    _config.load_base_config()
    _config.transient.cli_args = SimpleNamespace(list_probes=None)
    _config.system.lite = False
    _config.system.narrow_output = True
    _config.reporting.report_dir = job["folder"]
    _config.run.generations = 1
    if job["parallel"] > 1:
        _config.system.parallel_attempts = job["parallel"]
        _config.system.max_workers = job["parallel"]
    # It looks plugins up by name, which ours is not; without it garak writes a line less.
    garak.harnesses.base._emit_plugin_cache_entry = lambda *plugins: None
    pace = Pace(0, 0)
    while True:
        with contextlib.redirect_stdout(io.StringIO()):
            command.start_run()
            harness = garak.harnesses.base.Harness()
            probe, target = garak.probes.test.Test(), Scripted("scripted")
            target.latency = job["latency"]
            probe.prompts = [f"brew potion {number}" for number in range(job["n"])]
            detector = garak.detectors.any.AnyOutput()
            evaluator = garak.evaluators.ThresholdEvaluator()
            start = time.perf_counter(), time.process_time()
            harness.run(target, [probe], [detector], evaluator)
            wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        report = Path(_config.transient.report_filename)
        rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
        done = [row for row in rows if row["entry_type"] == "attempt" and row["status"] == 2]
        hits = sum(row["detector_results"]["any.AnyOutput"] == [1.0] for row in done)
        pace.tell(attempts=len(done), hits=hits, took=wall, cpu=cpu)
        report.unlink()
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
