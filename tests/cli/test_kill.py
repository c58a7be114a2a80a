"""Kills, interrupts and full disks in the middle of a run: the ledger is intact and the study resumes."""

from __future__ import annotations

import resource
import signal
import time

import pytest

from calibrant.ledger import Ledger, verify

COUNTS = "".join(
    f'[[job]]\nid = "{name}"\nuse = "slow.count"\nseeds = [0, 1]\nconfig = {{ n = {n} }}\n'
    for name, n in (("a", 3), ("b", 4))
)
ONE = '[[job]]\nid = "one"\nuse = "slow.count"\nconfig = { n = 2, bytes = 300_000 }\n'
STEPS = [f"{seed}/{step}" for n in (3, 4) for seed in (0, 1) for step in range(n)]


@pytest.fixture
def counts(tmp_path):
    def write(text=COUNTS):
        path = tmp_path / "counts.toml"
        path.write_text(f'name = "counts"\n{text}')
        return path

    return write


WATCHDOG = 600
"""Seconds after which a test gives up: against a hang, and no measure of anything."""


def wait_for(condition, process, seconds=WATCHDOG):
    """Poll until ``condition``; False when the process ended first."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)
    return True


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def finished(root):
    return [(e.record.job_id, e.record.seed) for e in Ledger(root).entries() if e.record.status == "finished"]


def results(root):
    entries = Ledger(root).entries()
    return {
        (e.record.job_id, e.record.seed, e.record.result) for e in entries if e.record.status == "finished"
    }


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_comes_to_the_same_results(start, counts, tmp_path):
    study, root, trace = counts(), tmp_path / "killed", tmp_path / "trace"
    for moment in (1, 4, 9, 12):
        process = start("run", study, "--ledger", root)
        wait_for(lambda: len(lines(trace)) >= moment, process)  # noqa: B023
        kill(process)
        assert verify(root).verdict.answer != "no"
    out, err = (process := start("run", study, "--ledger", root)).communicate()
    assert process.returncode == 0, err
    assert "DONE" in out and verify(root).verdict.answer == "yes"
    assert len(finished(root)) == len(set(finished(root))) == 4  # no finished job ran twice
    # What was counted before a kill is not counted again; the step that a kill cut short may be.
    assert list(dict.fromkeys(lines(trace))) == list(dict.fromkeys(STEPS))
    assert len(STEPS) <= len(lines(trace)) <= len(STEPS) + 4
    assert not list((root / "work").iterdir())
    trace.unlink()
    start("run", study, "--ledger", tmp_path / "whole").communicate()
    assert results(root) == results(tmp_path / "whole") and lines(trace) == STEPS


@pytest.mark.slow
def test_a_real_study_that_is_killed_comes_to_the_same_results(start, calibrant, trial, done, tmp_path):
    root = tmp_path / "killed"
    process = start("run", trial, "--ledger", root)
    assert wait_for(lambda: len(lines(root / "records.jsonl")) >= 3, process)  # the intent and two jobs
    kill(process)
    assert verify(root).verdict.answer == "yes"
    assert calibrant("run", trial, "--ledger", root).code == 0
    assert verify(root).verdict.answer == "yes"
    assert results(root) == results(done / "ledger")
    assert len(finished(root)) == len(set(finished(root))) == 7


def test_ctrl_c_gives_one_message_and_the_study_goes_on_later(start, counts, tmp_path):
    study, root, trace = counts(), tmp_path / "ledger", tmp_path / "trace"
    process = start("run", study, "--ledger", root)
    assert wait_for(lambda: len(lines(trace)) >= 4, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3 and out == ""
    assert err.strip() == "Stopped. Finished jobs are kept: run the same command again to resume."
    statuses = [entry.record.status for entry in Ledger(root).entries()]
    assert statuses == ["finished", "interrupted"] and verify(root).verdict.answer == "yes"
    process = start("run", study, "--ledger", root)
    out, _ = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 0 and "1 of 4 runs were already finished" in out
    assert len(finished(root)) == 4


def limited(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_in_a_job_is_told_and_the_study_resumes(start, counts, tmp_path):
    study, root = counts(ONE), tmp_path / "ledger"
    process = start("run", study, "--ledger", root, preexec_fn=limited(100_000))
    out, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3 and "Traceback" not in err
    assert "disk full in job 'one'" in out and "free space" in out
    assert [e.record.status for e in Ledger(root).entries()] == ["failed"]
    assert verify(root).verdict.answer == "yes"
    process = start("run", study, "--ledger", root)
    process.communicate(timeout=WATCHDOG)
    assert process.returncode == 0 and finished(root) == [("one", 0)]


@pytest.mark.slow
def test_a_disk_too_full_for_the_record_is_told(start, counts, tmp_path):
    study, root = counts(COUNTS), tmp_path / "ledger"
    process = start("run", study, "--ledger", root, preexec_fn=limited(1000))
    out, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3 and out == ""
    assert err.count("calibrant:") == 1 and "Traceback" not in err and "->" in err
    assert "run the same command again" in err
    assert verify(root).verdict.answer != "no" and finished(root) == []
    process = start("run", study, "--ledger", root)
    process.communicate(timeout=WATCHDOG)
    assert process.returncode == 0 and len(finished(root)) == 4


@pytest.mark.slow
def test_two_processes_do_not_run_one_job_at_once(start, counts, tmp_path):
    study, root, trace = counts(), tmp_path / "ledger", tmp_path / "trace"
    first = start("run", study, "--ledger", root)
    assert wait_for(lambda: lines(trace), first)
    second = start("run", study, "--ledger", root)
    _, second_error = second.communicate(timeout=WATCHDOG)
    _, first_error = first.communicate(timeout=WATCHDOG)
    assert verify(root).verdict.answer == "yes"
    # Either may come upon a job that the other runs; the other goes on to the end.
    refused = [e for p, e in ((first, first_error), (second, second_error)) if p.returncode != 0]
    assert len(refused) < 2 and all("being run by another process" in error for error in refused)
    assert len(finished(root)) == len(set(finished(root))) == 4 and lines(trace) != []
