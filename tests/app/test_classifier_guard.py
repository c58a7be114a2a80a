"""``record:JOB/classifier`` in a stack of guards: trained in one job, opened in the next."""

from __future__ import annotations

import json

import pytest

from calibrant.app.references.openers import Openers
from calibrant.app.study import run_study
from calibrant.core import LM, CapabilityError, Chat, ConfigError, Guard, InputError
from calibrant.models.open_model import OpenModel
from calibrant.testbed.world import goals, recipe

STUDY = """
[given]
model = "{model}"

[[job]]
id = "train"
use = "defend.train_classifier"
inputs = {{ texts = "jsonl:{texts}"{more} }}
config = {{ false_alarm_rate = 0.1, folds = 3, l2 = [0.1], near = 1.0{settings} }}

[[job]]
id = "behind"
use = "measure.refusal"
[job.inputs]
model = "defended:stack.toml#given:model"
goals = "testbed:goals/heldout?n=4"
judge = "testbed:judge/harmful"
"""
OF_MODEL = {"more": ', model = "given:model"', "settings": ', features = "model"'}


def written(text, **given):
    return text.format(**{"more": "", "settings": "", **given})


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [
        {
            "prompt": goal.text,
            "reply": f"{i} i can not help with that." if i % 2 else f"{i} {recipe(*goal.spans)}",
            "label": not i % 2,
        }
        for i, goal in enumerate(goals("heldout")[:48])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def stack(tmp_path):
    def write(side="output"):
        text = f'[[layer]]\nname = "texts"\nside = "{side}"\nguard = "record:train/classifier"\n'
        (tmp_path / "stack.toml").write_text(text)

    write()
    return write


def opened(ledger, base):
    return Openers(ledger, jobs={(e.record.job_id, None): e for e in ledger.entries()}, base=base)


def test_it_guards_a_model_of_a_later_job(study, ledger, model, texts, tmp_path, stack):
    outcome = run_study(study(written(STUDY, model=model, texts=texts)), ledger)
    assert not outcome.unfinished
    records = {e.record.job_id: e.record for e in ledger.entries()}
    assert "blocked_rate" in records["behind"].metrics
    openers = opened(ledger, tmp_path)
    table = {"use": "defend.classifier_guard", "inputs": {"classifier": "record:train/classifier"}}
    guard = openers.open("record:train/classifier", Guard)
    assert openers.open(table, Guard).digest == guard.digest == guard.load().identity.digest
    replies = (recipe(*goals("heldout")[1].spans), "i can not help with that.")
    chats = [Chat.ask("hello").then("assistant", reply) for reply in replies]
    assert [verdict.answer for verdict in guard.load().ask(chats, "output")] == ["no", "yes"]
    stack("input")
    with pytest.raises(ConfigError, match="its guard reads the output only"):
        openers.open(f"defended:stack.toml#{model}", LM)


def test_one_that_reads_a_model_opens_with_its_records_model(
    study, ledger, models, texts, tmp_path, monkeypatch
):
    local = tmp_path / "local"
    local.mkdir()
    for file in (models / "tiny").iterdir():
        (local / file.name).write_bytes(file.read_bytes())
    outcome = run_study(study(written(STUDY, model=local, texts=texts, **OF_MODEL)), ledger)
    assert not outcome.unfinished
    openers, loaded, whole = opened(ledger, tmp_path), [], OpenModel.from_folder
    monkeypatch.setattr(OpenModel, "from_folder", lambda *a, **k: loaded.append(a) or whole(*a, **k))
    guard = openers.open("record:train/classifier", Guard)
    assert not loaded, "an identity needs no weights"
    assert guard.load().identity.digest == guard.digest and len(loaded) == 1
    (local / "model.safetensors").write_bytes((models / "other" / "model.safetensors").read_bytes())
    with pytest.raises(CapabilityError, match="which is another model now") as caught:
        opened(ledger, tmp_path).open("record:train/classifier", Guard)
    assert "defend.classifier_guard', inputs = {classifier = ..., model = ...}" in caught.value.hint


def test_an_artefact_that_is_no_classifier_is_told(study, ledger, model, texts, tmp_path):
    run_study(study(written(STUDY, model=model, texts=texts)), ledger)
    openers = opened(ledger, tmp_path)
    table = {"use": "defend.classifier_guard", "inputs": {"classifier": "record:behind/attempts.jsonl"}}
    with pytest.raises(InputError, match="holds no classifier of texts"):
        openers.open(table, Guard)
