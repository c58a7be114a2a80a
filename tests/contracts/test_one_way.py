"""One job, followed from the command line to the loss: no call stack enters a file a third time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

from calibrant.app.study import run_study
from calibrant.app.study_file import load_study
from calibrant.ledger import Ledger

HERE = "/src/calibrant/"
POLICY = """
name = "small"
stage = "internal"
[[rule]]
id = "PLAIN"
technique = "measure.refusal"
metric = "compliance_rate"
data = "testbed:goals/heldout?n=5"
bound = "high"
op = "<="
threshold = 0.9
"""
STUDY = """
name = "one_way"
[given]
model = "testbed:null/tiny?seed=1"
[intent]
use = "a trial"
policy = "policy.toml"
[verdict]
gate = "gate"
[[job]]
id = "trained"
use = "train.dpo"
inputs = { model = "given:model", pairs = "testbed:pairs/safety[:16]" }
config = { batch_size = 8 }
[[job]]
id = "asked"
use = "measure.refusal"
[job.inputs]
model = "record:trained/model"
goals = "testbed:goals/heldout?n=5"
judge = "testbed:judge/harmful"
[[job]]
id = "gate"
use = "govern.gate"
inputs = { subject = "record:trained/model", policy = "policy.toml" }
"""


def entries(files: Iterable[str]) -> dict[str, int]:
    """How often each file is entered, from the top of a stack to its bottom; calls inside a file are one."""
    counts: dict[str, int] = {}
    for file, _ in groupby(files):
        counts[file] = counts.get(file, 0) + 1
    return counts


def followed(work: Callable[[], Any]) -> dict[str, int]:
    """File of the package -> the most often that one call stack of ``work`` enters it."""
    most: dict[str, int] = {}

    def ours(frame: FrameType) -> str | None:
        _, found, file = frame.f_code.co_filename.partition(HERE)
        return file if found and frame.f_code.co_name != "<module>" else None

    def look(frame: FrameType, event: str, _: object) -> None:
        mine = ours(frame) if event == "call" else None
        if mine is None:
            return
        stack: list[str] = []
        at: FrameType | None = frame
        while at is not None:
            file = ours(at)
            if file is not None:
                stack.append(file)
            at = at.f_back
        most[mine] = max(most.get(mine, 0), entries(stack)[mine])

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return most


def test_a_file_that_is_returned_to_is_counted_again() -> None:
    there_and_back = ["a.py", "b.py", "b.py", "a.py", "c.py", "b.py", "a.py"]
    assert entries(there_and_back) == {"a.py": 3, "b.py": 2, "c.py": 1}


def test_a_job_visits_each_file_once_or_twice(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "study.toml").write_text(STUDY)

    def work() -> None:
        outcome = run_study(load_study(str(tmp_path / "study.toml")), Ledger(tmp_path / "ledger"))
        assert outcome.unfinished == ()

    most = followed(work)

    path = {"app/study.py", "app/execute.py", "app/references/openers.py", "train/dpo.py", "models/fit.py"}
    assert path | {"maths/pair_losses.py", "govern/gate.py"} <= most.keys()
    assert {file: n for file, n in most.items() if n > 2} == {}
    assert {file: n for file, n in most.items() if n > 1 and file.startswith(("app/", "ledger/"))} == {}
