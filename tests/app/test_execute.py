"""The one door: what is recorded, what is recognised, and what is lent."""

from __future__ import annotations

import errno
import fcntl
import json
import math

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from calibrant.app import catalog, check
from calibrant.app.catalog import Listed
from calibrant.app.execute import execute
from calibrant.app.ledger_run import Context, LedgerRun
from calibrant.app.references.openers import Openers
from calibrant.core import (
    Budget,
    CapabilityError,
    ConfigError,
    Estimate,
    Evidence,
    Frozen,
    InputError,
    Job,
    NumericalError,
    Quiet,
    Result,
    Run,
    point,
    technique,
)
from calibrant.data.rows import Goals
from calibrant.ledger import Ledger, verify
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer

GOALS = "testbed:goals/heldout?n=4"


class Rain(Frozen):
    steps: int = 3
    """How many."""
    then: str = ""
    """What goes wrong."""


WRONG = {
    "input": InputError("the well is dry", hint="fill it"),
    "nan": NumericalError("loss is nan at step 2", hint="lower lr"),
    "bug": ZeroDivisionError("a bug"),
    "stop": KeyboardInterrupt(),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "hidden": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
}
CALLS: list[int] = []


@technique(version=1)
def rain(goals: Goals, config: Rain = Rain(), run: Run = Quiet()) -> Result:
    """Count goals; the seed shows in the metric."""
    CALLS.append(run.seed)
    for step in range(config.steps):
        run.log(step, drops=float(step), mist=math.nan)
        run.spend(queries=2, tokens=5, flops=1e6)
        run.progress(step + 1, config.steps, "raining")
    if config.then == "negative":
        return Result(
            metrics={"wet_rate": Estimate(value=-0.1, low=-0.2, high=0.1, n=4, method="bootstrap-t")}
        )
    if config.then:
        raise WRONG[config.then]
    run.artifact("drops.txt").write_text(f"{len(goals)} {config.steps} {run.seed}")
    run.artifact("timing.txt").write_text(str(id(run)))
    return Result(metrics={"wet": point(len(goals) + run.seed), "fog": point(math.nan)}, caveats=("no sun",))


@technique(version=1)
def storm(goals: Goals, config: Rain = Rain(), run: Run = Quiet()) -> Result:
    """Calls rain."""
    record = run.call("sky.rain", {"goals": GOALS}, {"steps": config.steps})
    return Result(metrics={"wet": record.metrics["wet"]})


@technique(version=1)
def bare(evidence: Evidence, run: Run = Quiet()) -> Result:
    """Takes no config and the ledger."""
    return Result(metrics={"seen": point(len(evidence.entries))})


@pytest.fixture(autouse=True)
def sky(monkeypatch):
    CALLS.clear()
    named = {f"sky.{name}": Listed(f"{__name__}:{name}", "") for name in ("rain", "storm", "bare")}
    monkeypatch.setattr(catalog, "TECHNIQUES", catalog.TECHNIQUES | named)


@pytest.fixture
def openers(ledger, tmp_path):
    return Openers(ledger, base=tmp_path)


def job(**changes):
    return Job(**{"id": "wet", "use": "sky.rain", "inputs": {"goals": GOALS}} | changes)


def test_a_finished_job_is_recorded_whole(openers, ledger):
    record = execute(job(seed=3), openers, Context("study", "i" * 64))
    assert (record.status, record.seed, record.study, record.intent) == ("finished", 3, "study", "i" * 64)
    assert record.config == {"steps": 3, "then": ""}
    assert record.metrics["wet"].value == 7
    assert record.metrics["fog"].value is None  # as it reads back
    assert record.limits == ("no sun",)
    assert record.cost == {"queries": 6, "tokens": 15, "flops": 3e6}
    assert record.inputs["goals"].reference == GOALS and record.inputs["goals"].kind == "data"
    assert [a.name for a in record.artifacts] == ["drops.txt", "log.jsonl", "timing.txt"]
    assert [a.volatile for a in record.artifacts] == [False, False, True]
    assert record.code["calibrant"] and len(record.code["source"]) == 64 and "cores" in record.hardware
    assert record.started_at <= record.recorded_at and record.seconds >= 0
    assert ledger.entries()[-1].record == record
    assert not list((ledger.root / "work").iterdir())
    assert verify(ledger.root).verdict.answer == "yes"


def test_a_finished_job_is_found_and_not_run(openers, ledger):
    first = execute(job(), openers)
    again = execute(job(id="other name", budget=Budget(queries=1)), openers, Context("elsewhere"))
    assert again == first and CALLS == [0] and len(ledger.entries()) == 1
    assert execute(job(), Openers(Ledger(ledger.root))) == first  # another process would see the same
    assert CALLS == [0]


def test_what_a_kill_after_the_record_left_is_tidied_up(openers, ledger):
    record = execute(job(), openers)
    (ledger.work(record.job) / "attempts.jsonl").write_text("x")
    execute(job(), openers)
    assert not list((ledger.root / "work").iterdir())


def test_a_job_whose_artefact_is_gone_is_run_again(openers, ledger):
    record = execute(job(), openers)
    stored = ledger.open(record.artifacts[0])
    stored.unlink()
    again = execute(job(), openers)
    assert CALLS == [0, 0] and again.result == record.result and stored.is_file()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"config": {"steps": 2}}, {"inputs": {"goals": f"{GOALS}0"}}]
)
def test_seed_config_and_input_change_the_job_digest(openers, change):
    assert execute(job(**change), openers).job != execute(job(), openers).job
    assert len(CALLS) == 2


def test_a_raised_version_changes_the_job_digest(openers, monkeypatch):
    before = execute(job(), openers)
    monkeypatch.setattr(rain, "version", 2)
    after = execute(job(), openers)
    assert after.job != before.job and after.result == before.result and len(CALLS) == 2


def test_input_bytes_change_the_job_digest_and_their_path_does_not(openers, tmp_path):
    for name, text in (("a", "brew zorble"), ("b", "brew zorble"), ("c", "brew quib")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"id": "g", "text": "{text}"}}\n')
    digests = [execute(job(inputs={"goals": f"jsonl:{name}.jsonl"}), openers).job for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_place_and_time_do_not_change_the_result_digest(openers, tmp_path, monkeypatch):
    first = execute(job(), openers)
    monkeypatch.setattr("calibrant.app.execute.hardware", lambda: "another host")
    monkeypatch.setattr("calibrant.app.execute.time.time", lambda: 2e9)
    there = execute(job(), Openers(Ledger(tmp_path / "there")))
    assert (there.job, there.result) == (first.job, first.result)
    assert there.digest != first.digest and there.hardware != first.hardware


def test_python_and_execute_agree(openers, tmp_path):
    record = execute(job(seed=2), openers)
    goals = openers.open(GOALS, Goals).load()
    plain = rain(goals, Rain(), Quiet(seed=2, work=tmp_path / "work"))
    assert plain.metrics["wet"] == record.metrics["wet"] and plain.caveats == record.limits
    stored = openers.ledger.open(record.artifacts[0]).read_text()
    assert stored == (tmp_path / "work" / "artifacts" / "drops.txt").read_text()


@pytest.mark.parametrize("wrong", ["input", "nan"])
def test_an_expected_failure_is_a_failed_record(openers, ledger, wrong):
    record = execute(job(config={"then": wrong}), openers)
    assert record.status == "failed" and not record.metrics
    assert record.failure.message == WRONG[wrong].message and record.failure.hint == WRONG[wrong].hint
    assert record.cost["queries"] == 6 and record.recorded_at
    assert execute(job(config={"then": wrong}), openers).status == "failed" and CALLS == [0, 0]  # tried again
    assert verify(ledger.root).verdict.answer == "yes"


def test_an_impossible_figure_is_a_failure_and_no_metric(openers):
    record = execute(job(config={"then": "negative"}), openers)
    assert (record.status, record.metrics) == ("failed", {})
    assert record.failure.message.startswith(
        "metric 'wet_rate' is impossible: -0.2 to 0.1 reaches beyond 0 to 1"
    )


@pytest.mark.parametrize("wrong", ["full", "hidden"])
def test_a_full_disk_is_a_failure_with_a_remedy_and_no_crash(openers, wrong):
    record = execute(job(config={"then": wrong}), openers)
    assert record.status == "failed" and "disk full in job 'wet'" in record.failure.message
    assert "free space" in record.failure.hint


def test_a_bug_is_recorded_as_crashed_and_raised_again(openers, ledger):
    with pytest.raises(ZeroDivisionError):
        execute(job(config={"then": "bug"}), openers)
    record = ledger.entries()[-1].record
    assert (record.status, record.failure.type) == ("crashed", "ZeroDivisionError")
    assert "bug" in record.failure.hint


def test_a_bug_in_a_reader_is_recorded_as_crashed_too(openers, ledger, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Openers, "open", broken)
    with pytest.raises(ZeroDivisionError):
        execute(job(), openers)
    record = ledger.entries()[-1].record
    assert (record.status, record.inputs["goals"].kind) == ("crashed", "unopened") and not CALLS


def test_an_interrupt_is_recorded_and_raised_again(openers, ledger):
    with pytest.raises(KeyboardInterrupt):
        execute(job(config={"then": "stop"}), openers)
    assert ledger.entries()[-1].record.status == "interrupted"
    assert verify(ledger.root).verdict.answer == "yes"


def test_an_input_that_cannot_be_opened_is_a_failed_record(openers, ledger):
    record = execute(job(inputs={"goals": "jsonl:nowhere.jsonl"}), openers)
    assert record.status == "failed" and "no file 'nowhere.jsonl'" in record.failure.message
    assert record.inputs["goals"].kind == "unopened" and not CALLS
    assert verify(ledger.root).verdict.answer == "yes"


def test_a_failure_to_open_keeps_the_digests_of_what_was_opened(openers, model):
    inputs = {"model": str(model), "goals": "jsonl:nowhere.jsonl", "judge": "testbed:judge/harmful"}
    record = execute(Job(id="plain", use="measure.refusal", inputs=inputs), openers)
    assert record.status == "failed"
    assert [record.inputs[name].kind for name in ("model", "goals")] == ["model", "unopened"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use": "sky.rian"}, "no technique 'sky.rian' (did you mean 'sky.rain'?)"),
        ({"config": {"step": 2, "them": ""}}, "unknown key 'step' (did you mean 'steps'?)"),
        ({"inputs": {"goal": GOALS}}, "has no input 'goal' (did you mean 'goals'?)"),
        ({"inputs": {}}, "needs the input 'goals'"),
        ({"use": "sky.bare", "inputs": {}, "config": {"x": 1}}, "takes no config, got 'x'"),
    ],
)
def test_a_job_that_cannot_be_started_is_not_recorded(openers, ledger, change, said):
    with pytest.raises(ConfigError) as caught:
        execute(job(**change), openers)
    assert said in caught.value.message and caught.value.problems
    assert ledger.entries() == ()


def test_a_technique_without_config_reads_the_ledger(openers):
    execute(job(), openers)
    record = execute(job(use="sky.bare", inputs={}), openers)
    assert record.metrics["seen"].value == 1 and record.config == {}


@pytest.mark.parametrize(("limit", "word"), [({"queries": 5}, "queries"), ({"tokens": 11}, "tokens")])
def test_a_budget_stops_the_job_before_it_is_passed(openers, limit, word):
    record = execute(job(budget=Budget(**limit)), openers)
    assert (record.status, record.failure.type) == ("failed", "BudgetError")
    assert word in record.failure.message and f"budget.{word}" in record.failure.hint
    assert record.cost[word] <= limit[word]


def test_a_budget_of_seconds_stops_the_job(openers, monkeypatch):
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("calibrant.app.ledger_run.time.monotonic", lambda: next(ticks))
    record = execute(job(budget=Budget(seconds=15)), openers)
    assert record.failure.type == "BudgetError" and record.cost["queries"] == 4


def test_a_called_technique_has_a_record_of_its_own(openers, ledger):
    record = execute(job(use="sky.storm", seed=5), openers, Context("study", "i" * 64))
    child, parent = (entry.record for entry in ledger.entries())
    assert parent == record and child.technique == "sky.rain" and child.parent == parent.job
    assert (child.seed, child.study, child.intent, child.job_id) == (5, "study", "i" * 64, "wet/sky.rain")
    execute(job(use="sky.storm", seed=5, config={"then": "again"}), openers)
    assert CALLS == [5]  # the second parent finds the child


def test_half_made_artefacts_of_a_killed_run_are_not_stored(openers, ledger):
    failed = execute(job(config={"then": "input"}), openers)
    work = ledger.work(failed.job)
    (work / "artifacts" / "half").touch()
    with (work / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "dr')
    execute(job(config={"then": "input"}), openers)
    assert not (work / "artifacts" / "half").exists()
    assert (work / "log.jsonl").read_text().count("\n") == 3


def test_a_resumed_log_goes_on_where_its_kept_lines_end(tmp_path):
    def steps(*logged):
        run = LedgerRun(job(), tmp_path, tmp_path / "cache", None, lambda child: pytest.fail("nobody calls"))
        for step in logged:
            run.log(step, loss=1.0)
        (log,) = run.made()
        return [json.loads(line)["step"] for line in log.read_text().splitlines()]

    assert steps(0, 1, 2, 3) == [0, 1, 2, 3]
    assert steps(2, 3, 4) == [0, 1, 2, 3, 4]
    assert steps() == [0, 1, 2, 3, 4]
    assert steps(0, 0, 1) == [0, 0, 1]


def test_a_job_that_another_process_runs_is_left_alone(openers, ledger):
    failed = execute(job(config={"then": "input"}), openers)
    with ledger.work(failed.job).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="being run by another process"):
            execute(job(config={"then": "input"}), openers)
    assert CALLS == [0]


def test_a_job_that_another_process_finishes_meanwhile_is_not_run_again(openers, ledger, monkeypatch):
    once = execute(job(), openers)
    answers = [None]  # what the ledger said before the lock was held
    find = ledger.find
    monkeypatch.setattr(ledger, "find", lambda digest: answers.pop() if answers else find(digest))
    assert execute(job(), openers) == once and not answers
    assert CALLS == [0]
    assert not list((ledger.root / "work").iterdir())


def test_refused_rows_are_told_in_the_record(openers, tmp_path):
    (tmp_path / "g.jsonl").write_text('{"id": "g", "text": "brew zorble"}\n{"id": "h", "txt": "?"}\n')
    record = execute(job(inputs={"goals": "jsonl:g.jsonl"}), openers)
    assert record.status == "finished"
    assert "1 of 2 rows of 'goals' were refused, the first on line 2" in record.limits[-1]


def test_a_model_that_only_talks_cannot_be_trained(openers, tmp_path, model):
    (tmp_path / "stack.toml").write_text(
        '[[layer]]\nname = "words"\nside = "input"\n'
        'guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}\n'
    )
    inputs = {"model": f"defended:stack.toml#{model}", "pairs": "testbed:pairs/tone"}
    record = execute(Job(id="dpo", use="train.dpo", inputs=inputs), openers)
    assert record.failure.type == CapabilityError.__name__ and "OpenLM" in record.failure.message


def test_config_and_inputs_are_checked_with_every_problem():
    signature = catalog.find_technique("measure.refusal")
    with pytest.raises(ConfigError) as caught:
        check.check_inputs(Job(id="a", use="measure.refusal", inputs={"modell": ""}), signature)
    assert len(caught.value.problems) == 4
    assert check.check_config(Job(id="a", use="measure.refusal"), signature).sampling.max_tokens == 64


def test_a_password_in_an_address_enters_neither_ledger_nor_message(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for reference in (
        "api:http://user:hunter2@127.0.0.1:9/v1#m",
        "api:http://user:hunter2@127.0.0.1:9/v1?key=hunter2",
        "api:http://127.0.0.1:9/v1?key=hunter2#m",
        *(
            f"api:{scheme}://user:{word}@127.0.0.1:9/v1#m"
            for scheme in ("HTTP", "ws", "https")
            for word in (
                "a/hunter2",
                "hunter2/b",
                "hunter2'b",
                "hunter2#b",
                "hunter2 b",
                "a hunter2",
                "@hunter2",
            )
        ),
    ):
        inputs = {"model": reference, "goals": GOALS, "judge": {"use": "measure.string_judge"}}
        record = execute(Job(id="leak", use="measure.refusal", inputs=inputs), Openers(ledger))
        assert record.status == "failed" and record.failure is not None
    everything = b"".join(p.read_bytes() for p in (tmp_path / "ledger").rglob("*") if p.is_file())
    assert b"127.0.0.1" in everything and b"hunter2" not in everything


def test_a_model_says_where_it_is_slower(openers, tmp_path):
    """A state moves with padding, so mamba's prompts are drawn apart: found out on the way, and recorded."""
    with torch.random.fork_rng(devices=[]):
        module = MambaForCausalLM(
            MambaConfig(vocab_size=800, hidden_size=16, num_hidden_layers=1, state_size=4)
        )
    OpenModel.from_module(module, build_tokenizer(), "mamba").save(tmp_path / "mamba")
    inputs = {"model": str(tmp_path / "mamba"), "items": "testbed:items/core"}
    record = execute(Job(id="slow", use="understand.lens", inputs=inputs, config={"limit": 2}), openers)
    assert record.status == "finished"
    assert "mamba', prompts of different lengths are generated separately" in " ".join(record.limits)
