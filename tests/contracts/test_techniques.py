"""Contracts of techniques that run: the same answer twice and by every door, and nothing disturbed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from calibrant.app.catalog import TECHNIQUES, find_technique
from calibrant.app.execute import execute
from calibrant.app.references.openers import Openers
from calibrant.core import (
    LM,
    Budget,
    CapabilityError,
    ConfigError,
    Estimate,
    Guard,
    Job,
    Judge,
    Monitor,
    NumericalError,
    OpenLM,
    Reward,
    ScoringLM,
    Watcher,
)
from calibrant.measure.goodhart_watch import GoodhartWatch
from calibrant.models.open_model import OpenModel
from calibrant.testbed import control
from calibrant.testbed.attacker import Ruled
from calibrant.testbed.decompositions import open_solver
from calibrant.testbed.gold import GoldJudge, GoldReward

pytestmark = pytest.mark.parametrize("name", TECHNIQUES)
MODELS = (LM, ScoringLM, OpenLM)
VOICES = ("generate", "logprobs", "encode", "forward", "trace", "copy", "prompt_ids", "reply_ids")
"""A technique that uses a model uses one of these."""


def job_of(name, shop, **changes):
    signature = find_technique(name)
    config = shop.config(name, signature)
    inputs = {key: built.reference for key, built in shop.inputs(name, signature).items()}
    given = {"id": "job", "use": name, "inputs": inputs, "seed": 3}
    return Job(**{**given, "config": {} if config is None else config.model_dump(mode="json"), **changes})


def openers_in(folder, shop):
    return Openers(shop.ledger(folder), base=folder)


def test_metrics_are_estimates_that_hold_together(name, trials):
    """A number has units behind it or is a bare point; a missing one says why; bounds hold the value."""
    metrics = trials.first(name).result.metrics
    assert metrics
    for key, found in metrics.items():
        assert isinstance(found, Estimate), key
        assert found.n > 0 or found.method == "point", key
        assert 0 <= found.missing <= found.n, key
        assert (found.low is None) == (found.high is None), key
        if found.value is None:
            assert found.reason, key
            continue
        assert math.isfinite(found.value), key
        if found.low is not None:
            assert found.low - 1e-9 <= found.value <= found.high + 1e-9, key
        assert Estimate.model_validate_json(found.model_dump_json()) == found


def test_result_says_what_it_does_not_show(name, trials):
    caveats = trials.first(name).result.caveats
    assert caveats
    assert all(len(caveat.split()) >= 4 for caveat in caveats)


def test_result_can_be_written_without_its_live_objects(name, trials):
    json.loads(trials.first(name).result.model_dump_json())


@pytest.mark.slow  # the door's run, below, is a second one of the same seed
def test_same_seed_same_result(name, trials, known):
    if name in known and known[name].slow:
        return
    first, second = trials.first(name), trials.again(name)
    assert second.result.metrics == first.result.metrics
    assert second.result.caveats == first.result.caveats
    assert second.run.artifacts() == first.run.artifacts()
    assert second.run.lines == first.run.lines


def test_inputs_are_left_as_they_were(name, trials):
    trial = trials.first(name)
    assert trial.after == trial.before


def test_no_hook_is_left(name, trials):
    assert trials.first(name).hooks == 0


def test_the_world_is_left_as_it_was(name, trials):
    trial = trials.first(name)
    moved = [key for key, value in trial.world_before.items() if trial.world_after[key] != value]
    assert not moved


def test_nothing_is_printed(name, trials):
    assert trials.first(name).printed == ""


def test_the_door_gives_what_python_gives(name, trials, shop, tmp_path):
    """``execute`` with references: same metrics, caveats, artefacts and log; then found and not run again."""
    trial, openers = trials.first(name), openers_in(tmp_path, shop)
    record = execute(job_of(name, shop), openers)
    assert record.status == "finished"
    assert record.failure is None
    assert record.metrics == trial.result.metrics
    assert record.limits == trial.result.caveats
    stored = {a.name: a.digest for a in record.artifacts if not a.volatile}
    log = next((a for a in record.artifacts if a.name == "log.jsonl"), None)
    lines = [json.loads(line) for line in openers.ledger.open(log).read_text().splitlines()] if log else []
    assert lines == trial.run.lines
    assert {key: found for key, found in stored.items() if key != "log.jsonl"} == trial.run.artifacts()
    length = len(openers.ledger.entries())
    assert execute(job_of(name, shop), openers) == record
    assert len(openers.ledger.entries()) == length


def test_the_record_names_what_was_opened(name, shop, tmp_path):
    """Each input with its digest: a model's is its identity's, which is what a gate looks for."""
    signature, openers = find_technique(name), openers_in(tmp_path, shop)
    for key, built in shop.inputs(name, signature).items():
        opened = openers.open(built.reference, signature.inputs[key].wanted)
        live = built.live()
        if hasattr(live, "identity"):
            assert opened.digest == live.identity.digest
            assert opened.parts.items() >= live.identity.parts.items()
        if isinstance(live, Judge):
            assert opened.parts["calibration"] == live.calibration
        assert len(opened.digest) == 64


class Fuse:
    """Called, it raises."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *args, **kwargs):
        raise self.error


def break_model(monkeypatch, reference, error):
    """The model in one folder, or one of the testbed's by rule, raises ``error`` whatever it is asked."""
    for begins, kind in (("testbed:attacker/", Ruled), ("testbed:solver/", type(open_solver("perfect", {})))):
        if reference.startswith(begins):
            monkeypatch.setattr(kind, "generate", Fuse(error))
            return
    whole = OpenModel.from_folder

    def from_folder(path, **options):
        model = whole(path, **options)
        if Path(path) == Path(reference.rpartition("#")[2]):
            for voice in VOICES:
                setattr(model, voice, Fuse(error))
        return model

    monkeypatch.setattr(OpenModel, "from_folder", from_folder)


def break_class(kind, method):
    return lambda monkeypatch, reference, error: monkeypatch.setattr(kind, method, Fuse(error))


BREAKERS = {
    **dict.fromkeys(MODELS, break_model),
    Judge: break_class(GoldJudge, "judge"),
    Reward: break_class(GoldReward, "score"),
    Watcher: break_class(GoodhartWatch, "see"),
    Monitor: break_class(control._Scripted, "score"),
}
"""Wanted type -> how to make what BUILDERS builds for it fail when it is used."""
LENT = (*MODELS, Judge, Reward, Guard, Watcher, Monitor)


UNASKED = {"defend.layers": "system"}
"""Inputs that are a model by type and are not asked: a defended system lends its guards alone."""


def lent(name, wanted):
    inputs = find_technique(name).inputs.items()
    return [key for key, parameter in inputs if parameter.wanted in wanted and UNASKED.get(name) != key]


def breaks(name, key, error, status, openers, shop, monkeypatch):
    """What one lent thing raises is recorded and raised, and nothing is made of it."""
    wanted = find_technique(name).inputs[key].wanted
    if wanted not in BREAKERS:
        pytest.fail(f"nothing breaks a {wanted.__name__}: add it to BREAKERS in {__file__}")
    job = job_of(name, shop)
    with monkeypatch.context() as patch:
        BREAKERS[wanted](patch, job.inputs[key], error)
        with pytest.raises(type(error)) as caught:
            execute(job, openers)
    assert caught.value is error, key
    record = openers.ledger.entries()[-1].record
    assert (record.technique, record.status) == (name, status), key
    assert record.metrics == {}, key
    assert record.failure.type == type(error).__name__


def heals(name, key, openers, shop, trials):
    """A run after one that was broken is whole."""
    healed = execute(job_of(name, shop), openers)
    assert healed.status == "finished", key
    assert healed.metrics == trials.first(name).result.metrics, key


def test_a_crash_is_recorded_and_raised_and_the_next_run_is_whole(name, trials, shop, tmp_path, monkeypatch):
    """For the last thing that is lent, which breaks when most work is done."""
    for key in lent(name, LENT)[-1:]:
        openers = openers_in(tmp_path, shop)
        breaks(name, key, RuntimeError("the fuse is gone"), "crashed", openers, shop, monkeypatch)
        heals(name, key, openers, shop, trials)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("the fuse is gone"), "crashed"), (KeyboardInterrupt(), "interrupted")],
    ids=["crash", "interrupt"],
)
def test_whatever_breaks_the_next_run_is_whole(name, error, status, trials, shop, tmp_path, monkeypatch):
    """Each lent thing in a ledger of its own, with a rerun after each, an interrupt too."""
    for number, key in enumerate(lent(name, LENT)):
        openers = openers_in(tmp_path / str(number), shop)
        breaks(name, key, error, status, openers, shop, monkeypatch)
        heals(name, key, openers, shop, trials)


def test_an_expected_error_is_a_failed_record(name, shop, tmp_path, monkeypatch):
    """A model's CalibrantError comes back as a record with message and hint; nothing is raised."""
    for number, key in enumerate(lent(name, MODELS)):
        job, openers = job_of(name, shop), openers_in(tmp_path / str(number), shop)
        with monkeypatch.context() as patch:
            break_model(patch, job.inputs[key], NumericalError("a NaN at step 7", hint="take a smaller step"))
            record = execute(job, openers)
        assert (record.status, record.failure.type) == ("failed", "NumericalError"), key
        assert (record.failure.message, record.failure.hint) == ("a NaN at step 7", "take a smaller step")
        assert record.metrics == {}
        assert openers.ledger.entries()[-1].record == record


def test_a_model_is_paid_for(name, shop, tmp_path):
    """Whoever uses a model charges the budget: with nothing to spend the job fails, and says so."""
    if not lent(name, MODELS):
        return
    job = job_of(name, shop, budget=Budget(queries=0, tokens=0))
    record = execute(job, openers_in(tmp_path, shop))
    assert (record.status, record.failure.type) == ("failed", "BudgetError")
    assert record.metrics == {}


def test_a_reference_to_nothing_is_a_failure_or_refused(name, shop, tmp_path):
    """Never a crash: InputError becomes a failed record; ConfigError is raised and nothing is recorded."""
    for number, (key, parameter) in enumerate(find_technique(name).inputs.items()):
        if parameter.wanted.__name__ == "Evidence":
            continue
        job, openers = job_of(name, shop), openers_in(tmp_path / str(number), shop)
        job = job.model_copy(update={"inputs": {**job.inputs, key: "nowhere.jsonl"}})
        length = len(openers.ledger.entries())
        try:
            record = execute(job, openers)
        except ConfigError:
            assert len(openers.ledger.entries()) == length, key
        else:
            assert record.status == "failed", key
            assert len(openers.ledger.entries()) == length + 1, key


@pytest.mark.slow
def test_calls_with_the_default_run_share_nothing(name, shop, tmp_path, monkeypatch, known):
    """A second call asks its model anew: the first call's work is not mistaken for its own."""
    if name in known and known[name].ledger:
        inputs = {key: built.live() for key, built in shop.inputs(name, find_technique(name)).items()}
        with pytest.raises(CapabilityError, match="no ledger"):
            find_technique(name).function(**inputs)
        return
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    signature, counts = find_technique(name), []
    models, config = lent(name, MODELS), shop.config(name, signature)
    given = {} if config is None else {"config": config}
    for _ in range(2 if models else 0):
        inputs = {key: built.live() for key, built in shop.inputs(name, signature).items()}
        calls: list[str] = []
        for key in models:
            for voice in VOICES:
                if hasattr(inputs[key], voice):  # an LM may only talk
                    setattr(inputs[key], voice, counted(getattr(inputs[key], voice), calls))
        signature.function(**inputs, **given)
        counts.append(len(calls))
    assert counts[:1] == counts[1:]
    assert all(counts)


def counted(function, calls):
    def count(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return count
