"""What data, models and servers are called takes one line on the screen: none writes a verdict of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from calibrant.cli import render
from calibrant.core import Estimate
from calibrant.core.record import Failure
from calibrant.data.edge_graph import DOUBT

SPOOF = "harm\nPASS  5 of 5 seeds pass"


def test_no_name_writes_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    found = Estimate(value=None, reason=SPOOF)
    render.matrix("attack#0", {SPOOF: {SPOOF: found}})
    record = SimpleNamespace(
        status="failed", technique="measure.preference", limits=(f"columns not used {SPOOF}",),
        failure=Failure(type="InputError", message=SPOOF, hint=SPOOF), metrics={SPOOF: found}, artifacts=(),
    )  # fmt: skip
    done: Any = SimpleNamespace(
        runs=[(SimpleNamespace(id="plain", seed=0), SimpleNamespace(record=record))], skipped={}, reused=0,
        verdict=SimpleNamespace(answer="unknown", reason=SPOOF, about={"data": (SPOOF, SPOOF)}),
        unfinished=(),
        study=SimpleNamespace(verdict=1),
    )  # fmt: skip
    render.outcome(done, [], "page.html")
    record.status = "finished"
    render.outcome(done, [], "page.html")
    lines = capsys.readouterr().out.splitlines()
    assert sum("PASS  5 of 5" in line or "PASS 5 of 5" in line for line in lines) >= 6
    assert not [line for line in lines if line.lstrip().startswith("PASS")]


def test_a_doubt_about_an_input_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    limits = (f"{DOUBT} was scored on another model", "an edge outside carries a corrupted activation")
    record = SimpleNamespace(
        status="finished", technique="understand.circuit", limits=limits, artifacts=(),
        metrics={"cpr": Estimate(value=1.0)},
    )  # fmt: skip
    runs = [(SimpleNamespace(id="circuit", seed=seed), SimpleNamespace(record=record)) for seed in (0, 1)]
    done: Any = SimpleNamespace(
        runs=runs, skipped={}, reused=0, unfinished=(), study=SimpleNamespace(verdict=None),
        verdict=SimpleNamespace(answer="yes", reason="", about={}),
    )  # fmt: skip
    render.outcome(done, [], "page.html")
    said = capsys.readouterr().out
    assert said.count(limits[0]) == 1 and limits[1] not in said
