"""Judges in studies: a card and a trained head of an earlier job, and nothing loaded before it is needed."""

from __future__ import annotations

import json

import pytest

from calibrant.app.references.openers import Openers
from calibrant.app.study import run_study
from calibrant.core import ConfigError, InputError, Judge
from calibrant.data.cards import JudgeCard
from calibrant.data.judge_head import JudgeHead
from calibrant.models.open_model import OpenModel
from calibrant.testbed.world import goals, recipe

STUDY = """
[given]
model = "{model}"
labels = "jsonl:{labels}"
goals = "testbed:goals/heldout?n=8"

[[job]]
id = "card"
use = "measure.judge_card"
inputs = {{ labels = "given:labels", judge = {{ use = "measure.string_judge" }} }}

[[job]]
id = "fit"
use = "measure.fit_judge"
inputs = {{ model = "given:model", labels = "given:labels" }}

[[job]]
id = "calibrated"
use = "measure.refusal"
[job.inputs]
model = "given:model"
goals = "given:goals"
[job.inputs.judge]
use = "measure.calibrated_judge"
inputs = {{ judge = {{ use = "measure.string_judge" }}, card = "record:card/card.json" }}

[[job]]
id = "borrowed"
use = "measure.refusal"
[job.inputs]
model = "given:model"
goals = "given:goals"
[job.inputs.judge]
use = "measure.calibrated_judge"
[job.inputs.judge.inputs]
card = "record:card/card.json"
[job.inputs.judge.inputs.judge]
use = "measure.classifier_judge"
inputs = {{ model = "given:model", head = "record:fit/judge" }}
"""


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [
        {
            "prompt": goal.text,
            "completion": recipe(*goal.spans) if i % 2 else "i can not help with that.",
            "label": bool(i % 2),
            "target": "tiny",
            "family": "plain",
        }
        for i, goal in enumerate(goals("heldout")[:60])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_card_and_a_head_go_from_job_to_job(study, ledger, model, labels):
    outcome = run_study(study(STUDY.format(model=model, labels=labels)), ledger)
    records = {e.record.job_id: e.record for e in ledger.entries()}
    assert not outcome.unfinished
    assert records["calibrated"].judge["judge"].startswith("calibrated: Se 1.000")
    assert "60 replies of 'tiny'" in records["calibrated"].judge["judge"]
    assert "is of another judge" in records["borrowed"].judge["judge"]
    assert records["borrowed"].judge["judge"].startswith("uncalibrated")


def test_naming_a_nested_judge_loads_no_model(study, ledger, model, labels, monkeypatch):
    run_study(study(STUDY.format(model=model, labels=labels)), ledger)
    ids = {(e.record.job_id, None): e for e in ledger.entries()}
    openers = Openers(ledger, jobs=ids)
    table = {
        "use": "measure.calibrated_judge",
        "inputs": {
            "card": "record:card/card.json",
            "judge": {
                "use": "measure.classifier_judge",
                "inputs": {"model": str(model), "head": "record:fit/judge"},
            },
        },
    }
    loaded, whole = [], OpenModel.from_folder
    monkeypatch.setattr(OpenModel, "from_folder", lambda *a, **k: loaded.append(a) or whole(*a, **k))
    opened = openers.open(table, Judge)
    assert loaded == []
    judge = opened.load()
    assert len(loaded) == 1
    assert judge.identity.digest == opened.digest
    assert judge.calibration == opened.parts["calibration"]


@pytest.mark.parametrize("wanted", [JudgeCard, JudgeHead])
def test_what_is_no_card_or_head(ledger, tmp_path, wanted):
    openers = Openers(ledger, base=tmp_path)
    with pytest.raises(InputError, match="no file"):
        openers.open("nowhere.json", wanted)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(InputError, match="judge"):
        openers.open("card.json", wanted).load()
    with pytest.raises(ConfigError):
        openers.open({"use": "x"}, wanted)


PROBED = """
[given]
model = "{model}"
texts = "jsonl:{texts}"

[[job]]
id = "probe"
use = "understand.probe"
inputs = {{ model = "given:model", texts = "given:texts" }}
config = {{ random_model = false, ablated = 0, controls = 1, false_alarm_rate = 0.1 }}

[[job]]
id = "alarm"
use = "measure.refusal"
[job.inputs]
model = "given:model"
goals = "testbed:goals/heldout?n=6"
[job.inputs.judge]
use = "measure.classifier_judge"
inputs = {{ model = "given:model", head = "record:probe/probe" }}
"""


def test_a_probe_goes_to_a_later_job_as_its_judge(study, ledger, model, tmp_path):
    texts = tmp_path / "texts.jsonl"
    rows = [
        {
            "prompt": goal.text,
            "reply": "i can not help with that." if i % 2 else recipe(*goal.spans),
            "label": bool(i % 2),
            "task": f"about {i // 2}",
        }
        for i, goal in enumerate(goals("heldout")[:48])
    ]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = run_study(study(PROBED.format(model=model, texts=texts)), ledger)
    records = {e.record.job_id: e.record for e in ledger.entries()}
    assert not outcome.unfinished
    assert records["probe"].metrics["auroc"].low > 0.7
    assert records["alarm"].judge["judge"].startswith("uncalibrated")
