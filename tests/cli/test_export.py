"""`calibrant export` at its door: what it says, and with which status it ends."""

from __future__ import annotations

import json

import pytest

from calibrant.app.export import WRITERS
from calibrant.cli.export import Format
from calibrant.cli.main import main

REPORT = (
    '{"entry_type":"start_run setup","plugins.target_type":"test.Blank"}\n'
    '{"entry_type":"attempt","uuid":"u","status":2,"probe_classname":"test.Test","prompt":"tell me a tale",'
    '"outputs":["once upon a time",null],"detector_results":{"d.D":[1.0,null]}}\n'
)


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with a garak report in it: status, what it printed, its complaints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALIBRANT_LEDGER", raising=False)
    (tmp_path / "r.jsonl").write_text(REPORT, encoding="utf-8")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["export", *arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_the_formats_on_offer_are_those_that_can_be_written():
    assert {one.value for one in Format} == set(WRITERS)


def test_it_says_what_it_wrote_and_that_it_is_covered(said, tmp_path):
    code, out, _ = said("garak:r.jsonl", "--to", "sarif", "--out", "out/x.sarif")
    assert code == 0
    assert "2 attempts on test.Blank: 1 succeeded, 1 undetermined" in out
    assert "sarif: out/x.sarif (prompts and replies are covered)" in out
    assert "once upon" not in (tmp_path / "out" / "x.sarif").read_text(encoding="utf-8")
    assert not (tmp_path / ".calibrant").exists()


def test_reveal_is_said_aloud(said, tmp_path):
    code, out, _ = said("garak:r.jsonl", "--to", "junit", "--out", "x.xml", "--reveal")
    assert code == 0 and "prompts and replies are in it" in out
    assert "once upon a time" in (tmp_path / "x.xml").read_text(encoding="utf-8")


def test_json_for_programs(said):
    code, out, _ = said("garak:r.jsonl", "--to", "jsonl", "--out", "x.jsonl", "--json")
    found = json.loads(out)
    assert code == 0 and (found["attempts"], found["successes"], found["undetermined"]) == (2, 1, 1)


def test_an_export_of_ours_is_read_again(said):
    assert said("garak:r.jsonl", "--to", "jsonl", "--out", "x.jsonl")[0] == 0
    code, out, _ = said("x.jsonl", "--to", "html", "--out", "x.html")
    assert code == 0 and "2 attempts on an unnamed target" in out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("garak:none.jsonl", "--to", "sarif", "--out", "x"), "no file 'none.jsonl'"),
        (("garak:r.jsonl", "--to", "pdf", "--out", "x"), "'pdf' is not one of"),
        (("garak:r.jsonl", "--to", "sarif"), "--out"),
        (("garak:r.jsonl", "--to", "sarif", "--out", "r.jsonl"), "would overwrite"),
        (("jbb:r.jsonl", "--to", "sarif", "--out", "x"), "malformed JSON"),
        (("record:nothing/attempts.jsonl", "--to", "sarif", "--out", "x"), "no job 'nothing'"),
    ],
)
def test_errors_end_with_3_and_write_nothing(said, tmp_path, arguments, wanted):
    code, _, err = said(*arguments)
    assert code == 3 and wanted in err
    assert not (tmp_path / "x").exists()
