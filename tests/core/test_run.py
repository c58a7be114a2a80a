"""The quiet run, and the mark of a technique."""

from __future__ import annotations

import gc
import inspect

import pytest

from calibrant.core import (
    Budget,
    CapabilityError,
    Estimate,
    Job,
    Quiet,
    Result,
    point,
    technique,
    unknown,
)


def test_artifacts_go_to_the_work_folder(tmp_path):
    run = Quiet(seed=3, work=tmp_path)
    assert run.seed == 3
    assert run.work == tmp_path
    path = run.artifact("deep/pairs.jsonl")
    assert path == tmp_path / "artifacts" / "deep" / "pairs.jsonl"
    assert path.parent.is_dir()
    assert not path.exists()


def test_a_temporary_folder_is_made_once_and_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = Quiet()
    assert list(tmp_path.iterdir()) == []
    assert run.work == run.work
    assert list(tmp_path.iterdir()) == [run.work]
    del run
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_quiet_has_no_limits_and_keeps_nothing(tmp_path):
    run = Quiet(work=tmp_path)
    run.log(0, loss=1.0)
    run.spend(tokens=10**12, queries=10**9, flops=1e30)
    run.progress(1, 2, "half")
    assert list(tmp_path.iterdir()) == []


def test_calling_needs_a_ledger():
    with pytest.raises(CapabilityError, match=r"cannot call 'train\.dpo'") as caught:
        Quiet().call("train.dpo", {})
    assert "execute" in caught.value.hint


@technique(version=4)
def brew(leaf, sugar=1, run: Quiet = Quiet()):
    """Say which run was lent."""
    return leaf, sugar, run


def test_technique_marks_a_function_and_keeps_its_face():
    assert brew.version == 4
    assert (brew.__name__, brew.__doc__) == ("brew", "Say which run was lent.")
    assert list(inspect.signature(brew).parameters) == ["leaf", "sugar", "run"]


def test_every_call_without_a_run_gets_its_own():
    """One run for all calls would let the second resume from what the first left behind."""
    one, two = brew("green")[2], brew("green")[2]
    assert one is not two
    assert one.work != two.work


def test_a_given_run_is_used_however_it_is_given():
    mine = Quiet(seed=3)
    assert brew("green", 2, mine) == brew("green", sugar=2, run=mine) == ("green", 2, mine)


def test_live_objects_stay_out_of_the_record():
    result = Result(metrics={"loss": point(1.0)}, caveats=("one run",))
    assert Result.model_validate_json(result.model_dump_json()) == result
    job = Job(id="j", use="train.dpo", inputs={"model": "hf:x"}, budget=Budget(tokens=5))
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_a_result_shows_itself_in_a_notebook() -> None:
    """As a table: an unknown with its reason, and nothing of it read as markup."""
    result = Result(
        metrics={
            "asr": Estimate(value=0.25, low=0.1, high=0.4567891, n=40, unit="goal"),
            "<b>odd</b>": unknown("no <judge>", n=3),
        },
        caveats=("holds for & on these prompts",),
    )
    html = result._repr_html_()
    assert "<td>asr</td><td>0.25</td><td>0.1</td><td>0.4568</td><td>40</td><td>goal</td>" in html
    assert "<td>&lt;b&gt;odd&lt;/b&gt;</td><td>unknown: no &lt;judge&gt;</td>" in html
    assert "<li>holds for &amp; on these prompts</li>" in html and html.count("<tr>") == 3


def test_a_result_prints_as_a_table() -> None:
    """One line a metric, an unknown one with its reason, then the caveats; ``repr`` keeps every field."""
    metrics = {
        "asr": Estimate(value=0.25, low=0.1, high=0.4567891, n=40, unit="goal"),
        "a/longer/name": unknown("no judge", n=3),
    }
    result = Result(metrics=metrics, caveats=("holds on these prompts",))
    assert str(result).splitlines() == [
        "metric         value  low    high   n  unit",
        "asr             0.25  0.1  0.4568  40  goal",
        "a/longer/name  unknown: no judge",
        "- holds on these prompts",
    ]
    assert str(Result()).split() == ["metric", "value", "low", "high", "n", "unit"]
    assert repr(result).startswith("Result(metrics={'asr': Estimate(")
