from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import rfc8785

from calibrant.core.digest import digest, digest_bytes
from calibrant.core.errors import EvidenceError
from calibrant.core.record import Artifact, Input, Record
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


def relinked(lines: list[bytes]) -> list[bytes]:
    """The lines as somebody writes them who makes every link anew, from the first line to the last."""
    made: list[bytes] = []
    for line in lines:
        statement = json.loads(line)
        statement["previous"] = digest_bytes(made[-1]) if made else "0" * 64
        made.append(rfc8785.dumps(statement))
    return made


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
        (lambda s: s.update(extra=1), "something else in it"),
        (lambda s: s["predicate"].update(extra=1), "not a record"),
        (
            lambda s: s["predicate"].update(status="fine"),
            "not a record: 'status': input should be 'finished'",
        ),
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
    assert report.problems[0] == "line 1: not an in-toto statement in JSON"
    assert report.problems[1].startswith("line 2: does not follow the line before it")
    assert report.records == 4


def test_other_bytes_for_the_same_statement_are_a_problem(filled: Ledger):
    rewrite(filled, lambda lines: [*lines[:-1], json.dumps(json.loads(lines[-1])).encode()])
    (problem,) = verify(filled.root).problems
    assert problem.startswith("line 3: not in canonical form")


def test_a_repeated_record_is_a_problem(filled: Ledger):
    rewrite(filled, lambda lines: relinked([*lines, lines[1]]))
    assert verify(filled.root).problems == ("line 4: the same record as line 2",)


def test_a_cut_last_line_is_a_notice(filled: Ledger):
    with (filled.root / "records.jsonl").open("ab") as file:
        file.write(b'{"_type"')
    report = verify(filled.root)
    assert report.problems == ()
    assert report.notices == ("the last line was cut short (8 bytes); the next record repairs it",)
    assert report.verdict.answer == "yes"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["predicate"].update(status="failed"),
        lambda s: s["predicate"].update(judge={"judge": "exact"}),
        lambda s: s["predicate"].update(limits=["none"]),
        lambda s: s["predicate"].update(recordedAt="2025-01-01T00:00:00Z"),
        lambda s: s["predicate"].update(failure={"type": "X", "message": "rain", "hint": ""}),
        lambda s: s["predicate"].update(study="another", jobId="another"),
        lambda s: s["predicate"].update(cost={"queries": 1.0}),
        lambda s: s.update(previous="a" * 64),
        lambda s: s.pop("previous"),
    ],
    ids=["status", "judge", "limits", "time", "failure", "study", "cost", "another-link", "no-link"],
)
def test_an_edit_that_no_digest_in_its_line_covers_is_found(filled: Ledger, change: Callable[[dict], None]):
    """Every digest that stands in the line still follows from the rest of it; the next line tells."""
    rewrite(filled, lambda lines: [lines[0], edited(lines[1], change), lines[2]])
    report = verify(filled.root)
    assert report.problems[-1].startswith("line 3: does not follow the line before it: line 2 was edited")
    assert report.verdict.answer == "no"
    with pytest.raises(EvidenceError, match="does not follow"):
        Ledger(filled.root).entries()


def test_another_reference_of_the_same_data_is_found(ledger: Ledger, record: Make):
    """A gate's rule goes by the reference of the goals; their digest alone enters the job's."""
    goals = Input(reference="jsonl:mine.jsonl", digest="a" * 64, kind="data")
    for seed in range(2):
        ledger.append(record(seed=seed, inputs={"goals": goals}))
    change = lambda s: s["predicate"]["inputs"]["goals"].update(reference="testbed:goals/heldout")  # noqa: E731
    rewrite(ledger, lambda lines: [edited(lines[0], change), lines[1]])
    (problem,) = verify(ledger.root).problems
    assert problem.startswith("line 2: does not follow")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2"),
        (lambda lines: [lines[0], *lines[2:]], "line 2"),
        (lambda lines: lines[1:], "line 1"),
        (lambda lines: [lines[0], relinked([lines[0], lines[3]])[1], *lines[1:3]], "line 3"),
    ],
    ids=["swapped", "cut-in-the-middle", "cut-at-the-head", "put-in"],
)
def test_lines_moved_taken_out_and_put_in_are_found(
    filled: Ledger, record: Make, change: Callable[[list[bytes]], list[bytes]], line: str
):
    filled.append(record(seed=3))
    rewrite(filled, change)
    problems = [problem for problem in verify(filled.root).problems if "follow" in problem]
    assert problems[0].startswith(f"{line}: does not follow the line before it")


def test_what_cannot_be_seen(filled: Ledger):
    """Nothing holds the last line, nor the rest of a ledger that is rewritten to its end; its head tells."""
    whole = verify(filled.root)
    assert "the last line is held by no line after it" in whole.verdict.reason
    assert whole.head == digest_bytes((filled.root / "records.jsonl").read_bytes().splitlines()[-1])
    failed = lambda s: s["predicate"].update(status="failed")  # noqa: E731
    rewrite(filled, lambda lines: [*lines[:2], edited(lines[2], failed)])
    assert (verify(filled.root).verdict.answer, verify(filled.root).head == whole.head) == ("yes", False)
    rewrite(filled, lambda lines: relinked([edited(lines[0], failed), *lines[1:]]))
    assert (verify(filled.root).verdict.answer, verify(filled.root).head == whole.head) == ("yes", False)
    rewrite(filled, lambda lines: lines[:1])
    report = verify(filled.root)
    assert (report.problems, report.head == whole.head) == ((), False)
    assert report.notices[0].startswith("3 stored files are named by no record")
    assert "What it cannot see: the last line" in str(sys.modules[verify.__module__].__doc__)


def test_lines_from_before_there_were_links_are_not_called_intact(filled: Ledger, record: Make):
    """So a ledger whose links were all taken off is not called intact either."""
    rewrite(filled, lambda lines: [edited(line, lambda s: s.pop("previous")) for line in lines])
    report = verify(filled.root)
    assert (report.problems, report.unlinked, report.verdict.answer) == ((), 3, "unknown")
    assert report.verdict.reason.startswith("lines 1 to 3 carry no link")
    filled.append(record(seed=3))
    assert (verify(filled.root).problems, verify(filled.root).unlinked) == ((), 3)
    change = lambda s: s["predicate"].update(limits=["x"])  # noqa: E731
    rewrite(filled, lambda lines: [*lines[:2], edited(lines[2], change), lines[3]])
    assert verify(filled.root).problems[0].startswith("line 4: does not follow")


IMPOSSIBLE = {
    "dry": [
        {"level": 2.0}, {"level": 0.0}, {"n": 1e17}, {"n": "1" * 30}, {"n": -1}, {"missing": 41},
        {"missing": -1}, {"clusters": 41}, {"clusters": -1}, {"low": 0.7}, {"value": -0.5, "low": -0.6},
        {"high": 1.2}, {"value": "nan"}, {"low": "-inf"}, {"high": "inf", "method": "student-t"},
    ],
    "harm_rate": [
        {"value": -0.5, "low": -0.6, "method": "bootstrap-t"}, {"high": 1.01, "method": "bootstrap-t"},
    ],
    "harm_rate/theft": [{"value": -0.5, "low": -0.6, "method": "bootstrap-t"}],
    "harm_change": [{"low": -1.2, "method": "tango"}, {"high": 1.2, "method": "newcombe (clopper-pearson)"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "figures"),
    [(name, figures) for name, cases in IMPOSSIBLE.items() for figures in cases],
    ids=str,
)
def test_an_impossible_figure_is_refused_at_read(
    ledger: Ledger, record: Make, name: str, figures: dict[str, object]
):
    """Somebody wrote it with every digest right; nothing that was measured looks like it."""
    ledger.append(record())

    def change(statement: dict) -> None:
        metrics = statement["predicate"]["metrics"]
        metrics[name] = metrics.pop("dry") | figures
        result = digest({"metrics": metrics, "artifacts": {}})
        statement["predicate"]["result"] = statement["subject"][0]["digest"]["sha256"] = result

    rewrite(ledger, lambda lines: [edited(lines[0], change)])
    problems = verify(ledger.root).problems
    assert problems[-1].startswith(f"line 1: metric '{name}' is impossible: ")
    with pytest.raises(EvidenceError, match="impossible"):
        Ledger(ledger.root).entries()


def test_a_line_of_an_older_writer_stays_intact(filled: Ledger):
    """Old lines lack a field that `Estimate` or `Record` gained later; their digests hold all the same."""

    def older(statement: dict) -> None:
        del statement["predicate"]["hardware"]
        del statement["predicate"]["metrics"]["dry"]["null_value"]
        stored = {a["name"]: a["digest"] for a in statement["predicate"]["artifacts"] if not a["volatile"]}
        result = digest({"metrics": statement["predicate"]["metrics"], "artifacts": stored})
        statement["predicate"]["result"] = statement["subject"][0]["digest"]["sha256"] = result

    rewrite(filled, lambda lines: relinked([lines[0], edited(lines[1], older), lines[2]]))
    assert verify(filled.root).problems == ()
    assert len(filled.entries()) == 3


@pytest.mark.parametrize("name", ["verify", "layout"])
def test_the_verifier_uses_nothing_of_the_writer(name: str):
    tree = ast.parse(Path(str(sys.modules[f"calibrant.ledger.{name}"].__file__)).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"calibrant.ledger", "calibrant.ledger.store", "calibrant.ledger.objects"}
