from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.core.digest import canonical, digest, digest_bytes
from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.estimate import Estimate
from calibrant.core.record import Artifact, Failure, Input, Record
from calibrant.ledger import Ledger, verify

Make = Callable[..., Record]


def test_a_missing_ledger_is_empty_and_reading_does_not_make_it(ledger: Ledger):
    assert ledger.entries() == ()
    assert ledger.evidence().entries == ()
    assert ledger.find("a" * 64) is None
    assert not ledger.root.exists()


def test_append_writes_the_canonical_line_and_the_digest_of_the_line_before_it(ledger: Ledger, record: Make):
    first, second = record(seed=1), record(seed=2)
    entries = ledger.append(first), ledger.append(second)
    lines = (ledger.root / "records.jsonl").read_bytes().splitlines()
    read = [json.loads(line) for line in lines]
    assert [statement.pop("previous") for statement in read] == ["0" * 64, digest_bytes(lines[0])]
    assert [digest(statement) for statement in read] == [first.digest, second.digest]
    assert [entry.digest for entry in entries] == [first.digest, second.digest]
    assert [entry.seq for entry in entries] == [0, 1]
    assert ledger.entries() == entries == Ledger(ledger.root).entries()


def test_a_record_has_the_same_digest_in_every_ledger(ledger: Ledger, record: Make, tmp_path: Path):
    ledger.append(record(seed=1))
    other = Ledger(tmp_path / "other")
    assert other.append(record(seed=2)).digest == ledger.append(record(seed=2)).digest
    # What was read back is the same record as well, so it is not written again.
    assert ledger.append(other.entries()[0].record).seq == 1
    assert len(ledger.entries()) == 2


def test_a_ledger_from_before_there_were_links_opens_and_goes_on(ledger: Ledger, record: Make):
    ledger.root.mkdir()
    path = ledger.root / "records.jsonl"
    old = [canonical(record(seed=seed).statement()) for seed in range(2)]
    path.write_bytes(b"".join(line + b"\n" for line in old))
    assert [entry.digest for entry in ledger.entries()] == [digest_bytes(line) for line in old]
    assert ledger.append(record(seed=1)).seq == 1  # the same record, to the byte
    assert ledger.append(record(seed=2)).seq == 2
    assert json.loads(path.read_bytes().splitlines()[2])["previous"] == digest_bytes(old[1])
    assert len(Ledger(ledger.root).entries()) == 3


def test_round_trip_keeps_the_digest(ledger: Ledger, record: Make):
    """NaN becomes null, integers from 2^53 strings; 1e17 is written without a point and stays a float."""
    model = Input(reference="hf:Bär/模型@1", digest="c" * 64, kind="model", name="Bär \u2028 模型")
    odd = record(
        config={"seed": 2**60, "edge": -(2**53), "far": 1e17, "huge": 1e300, "one": 1.0, "nan": math.nan,
                "text": 'naïve "q" \\ \u0007 🌧', "deep": [{"ü": None, "a": [True, -0.0]}]},
        seed=2**53 + 1, inputs={"model": model}, cost={"flops": 1e18, "queries": 3}, seconds=2.0,
        metrics={"lost": Estimate(value=math.nan, high=math.inf, reason="no answer"),
                 "big": Estimate(value=1e17, n=2**53 - 1)},
    )  # fmt: skip
    entry = ledger.append(odd)
    line = (ledger.root / "records.jsonl").read_bytes()[:-1]
    again = ledger.entries()[0].record
    statement = json.loads(line, parse_int=float_if_big)
    assert entry.digest == odd.digest == again.digest == Record.from_statement(statement).digest
    assert again.metrics["lost"].value is None
    assert again.metrics["lost"].reason == "no answer"
    assert again.config["seed"] == str(2**60)
    assert again.config["far"] == 1e17
    assert again.seed == 2**53 + 1
    assert verify(ledger.root).verdict.answer == "yes"


def float_if_big(text: str) -> int | float:
    return float(text) if len(text.lstrip("-")) > 16 else int(text)


def test_a_record_that_would_not_read_back_is_refused(ledger: Ledger, record: Make):
    sound = record()
    for broken, words in [
        (sound.model_copy(update={"result": "0" * 64}), "result digest"),
        (sound.model_copy(update={"seed": 5}), "job digest"),
        (record(cost={"flops": math.nan}), "cost"),
        (sound.model_copy(update={"config": {"x": 1}}), "job digest"),
        (record(artifacts=(Artifact(name="a", digest="../../x", bytes=1),)), "no digest"),
        (record(artifacts=(Artifact(name="a", digest="a" * 64, bytes=1),) * 2), "two artefacts"),
        (record(metrics={"x": Estimate(value=0.1, level=2.0, n=9)}), "level of 2"),
    ]:
        with pytest.raises(EvidenceError, match=words):
            ledger.append(broken)
    assert not ledger.root.exists()


def test_the_same_record_is_written_once(ledger: Ledger, record: Make):
    first = ledger.append(record())
    ledger.append(record(seed=9))
    assert ledger.append(record()) == first
    assert len(ledger.entries()) == 2


def test_a_cut_last_line_is_ignored_then_repaired_and_kept_aside(ledger: Ledger, record: Make):
    ledger.append(record(seed=1))
    path = ledger.root / "records.jsonl"
    with path.open("ab") as file:
        file.write(b'{"_type":"https://in-toto')
    assert len(ledger.entries()) == 1
    assert ledger.append(record(seed=2)).seq == 1
    assert [entry.record.seed for entry in ledger.entries()] == [1, 2]
    assert (ledger.root / "records.cut").read_bytes() == b'{"_type":"https://in-toto\n'
    assert path.read_bytes().endswith(b"}\n")


def test_a_first_line_cut_short_is_repaired_too(ledger: Ledger, record: Make):
    ledger.root.mkdir()
    (ledger.root / "records.jsonl").write_bytes(b"{")
    assert ledger.append(record()).seq == 0
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"value":0.5', b'"value":0.1'),
        (b'"steps":3', b'"steps":4'),
        (b'"steps":3', b'"steps": 3'),
        (b'"train.rain","', b'"train.snow","'),
        (b'"status":"finished"', b'"status":"splendid"'),
        (b"urn:calibrant:record:v1", b"urn:calibrant:record:v9"),
        (b'{"_type"', b'{"Atype":1,"_type"'),
        (b'{"_type"', b"\xff"),
    ],
)
def test_an_altered_inner_line_is_named(ledger: Ledger, record: Make, old: bytes, new: bytes):
    for seed in range(3):
        ledger.append(record(seed=seed))
    path = ledger.root / "records.jsonl"
    lines = path.read_bytes().split(b"\n")
    assert old in lines[1]
    lines[1] = lines[1].replace(old, new, 1)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(EvidenceError, match="line 2"):
        Ledger(ledger.root).entries()
    assert verify(ledger.root).problems[0].startswith("line 2: ")


def test_entries_are_cached_and_see_what_another_writer_adds(ledger: Ledger, record: Make):
    ledger.append(record(seed=1))
    first = ledger.entries()
    assert ledger.entries() is first
    Ledger(ledger.root).append(record(seed=2))
    assert [entry.record.seed for entry in ledger.entries()] == [1, 2]


def test_find_takes_the_latest_finished_entry_with_all_artefacts(
    ledger: Ledger, record: Make, tmp_path: Path
):
    job = record().job
    ledger.append(record(status="failed", failure=Failure(type="X", message="rain")))
    assert ledger.find(job) is None
    ledger.append(record(recorded_at="1"))
    (tmp_path / "notes.txt").write_text("dry")
    kept = ledger.store(tmp_path / "notes.txt", "notes.txt")
    ledger.append(record(recorded_at="2", artifacts=(kept,)))
    ledger.append(record(recorded_at="3", status="interrupted"))
    ledger.append(record(seed=8))
    found = ledger.find(job)
    assert found is not None
    assert found.seq == 2
    ledger.open(kept).unlink()
    found = ledger.find(job)
    assert found is not None
    assert found.seq == 1


def test_get_by_any_digest(ledger: Ledger, record: Make):
    a = ledger.append(record(seed=1, metrics={"x": Estimate(value=1)}))
    b = ledger.append(record(seed=1, metrics={}, status="failed"))
    c = ledger.append(record(seed=2, metrics={"x": Estimate(value=2)}, job_id="second"))
    assert ledger.get(a.digest[:10]) == a
    assert ledger.get(b.digest.upper()) == b
    assert ledger.get(a.record.job[:8]) == a  # the failed retry of the same job is later, and not meant
    assert ledger.get(c.record.result[:8]) == c


def test_get_refuses_what_it_cannot_tell(ledger: Ledger, record: Make):
    a = ledger.append(record(seed=1))
    b = ledger.append(record(seed=2))  # equal metrics: the same result digest from two jobs
    with pytest.raises(InputError, match="fits 2 records") as caught:
        ledger.get(a.record.result)
    assert a.digest[:12] in str(caught.value)
    assert b.digest[:12] in str(caught.value)
    unused = next(p for p in ("000000", "ffffff") if not a.digest.startswith(p))
    for prefix, words in [(unused, "no record"), (a.digest[:5], "not a digest"), ("zzzzzz", "not a digest"),
                          ("a" * 65, "not a digest"), ("", "not a digest")]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            ledger.get(prefix)


def test_work_survives_and_is_cleared_by_its_job_only(ledger: Ledger):
    one, two = "1" * 64, "2" * 64
    (ledger.work(one) / "step").write_text("7")
    ledger.work(two)
    assert (Ledger(ledger.root).work(one) / "step").read_text() == "7"
    ledger.clear_work(one)
    ledger.clear_work(one)
    assert not (ledger.root / "work" / one).exists()
    assert (ledger.root / "work" / two).is_dir()
    for wrong in ("", ".", "../objects"):
        with pytest.raises(InputError):
            ledger.clear_work(wrong)


# Short writes, as a loaded disk may give: without the lock the pieces of two lines would mix.
_WRITER = """
import os, sys
from pathlib import Path
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("records", sys.argv[1])
records = module_from_spec(spec)
spec.loader.exec_module(records)
from calibrant.ledger import Ledger
ledger, write = Ledger(Path(sys.argv[2])), os.write
os.write = lambda handle, data: write(handle, data[:100])
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    ledger.append(records.make_record(seed=number, study=sys.argv[3]))
"""


def test_two_processes_append_at_once(ledger: Ledger):
    helper = str(Path(__file__).with_name("conftest.py"))
    command = [sys.executable, "-c", _WRITER, helper, str(ledger.root)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("left", "right")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=600)
        assert writer.returncode == 0
    entries = ledger.entries()
    for name in ("left", "right"):
        assert [e.record.seed for e in entries if e.record.study == name] == list(range(50))
    assert verify(ledger.root).problems == ()


def test_a_full_disk_takes_the_half_line_back(ledger: Ledger, record: Make, monkeypatch: pytest.MonkeyPatch):
    ledger.append(record(seed=1))
    path = ledger.root / "records.jsonl"
    before, write = path.read_bytes(), os.write
    calls = []

    def half(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(InputError, match="disk full") as caught:
        ledger.append(record(seed=2))
    assert "free space, then run the same command again: what is finished is kept" in caught.value.hint
    assert len(calls) == 2
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert ledger.append(record(seed=2)).seq == 1


def test_a_root_that_is_a_file_is_told(tmp_path: Path, record: Make):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="while writing"):
        Ledger(tmp_path / "file").append(record())
    with pytest.raises(InputError, match="while reading"):
        Ledger(tmp_path / "file").entries()
