from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import rfc8785

from calibrant.core.digest import digest
from calibrant.core.record import Artifact, Record
from calibrant.ledger import Ledger, verify

Make = Callable[..., Record]


@pytest.fixture
def filled(ledger: Ledger, record: Make, tmp_path: Path) -> Ledger:
    """An intent and two records; a folder of 9 + 4 bytes, a file of 4 that equals one in it, a timing."""
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights").write_bytes(b"rain rain")
    (source / "config").write_bytes(b"cold")
    (tmp_path / "notes").write_bytes(b"cold")
    (tmp_path / "timing").write_bytes(b"1 s")
    model, notes = ledger.store(source, "model"), ledger.store(tmp_path / "notes", "notes.txt")
    ledger.append(record(technique="intent", version=1, job="e" * 64, metrics={}))
    ledger.append(record(seed=1, artifacts=(model, ledger.store(tmp_path / "timing", "timing.json"))))
    ledger.append(record(seed=2, artifacts=(notes,)))
    return ledger


def artifact(ledger: Ledger, seq: int, name: str) -> Artifact:
    return next(a for a in ledger.entries()[seq].record.artifacts if a.name == name)


def rewrite(ledger: Ledger, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = ledger.root / "records.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))


def edited(line: bytes, change: Callable[[dict], None]) -> bytes:
    """The line after a change by somebody who writes canonical JSON."""
    statement = json.loads(line)
    change(statement)
    return rfc8785.dumps(statement)


def test_an_intact_ledger(filled: Ledger):
    report = verify(filled.root)
    assert (report.problems, report.notices) == ((), ())
    assert (report.records, report.artifacts, report.bytes) == (3, 3, 9 + 4 + 3)
    assert report.verdict.answer == "yes"
    filled.open(artifact(filled, 1, "model"))
    assert verify(filled.root) == report


def test_nothing_is_not_intact(tmp_path: Path):
    report = verify(tmp_path / "none")
    assert (report.problems, report.records, report.verdict.answer) == ((), 0, "unknown")
    assert not (tmp_path / "none").exists()


def test_bytes_that_were_not_read_are_not_called_intact(filled: Ledger):
    assert verify(filled.root, deep=False).verdict.answer == "unknown"


def test_a_flipped_byte_is_found_by_the_deep_check_only(filled: Ledger):
    path = filled.open(artifact(filled, 2, "notes.txt"))
    path.chmod(0o644)
    path.write_bytes(b"bold")
    problems = verify(filled.root).problems
    assert len(problems) == 2  # the folder's 'config' and 'notes.txt' are the same stored file
    assert problems[0].startswith("line 2: artefact 'model': altered: config")
    assert problems[1].startswith("line 3: artefact 'notes.txt': altered")
    assert verify(filled.root).verdict.answer == "no"
    shallow = verify(filled.root, deep=False)
    assert (shallow.problems, shallow.verdict.answer) == ((), "unknown")


def test_a_missing_and_a_resized_file_are_found_without_reading(filled: Ledger):
    filled.open(artifact(filled, 1, "timing.json")).unlink()
    path = filled.open(artifact(filled, 2, "notes.txt"))
    path.chmod(0o644)
    path.write_bytes(b"colder")
    problems = verify(filled.root, deep=False).problems
    assert [problem.split(":")[0] for problem in problems] == ["line 2", "line 2", "line 3"]
    assert "has 15 bytes, recorded were 13" in problems[0]
    assert "'timing.json': missing" in problems[1]
    assert "has 6 bytes, recorded were 4" in problems[2]


def test_an_opened_folder_is_compared_too(filled: Ledger):
    opened = filled.open(artifact(filled, 1, "model"))
    (opened / "extra").write_text("x")
    (opened / "config").unlink()
    problems = verify(filled.root).problems
    assert [problem.rsplit(": ")[-1] for problem in problems] == ["config", "extra"]
    shutil.rmtree(opened)
    assert verify(filled.root).problems == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["predicate"]["metrics"]["dry"].update(value=0.1), "result digest"),
        (lambda s: s["predicate"]["metrics"].clear(), "result digest"),
        (lambda s: s["predicate"]["artifacts"].pop(0), "result digest"),
        (lambda s: s["predicate"]["artifacts"][0].update(volatile=True), "result digest"),
        (lambda s: s["predicate"].update(seed=7), "job digest"),
        (lambda s: s["predicate"].update(version=2), "job digest"),
        (lambda s: s["predicate"]["config"].update(steps=99), "job digest"),
        (lambda s: s["predicate"].update(inputs={"m": {"reference": "x", "digest": "a" * 64}}), "job digest"),
        (lambda s: s["subject"][0].update(name="another"), "subject"),
        (lambda s: s.update(extra=1), "beside it"),
        (lambda s: s["predicate"].update(extra=1), "not a record"),
        (lambda s: s["predicate"].update(status="fine"), "not a record"),
        (lambda s: s["predicate"].pop("job"), "not a record"),
        (lambda s: s.update(predicateType="urn:other"), "unknown kind"),
        (lambda s: s.pop("_type"), "not an in-toto"),
        (lambda s: s["predicate"]["artifacts"][0]["files"].update({"../up": "a" * 64}), "outside"),
    ],
)
def test_an_edit_is_found(filled: Ledger, change: Callable[[dict], None], words: str):
    rewrite(filled, lambda lines: [lines[0], edited(lines[1], change), lines[2]])
    problems = verify(filled.root).problems
    assert any(problem.startswith("line 2: ") and words in problem for problem in problems), problems


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"_type":' + b"9" * 5000 + b"}"],
)
def test_a_line_that_is_no_statement_is_a_problem_not_a_crash(filled: Ledger, line: bytes):
    rewrite(filled, lambda lines: [line, *lines])
    report = verify(filled.root)
    assert report.problems == ("line 1: not an in-toto statement in JSON",)
    assert report.records == 4


def test_other_bytes_for_the_same_statement_are_a_problem(filled: Ledger):
    rewrite(filled, lambda lines: [json.dumps(json.loads(lines[0])).encode(), *lines[1:]])
    (problem,) = verify(filled.root).problems
    assert problem.startswith("line 1: not in canonical form")


def test_a_repeated_record_is_a_problem(filled: Ledger):
    rewrite(filled, lambda lines: [*lines, lines[1]])
    assert verify(filled.root).problems == ("line 4: the same record as line 2",)


def test_a_cut_last_line_is_a_notice(filled: Ledger):
    with (filled.root / "records.jsonl").open("ab") as file:
        file.write(b'{"_type"')
    report = verify(filled.root)
    assert report.problems == ()
    assert report.notices == ("the last line was cut short (8 bytes); the next record repairs it",)
    assert report.verdict.answer == "yes"


def test_what_cannot_be_seen(filled: Ledger):
    """Without a log and witnesses a removed line shows at most as files without a record, and order not."""
    rewrite(filled, lambda lines: [lines[0], lines[2], lines[1]])
    assert verify(filled.root).notices == ()
    assert verify(filled.root).verdict.answer == "yes"
    rewrite(filled, lambda lines: lines[:2])
    report = verify(filled.root)
    assert report.problems == ()
    assert report.notices[0].startswith("2 stored files are named by no record")
    assert "What it cannot see: a whole line that was removed" in str(sys.modules[verify.__module__].__doc__)


def test_a_line_of_an_older_writer_stays_intact(filled: Ledger):
    """Old lines lack a field that `Estimate` or `Record` gained later; their digests hold all the same."""

    def older(statement: dict) -> None:
        del statement["predicate"]["hardware"]
        del statement["predicate"]["metrics"]["dry"]["null_value"]
        stored = {a["name"]: a["digest"] for a in statement["predicate"]["artifacts"] if not a["volatile"]}
        result = digest({"metrics": statement["predicate"]["metrics"], "artifacts": stored})
        statement["predicate"]["result"] = statement["subject"][0]["digest"]["sha256"] = result

    rewrite(filled, lambda lines: [lines[0], edited(lines[1], older), lines[2]])
    assert verify(filled.root).problems == ()
    assert len(filled.entries()) == 3


@pytest.mark.parametrize("name", ["verify", "layout"])
def test_the_verifier_uses_nothing_of_the_writer(name: str):
    tree = ast.parse(Path(str(sys.modules[f"calibrant.ledger.{name}"].__file__)).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"calibrant.ledger", "calibrant.ledger.store", "calibrant.ledger.objects"}
