"""Studies: reading, changing, running, resuming, and the verdict."""

from __future__ import annotations

import pytest

from calibrant.app import catalog
from calibrant.app.catalog import Listed
from calibrant.app.execute import execute
from calibrant.app.references.openers import Openers
from calibrant.app.study import finished_jobs, run_study
from calibrant.app.study_file import load_study
from calibrant.app.verdict import gate_table, verdict_of
from calibrant.core import (
    ConfigError,
    Estimate,
    Evidence,
    Frozen,
    InputError,
    Job,
    Quiet,
    Record,
    Result,
    Run,
    point,
)
from calibrant.core.lm import LM
from calibrant.core.record import job_digest, result_digest
from calibrant.data.rows import Preferences
from calibrant.ledger import Ledger, verify

CALLS: list[tuple[str, int]] = []


class Dew(Frozen):
    fail_at: tuple[int, ...] = ()
    """Seeds that fail."""
    crash_at: tuple[int, ...] = ()
    """Seeds that crash."""
    harm: float = 0.0
    """What is measured, by seed."""


def dew(config: Dew = Dew(), run: Run = Quiet()) -> Result:
    """Leave pairs that show the seed."""
    CALLS.append(("dew", run.seed))
    if run.seed in config.fail_at:
        raise InputError("the grass is dry", hint="wait for the morning")
    if run.seed in config.crash_at:
        raise ZeroDivisionError("a bug in the grass: http://user:hunter2@host")
    run.artifact("pairs.jsonl").write_text(f'{{"prompt": "{run.seed}", "chosen": "a", "rejected": "b"}}\n')
    return Result(metrics={"wet": point(run.seed)})


def sun(pairs: Preferences, run: Run = Quiet()) -> Result:
    """Reads what dew left."""
    CALLS.append(("sun", run.seed))
    return Result(metrics={"read": point(float(pairs.rows[0].prompt.last_user))})


def harm(model: LM, config: Dew = Dew(), run: Run = Quiet()) -> Result:
    """A measurement whose interval is told by the config: low = harm, high = harm + .1, plus .01 a seed."""
    CALLS.append(("harm", run.seed))
    value = config.harm + run.seed / 100
    return Result(
        metrics={"rate": Estimate(value=value, low=value, high=value + 0.1, n=100, method="clopper-pearson")}
    )


@pytest.fixture(autouse=True)
def fields(monkeypatch):
    CALLS.clear()
    named = {f"field.{name}": Listed(f"{__name__}:{name}", "") for name in ("dew", "sun", "harm")}
    monkeypatch.setattr(catalog, "TECHNIQUES", catalog.TECHNIQUES | named)


CHAIN = """
[given]
seeds = 1
[[job]]
id = "dew"
use = "field.dew"
seeds = [3, 4]
[[job]]
id = "sun"
use = "field.sun"
seeds = [3, 4]
inputs = { pairs = "record:dew/pairs.jsonl" }
[[job]]
id = "alone"
use = "field.dew"
seed = 9
"""


def gated(model, *, harms=(0.0,), passes=1, threshold=0.5, intent=True):
    """A study that measures once a seed and gates each seed's measurement."""
    seeds = list(range(len(harms)))
    jobs = [
        f"""
[[job]]
id = "harm{seed}"
use = "field.harm"
inputs = {{ model = "{model}" }}
config = {{ harm = {value} }}
"""
        for seed, value in enumerate(harms)
    ]
    rule = (
        '{ id = "R", technique = "field.harm", metric = "rate", bound = "high", op = "<=", '
        f"threshold = {threshold} }}"
    )
    return (
        f"""
{f'[intent]{chr(10)}use = "a trial"{chr(10)}policy = "p.toml"' if intent else ""}
[verdict]
gate = "gate"
passes = {passes}
{"".join(jobs)}
[[job]]
id = "gate"
use = "govern.gate"
seeds = {seeds}
inputs = {{ subject = "{model}", policy = "p.toml" }}
""",
        'name = "p"\nstage = "internal"\n[[rule]]\n' + rule.strip("{} ").replace(", ", "\n"),
    )


@pytest.fixture
def gate_study(study, tmp_path, model):
    def build(**changes):
        text, policy = gated(model, **changes)
        (tmp_path / "p.toml").write_text(policy)
        return study(text)

    return build


def results(ledger):
    return {(e.record.job_id, e.record.seed): e.record.result for e in ledger.entries()}


def problems(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return caught.value.problems


def test_a_packaged_study_by_name_and_a_file_by_path(write):
    assert load_study("demo").name == "demo"
    assert load_study(str(write(CHAIN))).name == "trial"
    assert "did you mean 'demo'" in problems(load_study, "dmo")[0]


def test_changes_of_the_command_line(study):
    changed = study(
        CHAIN, "given.seeds=[1, 2]", "alone.harm=2.5e-1", "alone.seed=7", "alone.budget.tokens=10"
    )
    assert changed.given == {"seeds": [1, 2]}
    assert changed.job[2].config == {"harm": 0.25} and changed.job[2].seed == 7
    assert changed.job[2].budget.tokens == 10
    assert study(CHAIN, "given.seeds=./mine").given == {"seeds": "./mine"}
    assert study(CHAIN, "sun.inputs.pairs=data:x").job[1].inputs == {"pairs": "data:x"}
    assert study(CHAIN, "dew.fit.lr=1").job[0].config == {"fit": {"lr": 1}}
    assert study(CHAIN, "alone.budget.tokens=none").job[2].budget.tokens is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("given.seeds", "is no change"),
        ("given.seed=1", "no given 'seed' (did you mean 'seeds'?)"),
        ("aloen.harm=1", "no job 'aloen' (did you mean 'alone'?)"),
        ("alone=1", "no job 'alone'"),
        ("alone.seed.x=1", "'seed' has no fields"),
        ("alone.seed=one", "job 'alone': 'seed'"),
        ("alone.budget.token=1", "unknown key 'budget.token' (did you mean 'tokens'?)"),
    ],
)
def test_changes_that_cannot_be_made(study, change, said):
    assert said in problems(study, CHAIN, change)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["'job' is required"]),
        ("[job]\nid = 'a'", ["'job' must be a list of tables"]),
        ("job = [1]", ["'job' must be a list of tables"]),
        ("[[job]]\nid = 'a'", ["job 'a': 'use' is required"]),
        ("titel = 'x'\n[[job]]\nid = 'a'\nuse = 'b'", ["unknown key 'titel' (did you mean 'title'?)"]),
        (
            "[[job]]\nid = 'a b'\nuse = 'c'\n[[job]]\nid = 'd'\nsead = 1\nuse = 'x'",
            ["job 'a b': 'id'", "job 'd': unknown key 'sead' (did you mean 'seed'?)"],
        ),
        (
            "[[job]]\nid = 'a'\nuse = 'b'\n[[figure]]\ntitel = 'x'",
            ["figure 1: 'title'", "unknown key 'titel'"],
        ),
        ("[verdict]\npasses = 0\ngate = 'a'\n[[job]]\nid = 'a'\nuse = 'b'", ["'verdict.passes'"]),
    ],
)
def test_files_that_are_no_studies(study, text, said):
    found = problems(study, text)
    assert len(found) == len(said)
    for part, problem in zip(said, found, strict=True):
        assert part in problem and "trial.toml" in problem


LIKE = """
[[job]]
id = "one"
use = "field.harm"
seeds = [1, 2]
inputs = { model = "testbed:model/tiny", other = "data:x" }
config = { harm = 0.5, fit = { lr = 1.0, clip = 2.0 } }
budget = { tokens = 9 }
[[job]]
id = "two"
like = "one"
inputs = { other = "data:y" }
config = { fit = { lr = 3.0 } }
[[job]]
id = "three"
like = "two"
seed = 4
budget = {}
"""


def test_a_job_like_another_says_only_what_differs(study):
    """Inputs and config key by key, all else whole; a chain, and a change to one that leaves the others."""
    one, two, three = study(LIKE).job
    assert (one.id, two.id, three.id) == ("one", "two", "three")
    assert (two.use, two.seeds, two.budget) == (one.use, one.seeds, one.budget)
    assert two.inputs == {"model": "testbed:model/tiny", "other": "data:y"}
    assert two.config == {"harm": 0.5, "fit": {"lr": 3.0}}
    assert (three.inputs, three.config, three.budget.tokens) == (two.inputs, two.config, None)
    assert [run.seed for run in three.runs()] == [4]
    changed = study(LIKE, "one.fit.clip=7.0", "one.inputs.model=data:z", "one.seeds=[5]")
    assert changed.job[0] != one and changed.job[1:] == (two, three)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('like = "one"', 'like = "tow"', "job 'two' is like 'tow', but no job before it is"),
        ('like = "one"', 'like = "three"', "job 'two' is like 'three', but no job before it is"),
        ('like = "one"', 'like = "oen"', "no job before it is (did you mean 'one'?)"),
        ('like = "one"', "like = [1]", "job 'two' is like '[1]'"),
        ('id = "two"\n', "", "job '2': 'id' is required"),
        ('inputs = { other = "data:y" }', "inputs = 3", "job 'two': 'inputs'"),
    ],
)
def test_a_job_like_none_before_it_is_refused(study, old, new, said):
    assert said in problems(study, LIKE.partition('[[job]]\nid = "three"')[0].replace(old, new))[0]


def test_a_name_cannot_lead_out_of_the_ledger(tmp_path):
    (tmp_path / "s.toml").write_text("name = '../x'\n[[job]]\nid = 'a'\nuse = 'b'")
    assert "'name'" in problems(load_study, str(tmp_path / "s.toml"))[0]


def test_each_seed_reads_its_own_seeds_record(study, ledger):
    done = run_study(study(CHAIN), ledger)
    read = {
        entry.record.seed: entry.record.metrics["read"].value for job, entry in done.runs if job.id == "sun"
    }
    assert read == {3: 3.0, 4: 4.0}
    assert done.verdict.answer == "yes" and done.reused == 0 and not done.unfinished
    assert CALLS == [("dew", 3), ("dew", 4), ("sun", 3), ("sun", 4), ("dew", 9)]


def test_a_finished_study_runs_nothing_again(study, ledger):
    first = run_study(study(CHAIN), ledger)
    again = run_study(study(CHAIN), Ledger(ledger.root))
    assert again.reused == 5 and again.runs == first.runs and len(CALLS) == 5
    changed = run_study(study(CHAIN, "alone.harm=1"), ledger)
    assert changed.reused == 4 and len(CALLS) == 6


def test_what_depends_on_a_failed_job_fails_with_its_reason_and_the_rest_runs(study, ledger):
    done = run_study(study(CHAIN, "dew.fail_at=[3]"), ledger)
    found = {(job.id, job.seed): entry.record for job, entry in done.runs}
    assert {key for key, record in found.items() if record.status != "finished"} == {("dew", 3), ("sun", 3)}
    assert "the grass is dry" in found["sun", 3].failure.message
    assert done.verdict.answer == "unknown" and "dew#3, sun#3" in done.verdict.reason
    assert len(done.unfinished) == 2 and verify(ledger.root).verdict.answer == "yes"
    mended = run_study(study(CHAIN), ledger)
    # 'alone' is as it was, and 'sun' of seed 4 reads the same bytes as before.
    assert mended.verdict.answer == "yes" and mended.reused == 2


def test_a_crash_is_recorded_and_what_does_not_depend_on_it_goes_on(study, ledger):
    done = run_study(study(CHAIN, "dew.crash_at=[3]"), ledger)
    found = {f"{job.id}#{job.seed}": entry.record for job, entry in done.runs}
    assert {name: r.status for name, r in found.items() if r.status != "finished"} == {
        "dew#3": "crashed", "sun#3": "failed",
    }  # fmt: skip
    assert (
        list(done.crashes) == ["dew#3"] and "ZeroDivisionError: a bug in the grass" in done.crashes["dew#3"]
    )
    assert done.skipped == {"sun#3": "dew#3"}
    assert found["dew#3"].failure.type == "ZeroDivisionError" and len(CALLS) == len(found) - 1
    assert done.verdict.answer == "unknown" and verify(ledger.root).verdict.answer == "yes"
    assert run_study(study(CHAIN), ledger).verdict.answer == "yes"


def test_a_crash_that_cannot_be_recorded_ends_the_study(study, ledger, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("before anything was recorded")

    monkeypatch.setattr("calibrant.app.study.execute", broken)
    with pytest.raises(ZeroDivisionError):
        run_study(study(CHAIN), ledger)


def test_a_failed_reference_never_falls_back_to_another_seed(study, ledger):
    run_study(study(CHAIN), ledger)
    done = run_study(study(CHAIN, "dew.fail_at=[4]"), ledger)
    last = {(job.id, job.seed): entry.record for job, entry in done.runs}["sun", 4]
    assert last.status == "failed"


def test_an_identical_job_of_another_study_counts_under_its_name_here(write, ledger):
    first = load_study(str(write('[[job]]\nid = "morning"\nuse = "field.dew"', name="one")))
    second = load_study(str(write('[[job]]\nid = "dawn"\nuse = "field.dew"', name="two")))
    run_study(first, ledger)
    done = run_study(second, ledger)
    assert done.reused == 1 and done.verdict.answer == "yes"
    assert [(job.id, entry.record.job_id) for job, entry in done.runs] == [("dawn", "morning")]


def test_the_intent_is_recorded_once_and_before_the_first_job(gate_study, ledger):
    study = gate_study()
    run_study(study, ledger)
    run_study(study, ledger)
    kinds = [entry.record.technique for entry in ledger.entries()]
    assert kinds == ["intent", "field.harm", "govern.gate"]
    intent = ledger.entries()[0].record
    assert all(entry.record.intent == intent.job for entry in ledger.entries())


def test_nothing_is_recorded_when_a_study_has_problems(study, ledger):
    broken = study(CHAIN.replace("field.sun", "field.snu").replace("record:dew", "record:due"))
    found = problems(run_study, broken, ledger)
    assert len(found) == 1 and "did you mean 'field.sun'" in found[0]
    assert ledger.entries() == () and not CALLS


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"harms": (0.0,)}, "yes"),
        ({"harms": (0.45,)}, "unknown"),  # the interval [.45, .55] straddles .5
        ({"harms": (0.6,)}, "no"),
        ({"harms": (0.0,), "intent": False}, "unknown"),  # thresholds that nobody fixed in advance
        ({"harms": (0.0, 0.0), "passes": 2}, "yes"),
        ({"harms": (0.0, 0.6), "passes": 2}, "no"),  # every gate reads all the evidence
    ],
)
def test_the_verdict_is_read_off_the_gates(gate_study, ledger, changes, answer):
    assert run_study(gate_study(**changes), ledger).verdict.answer == answer


def test_the_gate_outside_a_study_is_the_gate_inside_it(gate_study, ledger, model, tmp_path):
    done = run_study(gate_study(harms=(0.45,)), ledger)
    inside = done.runs[-1][1]
    job = Job(id="gate", use="govern.gate", inputs={"subject": str(model), "policy": "p.toml"})
    outside = execute(job, Openers(Ledger(ledger.root), base=tmp_path))
    assert outside.digest == inside.digest  # found, not run again
    (tmp_path / "elsewhere").mkdir()
    copy = Ledger(tmp_path / "elsewhere")
    for entry in ledger.entries()[:-1]:
        copy.append(entry.record)
    afresh = execute(job, Openers(copy, base=tmp_path))
    assert (afresh.job, afresh.result) == (inside.record.job, inside.record.result)
    assert gate_table(inside, ledger)["verdict"]["answer"] == "unknown"


def test_seeds_that_can_still_pass_leave_the_verdict_open(gate_study, ledger):
    study = gate_study(harms=(0.0, 0.0), passes=2)
    done = run_study(study, ledger)
    assert verdict_of(study, done.runs[:-1], ledger).answer == "unknown"
    assert verdict_of(study, (), ledger).answer == "unknown"
    assert verdict_of(study, done.runs, ledger).answer == "yes"


def test_a_study_without_a_gate_is_not_done_before_every_run_is(study, ledger):
    trial = study(CHAIN)
    done = run_study(trial, ledger)
    assert verdict_of(trial, done.runs[:-1], ledger).answer == "unknown"


def test_progress_is_passed_on_with_the_jobs_name(study, ledger, model):
    told = []
    trial = study(
        f'[[job]]\nid = "ask"\nuse = "measure.capability"\n'
        f'inputs = {{ model = "{model}", items = "testbed:items/core" }}\n'
        "config = { max_tokens = 1, batch = 256 }"
    )
    run_study(trial, ledger, lambda *said: told.append(said))
    assert told and all(name == "ask" for name, *_ in told) and told[-1][1] == told[-1][2]


def test_a_job_name_of_two_studies_is_never_guessed(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for study in ("one", "two"):
        digest = job_digest("train.dpo", 1, {"study": study}, {}, 0)
        record = Record(
            technique="train.dpo",
            version=1,
            job=digest,
            result=result_digest({}, ()),
            status="finished",
            job_id="dpo",
            study=study,
            config={"study": study},
        )
        ledger.append(record)
    with pytest.raises(InputError, match="several studies have a job 'dpo': one, two") as caught:
        finished_jobs(ledger, "defended:guards.toml#record:dpo/model")
    assert caught.value.hint == "name one: --study one"
    found = finished_jobs(ledger, "record:dpo/model", "two")
    assert found["dpo", 0].record.study == found["dpo", None].record.study == "two"
    assert finished_jobs(ledger, "./folder")["dpo", 0].record.study == "two"
    with pytest.raises(InputError, match=r"no study 'two.toml' .* \(did you mean 'two'\?\)") as caught:
        finished_jobs(ledger, "record:dpo/model", "two.toml")
    assert "it holds one, two" in caught.value.hint


def test_how_many_must_pass_is_said_before_the_evidence(gate_study, ledger):
    assert run_study(gate_study(harms=(0.0, 0.1), passes=2), ledger).verdict.answer == "yes"
    eased = run_study(gate_study(harms=(0.0, 0.1), passes=1), ledger)
    assert eased.verdict.answer == "unknown"
    assert "declared after the evidence" in eased.verdict.reason


def test_what_failed_again_after_it_was_weighed_is_weighed_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger")

    def add(name, status, time):
        digest = job_digest("field.harm", 1, {"name": name}, {}, 0)
        ledger.append(
            Record(
                technique="field.harm",
                version=1,
                job=digest,
                result=result_digest({}, ()),
                status=status,
                config={"name": name},
                recorded_at=time,
            )
        )

    add("b", "failed", "1")
    add("a", "finished", "2")
    weighed = Openers(ledger).open("ledger:", Evidence).digest
    add("a", "finished", "3")
    assert Openers(ledger).open("ledger:", Evidence).digest == weighed, "the same result again is no news"
    add("b", "failed", "4")
    assert Openers(ledger).open("ledger:", Evidence).digest != weighed


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("given = 5", "given.x=1"),
        ("given = [1]", "given.x=1"),
        ('[[job]]\nid = ["a"]', "plain.seed=1"),
        ('[[job]]\nid = "a"\nconfig = 5', "a.x=1"),
        ('[[job]]\nid = "a"\nconfig = "x"', "a.x.y=1"),
    ],
)
def test_a_change_to_what_is_no_table_is_a_problem(tmp_path, text, change):
    path = tmp_path / "odd.toml"
    path.write_text(f'name = "odd"\n{text}\n')
    with pytest.raises(ConfigError, match=r"no job|has no fields"):
        load_study(str(path), [change])
