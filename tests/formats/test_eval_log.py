"""A log is evidence only if its run succeeded and its file is whole; and no failure reads as safe."""

from __future__ import annotations

import math
import zipfile

import pytest

log_module = pytest.importorskip("inspect_ai.log", reason="needs the extra 'inspect'")

from inspect_ai.log import (  # noqa: E402
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalResults,
    EvalSample,
    EvalSpec,
    ProvenanceData,
    edit_score,
    write_eval_log,
)
from inspect_ai.scorer import Score, ScoreEdit  # noqa: E402

from calibrant.core import InputError  # noqa: E402
from calibrant.formats.eval_log import read_eval  # noqa: E402
from calibrant.formats.inspect_log import SCORE, inspect_log  # noqa: E402

FAILED = EvalError(message="the server is down", traceback="", traceback_ansi="")


def sample(name, value=1.0, *, epoch=1, error=None, metadata=None, **more):
    score = (
        Score.unscored(reason=more.pop("reason", "grader_failed")) if value is None else Score(value=value)
    )
    return EvalSample(
        id=name,
        epoch=epoch,
        input=f"what is {name}?",
        target="x",
        scores=None if error else {"hit": score},
        error=error,
        metadata=metadata or {},
        **more,
    )


def a_log(*samples, status="success", epochs=None, ids=None, total=None):
    ids = ids if ids is not None else list(dict.fromkeys(one.id for one in samples))
    return EvalLog(
        status=status,
        eval=EvalSpec(
            created="2026-01-02T00:00:00+00:00",
            task="quiz",
            task_version=3,
            dataset=EvalDataset(name="questions", samples=len(ids), sample_ids=ids),
            model="mockllm/model",
            config=EvalConfig(epochs=epochs),
            packages={"inspect_ai": "0.3.285"},
        ),
        results=EvalResults(total_samples=total or len(samples), completed_samples=len(samples)),
        samples=list(samples),
    )


@pytest.fixture
def write_log(tmp_path):
    def written(*samples, name="log.eval", **about):
        path = tmp_path / name
        write_eval_log(a_log(*samples, **about), str(path), format="eval")
        return path

    return written


def repacked(source, path, keep=lambda name: True, method=zipfile.ZIP_STORED):
    """The log's members, some left out, packed by another method."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", method) as new:
        for member in old.infolist():
            if keep(member.filename):
                new.writestr(member.filename, old.read(member), compress_type=method)
    return path


def test_where_a_log_comes_from_is_told(write_log):
    path = write_log(sample("a"), sample("a/b", 0.0, metadata={"topic": "sums", "deep": {"x": 1}}))
    found = read_eval(path)
    assert (found.task, found.task_version, found.model) == ("quiz", "3", "mockllm/model")
    assert (found.dataset, found.inspect, found.planned) == ("questions", "0.3.285", 2)
    assert len(found.sha256) == 64 and found.eval_id and found.caveats == ()
    rows = {row.id: row for row in found.samples}
    assert rows["a"].values == {"hit": 1.0} and rows["a/b"].values == {"hit": 0.0}
    assert rows["a/b"].metadata == {"topic": "sums"}


def test_the_fingerprint_is_of_the_questions_alone(write_log):
    one = read_eval(write_log(sample("a"), sample("b", 0.0)))
    other = read_eval(write_log(sample("b", 1.0), sample("a", 0.0), name="other.eval"))
    twice = read_eval(write_log(sample("a"), sample("b"), sample("b", epoch=2), name="twice.eval"))
    changed = read_eval(write_log(sample("a"), sample("c"), name="changed.eval"))
    assert one.fingerprint == other.fingerprint == twice.fingerprint != changed.fingerprint
    assert one.sha256 != other.sha256


def test_values_are_read_as_inspect_reads_them(write_log):
    words = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "False": 0.0, "0.25": 0.25}
    found = read_eval(write_log(*(sample(word, word) for word in words), sample("b", True), sample("n", 7)))
    assert {row.id: row.values["hit"] for row in found.samples} == words | {"b": 1.0, "n": 7.0}


def test_what_is_no_number_is_never_made_one(write_log):
    found = read_eval(
        write_log(
            sample("a"),
            sample("label", "GRADE: A"),
            sample("list", [1.0, 2.0]),
            sample("nan", None, reason="refusal"),
            sample("inf", math.inf),
            sample("parts", {"x": 1.0, "y": None}),
        )
    )
    rows = {row.id: row for row in found.samples}
    assert rows["label"].odd == {"hit": "GRADE: A"} and rows["list"].odd == {"hit": "[1.0, 2.0]"}
    assert rows["nan"].unscored == {"hit": "refusal"} and not rows["nan"].values
    assert "hit" in rows["inf"].unscored and not rows["inf"].values
    assert rows["parts"].values == {"hit/x": 1.0} and rows["parts"].unscored == {"hit/y": "no reason given"}
    assert found.scores == ("hit", "hit/x", "hit/y")


def test_two_scores_of_one_name_are_refused(write_log, tmp_path):
    both = sample("a", {"a": 1.0})
    both.scores["hit/a"] = Score(value=0.0)
    with pytest.raises(InputError, match="two scores are called 'hit/a'"):
        read_eval(write_log(both))


def test_half_a_json_text_in_a_sound_zip_is_refused(write_log, tmp_path):
    whole, half = write_log(sample("a"), sample("b")), tmp_path / "half.eval"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(half, "w") as new:
        for member in old.infolist():
            text = old.read(member)
            new.writestr(member.filename, text[: len(text) // 2] if "a_epoch_1" in member.filename else text)
    with pytest.raises(InputError, match="cannot be read as an Inspect log"):
        read_eval(half)


def test_samples_that_failed_or_never_ran_stay(write_log):
    found = read_eval(
        write_log(sample("a"), sample("b", error=FAILED), ids=["a", "b", "c"], epochs=2, total=6)
    )
    assert found.planned == 6
    lost = {(row.id, row.epoch): row.error for row in found.samples if row.lost}
    assert lost["b", 1] == "the server is down"
    assert set(lost) == {("b", 1), ("c", 1), ("a", 2), ("b", 2), ("c", 2)}
    assert any("1 of 6 samples ended in an error" in line for line in found.caveats)
    assert any("4 of 6 planned samples are not in the log" in line for line in found.caveats)


def test_a_success_without_a_single_score_is_refused(write_log):
    path = write_log(sample("a", error=FAILED), sample("b", error=FAILED))
    with pytest.raises(InputError, match=r"none of 2 samples has a score.*the server is down"):
        read_eval(path)
    with pytest.raises(InputError, match="no scorer gave a value"):
        read_eval(write_log(sample("a", None)))


def test_edits_are_told(write_log, tmp_path):
    log = a_log(sample("a"), sample("b"))
    log.eval.eval_id = "e"
    proof = ProvenanceData(author="ann", reason="a slip")
    edit_score(log, "a", "hit", ScoreEdit(value=0.0, provenance=proof), recompute_metrics=False)
    path = tmp_path / "edited.eval"
    write_eval_log(log, str(path), format="eval")
    found = read_eval(path)
    assert [row.edited for row in found.samples if row.id == "a"] == [("hit",)]
    assert any("scores of 1 of 2 samples were edited" in line for line in found.caveats)


@pytest.mark.parametrize("status", ["started", "error", "cancelled"])
def test_only_a_success_is_read(write_log, status):
    with pytest.raises(InputError, match=f"status '{status}'"):
        read_eval(write_log(sample("a"), status=status))


def test_a_run_that_was_killed_is_never_read_as_finished(write_log, tmp_path):
    path = repacked(write_log(sample("a")), tmp_path / "killed.eval", lambda name: name != "header.json")
    with pytest.raises(InputError, match=r"cannot be read as an Inspect log|status 'started'"):
        read_eval(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(write_log, share):
    path = write_log(*(sample(f"s{n}") for n in range(20)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="no whole Inspect log"):
        read_eval(path)


@pytest.mark.parametrize("name", ["header.json", "samples/s7_epoch_1.json", "summaries.json"])
def test_a_flipped_byte_is_refused(write_log, name):
    path = write_log(*(sample(f"s{n}") for n in range(20)))
    with zipfile.ZipFile(path) as packed:
        member = packed.getinfo(name)
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(name) + member.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"no whole Inspect log|fails its checksum"):
        read_eval(path)


def test_methods_of_packing(write_log, tmp_path):
    source = write_log(sample("a"))
    with zipfile.ZipFile(source) as packed:
        assert {member.compress_type for member in packed.infolist()} == {93}  # Zstandard
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert read_eval(repacked(source, tmp_path / "other.eval", method=method)).planned == 1
    with pytest.raises(InputError, match="packed by method 14"):
        read_eval(repacked(source, tmp_path / "lzma.eval", method=zipfile.ZIP_LZMA))


def test_no_samples_and_repeated_ones_are_refused(write_log, tmp_path):
    empty = repacked(
        write_log(sample("a")), tmp_path / "empty.eval", lambda name: not name.startswith("samples/")
    )
    with pytest.raises(InputError, match="holds no samples"):
        read_eval(empty)
    twice = write_log(sample("s"), name="twice.eval")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(twice, "a") as packed:
        packed.writestr("samples/s_epoch_1.json", packed.read("samples/s_epoch_1.json"))
    with pytest.raises(InputError, match=r"holds a sample twice: samples/s_epoch_1\.json"):
        read_eval(twice)
    # Inspect writes one member for the ids 1 and '1': the other sample is lost, and is told to be
    assert any("1 of 2 planned" in line for line in read_eval(write_log(sample(1), sample("1"))).caveats)
    with pytest.raises(InputError, match="there is no log"):
        read_eval(tmp_path / "missing.eval")
    (tmp_path / "text.eval").write_text("not a log")
    with pytest.raises(InputError, match="no whole Inspect log"):
        read_eval(tmp_path / "text.eval")


def test_what_we_export_comes_back(report, tmp_path):
    path = tmp_path / "attempts.eval"
    whole = report()
    path.write_bytes(inspect_log(whole))
    found = read_eval(path)
    assert (found.model, found.planned) == ("a model", len(whole.attempts))
    came = {row.metadata["attempt"]: row for row in found.samples}
    for attempt in whole.attempts:
        row = came[attempt.id]
        if attempt.completion.stop == "error":
            assert row.lost
        elif attempt.outcome == "undetermined":
            assert row.unscored == dict.fromkeys(row.unscored, "grader_failed") and SCORE not in row.values
        else:
            assert row.values[SCORE] == float(attempt.outcome == "success")
