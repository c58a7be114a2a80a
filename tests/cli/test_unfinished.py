"""What does not finish: each reason once, a crash with its id, what needs it skipped, and the rest runs."""

from __future__ import annotations

import json

import pytest

from calibrant.app import catalog
from calibrant.app.catalog import Listed
from calibrant.core import Chat, Guard, Identity, Quiet, Result, Run, Verdict, point, technique
from calibrant.core.behaviours import Side
from calibrant.data.rows import Examples
from calibrant.ledger import Ledger, verify

STORM = """
name = "storm"
title = "wind \\u001b[2J\\u009b and \\u202e rain"
story = "told \\u001b]0;pwned\\u0007 once"
[given]
model = "MODEL"
[[job]]
id = "break"
use = "sky.break"
seeds = [0, 1]
[[job]]
id = "reads"
use = "sky.reads"
seeds = [0, 1]
inputs = { examples = "record:break/examples.jsonl" }
[[job]]
id = "apart"
use = "sky.apart"
"""
ASKED = """
[[job]]
id = "ID"
use = "measure.refusal"
inputs = { model = "given:model", goals = "testbed:goals/heldout?n=NUMBER", judge = "testbed:judge/harmful" }
"""


@technique(version=1)
def broken(run: Run = Quiet()) -> Result:
    """Crashes at seed 0."""
    if not run.seed:
        raise ZeroDivisionError("a bug \x1b[2J at http://user:hunter2@host")
    run.artifact("examples.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return Result(metrics={"wet": point(1.0)})


@technique(version=1)
def reads(examples: Examples, run: Run = Quiet()) -> Result:
    """Needs what the other left."""
    return Result(metrics={"rows": point(float(len(examples)))})


@technique(version=1)
def apart(run: Run = Quiet()) -> Result:
    """Needs nothing."""
    return Result(metrics={"dry": point(1.0)})


@pytest.fixture(autouse=True)
def sky(monkeypatch):
    named = {"sky.break": Listed(f"{__name__}:broken", ""), "sky.reads": Listed(f"{__name__}:reads", ""),
             "sky.apart": Listed(f"{__name__}:apart", "")}  # fmt: skip
    monkeypatch.setattr(catalog, "TECHNIQUES", catalog.TECHNIQUES | named)


class Silent:
    """A guard from outside the catalogue: nothing passes."""

    identity = Identity(name="silent", parts={"guard": "silent"})

    def ask(self, chat: Chat, side: Side) -> Verdict:
        return Verdict(question="may it pass?", answer="no", reason="nothing may")


def silent() -> Guard:
    """Make it."""
    return Silent()


def test_a_crash_is_shown_with_its_id_and_the_rest_runs(calibrant, tmp_path):
    (tmp_path / "storm.toml").write_text(STORM)
    told = calibrant("run", tmp_path / "storm.toml", "--ledger", tmp_path / "ledger")
    assert told.code == 3
    assert "break#0                crashed: a bug" in told.out
    assert "reads#0                skipped: it needs break#0, which did not finish" in told.out
    assert "reads#1                rows 1" in told.out and "apart#0                dry 1" in told.out
    assert "break#0 crashed: Traceback" in told.err and "this is a bug; please report it" in told.err
    assert "2 of 5 runs did not finish" in told.out
    page = (tmp_path / "ledger" / "pages" / "storm.html").read_text()
    everything = told.out + told.err + page
    # What a study's author or an error writes steers neither the terminal nor the page.
    assert not set(everything) & {"\x1b", "\x07", "\x9b", "\u202e"} and "hunter2" not in everything
    assert r"told \x1b]0;pwned\x07 once" in page
    again = calibrant("run", tmp_path / "storm.toml", "--ledger", tmp_path / "ledger", "--json")
    assert json.loads(again.out)["skipped"] == {"reads#0": "break#0"} and "Traceback" in again.err
    assert verify(tmp_path / "ledger").verdict.answer == "yes"


def test_a_missing_model_is_told_once(calibrant, tmp_path):
    jobs = "".join(ASKED.replace("ID", f"job{n}").replace("NUMBER", str(n)) for n in (1, 2, 3))
    (tmp_path / "lost.toml").write_text(f'name = "lost"\n[given]\nmodel = "./missing"\n{jobs}')
    told = calibrant("run", tmp_path / "lost.toml", "--ledger", tmp_path / "ledger")
    assert told.code == 3
    assert (
        told.out.count("'./missing' is no model: no such folder") == 1 == told.out.count("-> a folder with")
    )
    assert "the same 2 times more: job2#0, job3#0" in told.out
    assert [entry.record.status for entry in Ledger(tmp_path / "ledger").entries()] == ["failed"] * 3


def test_a_system_with_a_guard_in_python_is_measured_and_gated(calibrant, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guards.toml").write_text(
        f'[[layer]]\nname = "code"\nside = "input"\nguard = {{ use = "python:{__name__}:silent" }}\n'
    )
    (tmp_path / "policy.toml").write_text(
        'name = "p"\nstage = "internal"\n[[rule]]\nid = "R"\ntechnique = "measure.refusal"\n'
        'metric = "compliance_rate"\nbound = "high"\nop = "<="\nthreshold = 0.9\npreregistered = false\n'
    )
    system = f"defended:guards.toml#{model}"
    job = ASKED.replace("ID", "ask").replace("NUMBER", "5").replace("given:model", system)
    (tmp_path / "own.toml").write_text(f'name = "own"\n{job}')
    assert calibrant("run", "own.toml", "--ledger", "ledger", "--allow-python").code == 0
    refused = calibrant("gate", "policy.toml", system, "--ledger", "ledger")
    assert refused.code == 3 and "runs code from outside" in refused.err
    told = calibrant("gate", "policy.toml", system, "--ledger", "ledger", "--allow-python")
    assert told.code == 0 and "PASS" in told.out, told.out
