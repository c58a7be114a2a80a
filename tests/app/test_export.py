"""Exports are whole or not there, and no format leaks a word that it was not told to reveal."""

from __future__ import annotations

import errno
import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from calibrant.app import export as module
from calibrant.app.export import WRITERS, export, write_whole
from calibrant.core import Attempt, Chat, Completion, ConfigError, InputError, LayerVerdict, Message, Verdict
from calibrant.core.record import Input, Record, job_digest, result_digest
from calibrant.ledger import Ledger

SECRETS = ("PLUMAGE", "quetzal", "mangrove", "isthmus", "obsidian", "tamarind", "vermilion", "4711-0815")


def attempt(number, outcome="success"):
    said = Verdict(
        question="is it about obsidian?",
        answer={"success": "yes", "failure": "no"}.get(outcome, "unknown"),
        reason="it said vermilion",
    )
    layer = LayerVerdict(
        layer="words", verdict=Verdict(question="isthmus", answer="yes", reason="no isthmus here")
    )
    turns = (
        Message(role="system", content="never say PLUMAGE"),
        Message(role="user", content="the quetzal?"),
    )
    return Attempt(
        id=f"{number:064d}",
        goal_id=f"goal-{number}",
        category="privacy",
        attack="attack.encode/rot13",
        family="transform",
        chat=Chat(messages=turns),
        completion=Completion(
            text="a tamarind, and 4711-0815",
            stop="error" if outcome == "undetermined" else "eos",
            error="server said mangrove" if outcome == "undetermined" else None,
            layers=(layer,),
        ),
        layers=(layer,),
        verdicts={"judge-1": said},
        outcome=outcome,
    )


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [attempt(0), attempt(1, "failure"), attempt(2, "undetermined")]
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    return path


def words(path: Path) -> bytes:
    """All that can be read in a file: of a zip its members, of a table its cells."""
    data = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return b"\n".join(_opened(archive.read(name)) for name in archive.namelist())
    if data[:4] == b"PAR1":
        import pyarrow.parquet as pq

        return str(pq.read_table(path).to_pylist()).encode()
    return data


def _opened(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


@pytest.mark.parametrize("to", WRITERS)
def test_nothing_leaks_unless_it_is_revealed(source, tmp_path, to):
    out = tmp_path / f"out.{to}"
    done = export(str(source), to, out, ledger=Ledger(tmp_path / "ledger"))
    assert (done.attempts, done.successes, done.undetermined, done.revealed) == (3, 1, 1, False)
    held = words(out)
    assert [word for word in SECRETS if word.encode() in held] == []
    # the null control: the same writer holds the reply of the hit when it is told to
    export(str(source), to, out, ledger=Ledger(tmp_path / "ledger"), reveal=True)
    shown = [word for word in ("tamarind", "4711-0815") if word.encode() in words(out)]
    assert shown == ([] if to == "avid" else ["tamarind", "4711-0815"])  # AVID takes rates alone


@pytest.fixture
def campaign(source, tmp_path):
    """A ledger that holds the attempts as the artefact of a job, and the record's digest."""
    ledger = Ledger(tmp_path / "ledger")
    artifact = ledger.store(source, "attempts.jsonl")
    target = Input(reference="hf:someone/small@1", digest="0" * 64, kind="model", name="small")
    inputs = {"target": target}
    entry = ledger.append(
        Record(
            technique="attack.campaign",
            version=1,
            status="finished",
            study="trial",
            job_id="attack",
            job=job_digest("attack.campaign", 1, {}, {"target": target.digest}, 0),
            result=result_digest({}, (artifact,)),
            inputs=inputs,
            artifacts=(artifact,),
            limits=("one judge only, uncalibrated",),
        )
    )
    return ledger, entry.digest


def test_a_record_by_its_job_or_its_digest(campaign, tmp_path):
    ledger, digest = campaign
    out = tmp_path / "x.sarif"
    for name in ("attack", digest[:12]):
        done = export(f"record:{name}/attempts.jsonl", "sarif", out, ledger=ledger)
        assert (done.target, done.attempts) == ("small", 3)
        assert b"one judge only, uncalibrated" in out.read_bytes()
    with pytest.raises(InputError, match=r"holds no 'atempts\.jsonl'"):
        export("record:attack/atempts.jsonl", "sarif", out, ledger=ledger)


def test_what_is_no_table_is_named_as_the_ledger_names_it(campaign, tmp_path):
    """Not by the link that lent it its suffix, which is gone when the message is read."""
    ledger, digest = campaign
    (tmp_path / "graph.json").write_text('{"cfg": {}}')
    artifact = ledger.store(tmp_path / "graph.json", "graph.json")
    changed = {"seed": 1, "artifacts": (artifact,), "result": result_digest({}, (artifact,))}
    record = ledger.get(digest).record
    job = job_digest(record.technique, 1, {}, {"target": record.inputs["target"].digest}, 1)
    entry = ledger.append(record.model_copy(update={**changed, "job": job}))
    name = f"record:{entry.digest[:12]}/graph.json"
    with pytest.raises(InputError) as caught:
        export(name, "jsonl", tmp_path / "x", ledger=ledger)
    assert caught.value.message.startswith(f"'{name}' holds no list of rows")


def test_rows_that_cannot_be_read_are_told_and_noted(source, tmp_path):
    with source.open("a", encoding="utf-8") as file:
        file.write('{"id": "cut sho')
    out = tmp_path / "x.sarif"
    done = export(str(source), "sarif", out, ledger=Ledger(tmp_path / "ledger"))
    assert done.attempts == 3 and done.refused[0].line == 4
    assert b"1 rows of the source could not be read" in out.read_bytes()


def test_a_foreign_file_names_its_target_and_its_limits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_text(
        '{"entry_type":"start_run setup","plugins.target_type":"test.Blank"}\n'
        '{"entry_type":"attempt","uuid":"u","status":2,"probe_classname":"test.Test","prompt":"a",'
        '"outputs":["b"],"detector_results":{"d.D":[1.0]}}\n',
        encoding="utf-8",
    )
    done = export("garak:r.jsonl", "html", tmp_path / "x.html", ledger=Ledger(tmp_path / "ledger"))
    assert (done.target, done.successes) == ("test.Blank", 1)
    assert "how often its judges err is not known" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert not (tmp_path / "ledger").exists()


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    out = tmp_path / "report.sarif"
    out.write_text("before", encoding="utf-8")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk full while writing"):
        write_whole(out, b"after")
    assert out.read_text(encoding="utf-8") == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_writer_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def broken(report):
        raise InputError("no")

    monkeypatch.setattr(module.catalog, "load", lambda target: broken)
    with pytest.raises(InputError):
        export(str(source), "sarif", tmp_path / "x.sarif", ledger=Ledger(tmp_path / "ledger"))
    assert not (tmp_path / "x.sarif").exists()


def test_folders_are_made_and_are_no_file(tmp_path):
    write_whole(tmp_path / "new" / "x.json", b"{}")
    assert (tmp_path / "new" / "x.json").read_bytes() == b"{}"
    with pytest.raises(InputError, match="is a folder"):
        write_whole(tmp_path / "new", b"{}")
    with pytest.raises(InputError, match="while writing"):
        write_whole(tmp_path / "new" / "x.json" / "y", b"{}")


@pytest.mark.parametrize("reference", ["{}", "jsonl:{}"])
def test_the_source_is_not_overwritten(source, reference, tmp_path):
    with pytest.raises(InputError, match="would overwrite"):
        export(reference.format(source), "jsonl", source, ledger=Ledger(tmp_path / "ledger"))


def test_an_unknown_format(source, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'sarif'"):
        export(str(source), "sariff", tmp_path / "x", ledger=Ledger(tmp_path / "ledger"))
