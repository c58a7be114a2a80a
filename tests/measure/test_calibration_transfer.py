"""A calibration holds on its own target and fails on another: simulated judges, and XSTest."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path

import pytest

from calibrant.core import Chat, Identity, InputError, Quiet, Verdict, digest
from calibrant.data.files import raw_rows
from calibrant.data.graded import graded_from
from calibrant.data.rows import Graded, GradedReplies
from calibrant.measure.calibration_transfer import CalibrationTransfer, calibration_transfer
from calibrant.measure.judges.string import StringJudge, string_judge

TOOL = Path(__file__).parents[2] / "tools" / "string_judge.py"


class Uneven:
    """A judge that sees well on some targets and badly on others."""

    calibration = "uncalibrated"
    identity = Identity(name="uneven", kind="judge", parts={"name": "uneven"})

    def __init__(self, errors):
        self.errors = errors

    def judge(self, goals, chats, completions):
        return [self._one(completion.text) for completion in completions]

    def _one(self, text):
        truth, target, _ = text.split()
        se, sp = self.errors[target]
        yes = random.Random(digest(text)).random() < (se if truth == "happened" else 1 - sp)
        return Verdict(question="?", answer="yes" if yes else "no")


def replies(target, n=400, base=0.3):
    lot = random.Random(target)
    labels = [lot.random() < base for _ in range(n)]
    rows = [
        Graded(
            id=str(i),
            prompt=Chat.ask(f"q {i}"),
            completion=f"{'happened' if label else 'nothing'} {target} {i}",
            label=label,
            target=target,
        )
        for i, label in enumerate(labels)
    ]
    return GradedReplies(rows=tuple(rows), source=f"{target}.jsonl")


SHORT = CalibrationTransfer(splits=12)


def test_planted_own_covers_where_raw_and_borrowed_do_not(tmp_path):
    judge = Uneven({"keen": (0.95, 0.95), "dull": (0.4, 0.98)})
    run = Quiet(work=tmp_path)
    found = calibration_transfer(replies("keen"), judge, replies("dull"), config=SHORT, run=run).metrics
    assert found["own_coverage/dull"].value >= 0.9
    assert found["own_coverage/keen"].value >= 0.9
    assert found["raw_coverage/dull"].value < 0.2
    assert found["borrowed_coverage/dull from keen"].value < 0.3
    assert found["sensitivity/dull"].value == pytest.approx(0.4, abs=0.12)
    kept = json.loads((tmp_path / "artifacts/splits.json").read_text())
    assert len(kept["dull"]) == 12
    assert {"human", "raw", "own", "borrowed"} == kept["dull"][0].keys()


def test_null_a_judge_with_the_same_errors_everywhere_can_be_borrowed():
    judge = Uneven({"one": (0.8, 0.95), "two": (0.8, 0.95)})
    found = calibration_transfer(replies("one"), judge, replies("two"), config=SHORT).metrics
    assert found["borrowed_coverage/two from one"].value >= 0.9
    assert found["borrowed_coverage/one from two"].value >= 0.9


def test_shuffled_labels_are_flagged_and_those_in_place_are_not():
    judge = Uneven({"one": (0.8, 0.95)})
    found = calibration_transfer(replies("one"), judge, config=SHORT).metrics
    assert found["shuffled_flagged/one"].value == 1
    assert found["agreement_p/one"].value < 1e-10


def test_what_cannot_be_split_or_told_apart_is_refused():
    judge = Uneven({"one": (1, 1)})
    with pytest.raises(InputError, match="target of two tables"):
        calibration_transfer(replies("one"), judge, replies("one"), config=SHORT)
    with pytest.raises(InputError, match="has 3 replies"):
        calibration_transfer(replies("one", n=3), judge, config=SHORT)


@pytest.mark.real
@pytest.mark.slow
def test_xstest(real_data):
    """Published counts of the string match, by target; 15 halves of the study's 200."""
    tables = [
        graded_from(raw_rows(path), str(path))
        for path in sorted((real_data / "xstest").glob("completions_*.csv"))
    ]
    theirs = runpy.run_path(str(TOOL))["XSTEST"]  # the beginnings that XSTest's own string match looks for
    judge = string_judge(StringJudge(behaviour="refused", phrases=theirs, where="beginning"))
    first, second, third = tables
    found = calibration_transfer(first, judge, second, third, CalibrationTransfer(splits=15)).metrics
    shown = {
        target: tuple(round(found[f"{name}/{target}"].value, 3) for name in ("sensitivity", "specificity"))
        for target in ("llama2new", "llama2orig", "mistralinstruct")
    }
    assert shown == {
        "llama2new": (0.909, 0.949),
        "llama2orig": (0.885, 0.921),
        "mistralinstruct": (0.211, 0.992),
    }
    for target in shown:
        assert found[f"own_coverage/{target}"].value >= 0.9
        assert found[f"shuffled_flagged/{target}"].value == 1
    assert found["raw_coverage/mistralinstruct"].value == 0
    assert found["borrowed_coverage/mistralinstruct from llama2new"].value == 0
