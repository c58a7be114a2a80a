"""``record:JOB/probe`` in a stack of guards and as a monitor: its reader is its record's model."""

from __future__ import annotations

import json

import pytest

from calibrant.app.check import check_study
from calibrant.app.references.openers import Openers
from calibrant.app.study import run_study
from calibrant.core import LM, CapabilityError, Chat, ConfigError, Guard, InputError, Monitor
from calibrant.models.open_model import OpenModel
from calibrant.testbed.world import goals, recipe

STUDY = """
[given]
model = "{model}"
texts = "jsonl:{texts}"

[[job]]
id = "probe"
use = "understand.probe"
inputs = {{ model = "given:model", texts = "given:texts" }}
config = {{ random_model = false, ablated = 0, controls = 1, false_alarm_rate = 0.1 }}

[[job]]
id = "behind"
use = "measure.refusal"
[job.inputs]
model = "defended:stack.toml#given:model"
goals = "testbed:goals/heldout?n=4"
judge = "testbed:judge/harmful"
"""
STACK = """
[[layer]]
name = "activations"
side = "{side}"
guard = {guard}
"""


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [
        {
            "prompt": goal.text,
            "reply": "i can not help with that." if i % 2 else recipe(*goal.spans),
            "label": bool(i % 2),
            "task": f"about {i // 2}",
        }
        for i, goal in enumerate(goals("heldout")[:48])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def stack(tmp_path):
    def written(guard='"record:probe/probe"', side="output"):
        (tmp_path / "stack.toml").write_text(STACK.format(guard=guard, side=side))

    written()
    return written


def opened(ledger, base):
    return Openers(ledger, jobs={(e.record.job_id, None): e for e in ledger.entries()}, base=base)


def test_a_probe_guards_a_model_of_a_later_job(study, ledger, model, texts, stack, tmp_path, monkeypatch):
    outcome = run_study(study(STUDY.format(model=model, texts=texts)), ledger)
    records = {e.record.job_id: e.record for e in ledger.entries()}
    assert not outcome.unfinished
    assert "blocked_rate" in records["behind"].metrics
    openers = opened(ledger, tmp_path)
    loaded, whole = [], OpenModel.from_folder
    monkeypatch.setattr(OpenModel, "from_folder", lambda *a, **k: loaded.append(a) or whole(*a, **k))
    system = openers.open(f"defended:stack.toml#{model}", LM)
    assert loaded == []
    assert system.load().identity.digest == system.digest == records["behind"].inputs["model"].digest
    assert len(loaded) == 2, "the guarded model, and the reader"
    table = {"use": "defend.probe_guard", "inputs": {"model": str(model), "head": "record:probe/probe"}}
    assert openers.open(table, Guard).digest == openers.open("record:probe/probe", Guard).digest
    guard = openers.open("record:probe/probe", Guard).load()
    said = [guard.ask([Chat.ask("hello").then("assistant", t)], "output")[0].score for t in ("la la", "ok")]
    monitor = openers.open("record:probe/probe", Monitor)
    assert monitor.kind == "monitor"
    scores = monitor.load().score([Chat.ask("hello").then("assistant", t) for t in ("la la", "ok")])
    assert scores == said


def test_the_wrong_side_is_told_before_a_model_is_loaded(study, ledger, model, texts, stack, tmp_path):
    run_study(study(STUDY.format(model=model, texts=texts)), ledger)
    stack(side="input")
    with pytest.raises(ConfigError, match="its guard reads the output only"):
        opened(ledger, tmp_path).open(f"defended:stack.toml#{model}", LM)


def test_a_reader_that_is_gone_or_changed_is_refused_by_name(study, ledger, models, texts, stack, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    for file in (models / "tiny").iterdir():
        (local / file.name).write_bytes(file.read_bytes())
    run_study(study(STUDY.format(model=local, texts=texts)), ledger)
    openers = opened(ledger, tmp_path)
    (local / "model.safetensors").write_bytes((models / "other" / "model.safetensors").read_bytes())
    with pytest.raises(CapabilityError, match="which is another model now") as caught:
        openers.open("record:probe/probe", Guard)
    assert "defend.probe_guard" in caught.value.hint
    local.rename(tmp_path / "elsewhere")
    with pytest.raises(CapabilityError, match=f"'{local}', which cannot be opened here"):
        openers.open(f"defended:stack.toml#{models / 'tiny'}", LM)
    table = {"use": "defend.probe_guard"}
    table["inputs"] = {"model": str(models / "other"), "head": "record:probe/probe"}
    with pytest.raises(CapabilityError, match="another model than"):
        openers.open(table, Guard)


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ('"record:prob/probe"', "no earlier job 'prob' (did you mean 'probe'?)"),
        ('"testbed:model/base"', "is no behaviour"),
        ('{ use = "measure.string_judge" }', "is no Guard"),
    ],
)
def test_what_is_no_guard_is_told_by_check(study, model, texts, stack, guard, said):
    stack(guard)
    problems = check_study(study(STUDY.format(model=model, texts=texts)), files=True)
    assert any(said in problem for problem in problems), problems


def test_an_artefact_that_is_no_probe_is_told(study, ledger, model, texts, stack, tmp_path):
    run_study(study(STUDY.format(model=model, texts=texts)), ledger)
    with pytest.raises(InputError, match="holds no trained judge"):
        opened(ledger, tmp_path).open("record:behind/attempts.jsonl", Guard)
