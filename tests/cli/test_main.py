"""The verbs: what they print, and their exit status."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from calibrant import __version__
from calibrant.cli import main as cli
from calibrant.ledger import Ledger

SNAPSHOTS = Path(__file__).parent / "snapshots"


def words(text):
    """Words of a help page, without the frames that rich draws."""
    return re.sub(r"[─│╭╮╰╯\s]+", " ", text).strip()


def test_the_help_page(calibrant, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = calibrant("--help")
    assert shown.code == 0
    assert words(shown.out) == words((SNAPSHOTS / "help.txt").read_text()), (
        "see tests/cli/snapshots/README.md"
    )


def test_what_there_is(calibrant):
    shown = calibrant("ls")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == (SNAPSHOTS / "ls.txt").read_text(), "see tests/cli/snapshots/README.md"
    assert set(json.loads(calibrant("ls", "--json").out)) == {"techniques", "behaviours", "studies"}


def test_a_technique_is_explained(calibrant):
    shown = calibrant("show", "train.dpo")
    assert shown.code == 0 and "pairs: Preferences" in shown.out and "epochs = 1" in shown.out
    assert json.loads(calibrant("show", "train.dpo", "--json").out)["version"] >= 1
    told = calibrant("show", "train.dpoo")
    assert told.code == 3 and "did you mean 'train.dpo'" in told.err


@pytest.mark.parametrize("arguments", [("lss",), ("run",), ("ls", "--jsn"), ("run", "demo", "--ledger")])
def test_a_usage_error_is_a_tool_error_and_no_bug(calibrant, arguments):
    told = calibrant(*arguments)
    assert told.code == 3 and "Error: " in told.err and "Traceback" not in told.err


def test_without_a_verb_the_help_is_shown(calibrant):
    told = calibrant()
    assert told.code == 3 and "verify" in told.out + told.err


def test_the_version(calibrant):
    assert calibrant("--version") == (0, f"calibrant {__version__}\n", "")


STACK = """
[[layer]]
name = "words"
side = "input"
guard = { use = "defend.pattern_guard", config = { words = ["zorble"] } }
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "", None),
        ("pattern_guard", "pattern_gard", "layer 'words': no behaviour 'defend.pattern_gard' (did you mean"),
        ("words = [", "word = [", "unknown key 'word'"),
        ('side = "input"', 'side = "input"\nevery = 3', "is on side 'input' and has 'every'"),
        ('name = "words"', 'name = " "', "layer 0 has no name"),
        ("\n[[layer]]", STACK + "[[layer]]", "2 layers are named 'words'"),
        ("zorble", "", "a forbidden word is blank"),
        ('words = ["zorble"]', 'patterns = ["(", "a*"]', "layer 'words': patterns: '('"),
        ('{ words = ["zorble"] }', "{}", "a pattern guard that forbids nothing"),
    ],
)
def test_check_reads_a_file_of_guards(calibrant, tmp_path, old, new, told):
    file = tmp_path / "guards.toml"
    file.write_text(STACK.replace(old, new, 1) if old else STACK)
    done = calibrant("check", str(file))
    assert done.code == (0 if told is None else 3), done.err
    if told is None:
        assert "guards.toml: 1 layer, no problem found" in done.out
    else:
        assert told in done.err
        assert told in json.loads(calibrant("check", str(file), "--json").out)["problems"][0]


def test_check_leaves_to_a_study_what_it_gives(calibrant, tmp_path):
    file = tmp_path / "guards.toml"
    probe = STACK.replace("words", "probe").split("guard =")[0] + 'guard = "record:probe/probe"\n'
    file.write_text(STACK + probe, encoding="utf-8-sig")
    assert "guards.toml: 2 layers, 1 left to the check of the study" in calibrant("check", str(file)).out
    assert "4 layers, 1 left to the check of the study" in calibrant("check", "real_layers_guards").out


def test_check(calibrant, trial):
    assert calibrant("check", trial).out == "trial: 6 runs of 3 jobs, no problem found\n"
    told = calibrant("check", trial, "sft.batch_sise=3", "plain.sampling.temperatur=0", "gate.seeds=[0, 5]")
    assert told.code == 3
    for part in ("'batch_size'", "'temperature'", "no run of 'sft' has the seed 5"):
        assert part in told.err
    listed = calibrant("check", trial, "sft.batch_sise=3", "--json")
    assert listed.code == 3 and len(json.loads(listed.out)["problems"]) == 1


def test_run_says_what_was_found_and_where_the_page_is(calibrant, copied):
    shown = calibrant("run", copied.parent / "trial.toml", "--ledger", copied)
    assert shown.code == 0 and "PASS  2 of 2 seeds pass" in shown.out
    assert "6 of 6 runs were already finished" in shown.out and "compliance_rate" in shown.out
    page = Path(shown.out.rsplit("page: ")[1].strip())
    assert "Pass" in page.read_text() and "compliance_rate" in page.read_text()
    told = json.loads(calibrant("run", copied.parent / "trial.toml", "--ledger", copied, "--json").out)
    assert told["verdict"]["answer"] == "yes" and told["reused"] == 6 and len(told["records"]) == 6


@pytest.mark.parametrize(("threshold", "code", "word"), [("0.9", 0, "PASS"), ("0.3", 2, "INCONCLUSIVE")])
def test_the_verdict_is_the_exit_status(calibrant, copied, threshold, code, word):
    policy = copied.parent / "policy.toml"
    policy.write_text(policy.read_text().replace("0.9", threshold))
    shown = calibrant("run", copied.parent / "trial.toml", "--ledger", copied)
    assert shown.code == code and word in shown.out


def test_a_gate_that_clearly_fails_is_exit_1(calibrant, copied):
    policy = copied.parent / "policy.toml"
    text = policy.read_text().replace('bound = "high"\nop = "<="', 'bound = "low"\nop = ">="')
    policy.write_text(
        text.replace("threshold = 0.9", "threshold = 0.95\npreregistered = false").replace(
            "compliance", "blocked"
        )
    )
    subject = "defended:guards.toml#record:sft/model"
    shown = calibrant(
        "gate", policy, subject.replace("guards", str(copied.parent / "guards")), "--ledger", copied
    )
    assert shown.code == 1 and "FAIL" in shown.out


def test_the_gate_by_itself_agrees_with_the_gate_in_the_study(calibrant, copied, monkeypatch):
    monkeypatch.chdir(copied.parent)
    inside = [e for e in Ledger(copied).entries() if e.record.technique == "govern.gate"]
    shown = calibrant(
        "gate", "policy.toml", "defended:guards.toml#record:sft/model", "--ledger", copied, "--json"
    )
    table = json.loads(shown.out)
    assert shown.code == 0 and table["verdict"]["answer"] == "yes"
    assert len(Ledger(copied).entries()) == 7  # found, not run again
    stored = Ledger(copied).open(next(a for a in inside[0].record.artifacts if a.name == "gate.json"))
    assert table == json.loads(stored.read_text())
    other = calibrant("gate", "policy.toml", "defended:guards.toml#record:sft#1/model", "--ledger", copied)
    assert other.code == 0 and "PASS" in other.out and "PLAIN" in other.out


def test_missing_evidence_is_inconclusive(calibrant, copied, model):
    shown = calibrant("gate", copied.parent / "policy.toml", model, "--ledger", copied)
    assert shown.code == 2 and "missing evidence is inconclusive" in shown.out
    empty = calibrant("gate", copied.parent / "policy.toml", model, "--ledger", copied.parent / "empty")
    assert empty.code == 2


@pytest.mark.parametrize(
    ("policy", "subject", "said"),
    [
        ("nowhere.toml", "MODEL", "no file 'nowhere.toml'"),
        ("policy.toml", "record:sff/model", "no job 'sff' has run (did you mean 'sft'?)"),
        ("policy.toml", "record:sft#8/model", "has the seed '8'"),
        ("trial.toml", "MODEL", "unknown key 'job'"),
    ],
)
def test_a_gate_that_cannot_be_asked(calibrant, copied, model, monkeypatch, policy, subject, said):
    monkeypatch.chdir(copied.parent)
    told = calibrant("gate", policy, subject.replace("MODEL", str(model)), "--ledger", copied)
    assert told.code == 3 and said in told.err and told.out == ""


def test_the_log(calibrant, copied, tmp_path):
    shown = calibrant("log", "--ledger", copied)
    assert shown.code == 0 and "trial/sft" in shown.out and "finished" in shown.out
    rows = json.loads(calibrant("log", "--ledger", copied, "--json").out)
    assert [row["technique"] for row in rows] == [
        "intent", "train.sft", "train.sft", "measure.refusal", "measure.refusal", "govern.gate", "govern.gate"
    ]  # fmt: skip
    table = calibrant("log", rows[3]["digest"][:10], "--ledger", copied).out
    assert "trial/" in table and "measure.refusal" in table and "limits" in table and "Artifact" not in table
    whole = calibrant("log", rows[1]["digest"][:10], "--ledger", copied, "--json")
    assert json.loads(whole.out)["predicate"]["jobId"] == "sft"
    assert calibrant("log", "zzz", "--ledger", copied).code == 3
    for name, row in (("trial/sft", rows[2]), ("trial/sft#0", rows[1])):
        whole = calibrant("log", name, "--ledger", copied, "--files", tmp_path / "out" / row["digest"])
        assert whole.code == 0 and (tmp_path / "out" / row["digest"] / "model").is_dir()
        seed = json.loads(calibrant("log", name, "--ledger", copied, "--json").out)["predicate"]["seed"]
        assert seed == row["seed"]
    lost = calibrant("log", "trial/sfd", "--ledger", copied)
    assert lost.code == 3 and "did you mean 'trial/sft'" in lost.err


def test_the_files_of_a_record_are_copied_out(calibrant, done, tmp_path):
    where = ("--ledger", done / "ledger")
    rows = json.loads(calibrant("log", *where, "--json").out)
    for row in rows:
        calibrant("log", row["digest"], *where, "--files", tmp_path / row["technique"] / str(row["seed"]))
    model, attempts = tmp_path / "train.sft/1/model", tmp_path / "measure.refusal/0/attempts.jsonl"
    assert (model / "config.json").is_file() and len(attempts.read_text().splitlines()) == 5
    again = calibrant("log", rows[3]["digest"], *where, "--files", attempts.parent)
    assert again.code == 3 and "is there already" in again.err
    assert calibrant("log", *where, "--files", tmp_path / "all").code == 3


def test_the_status(calibrant, done, tmp_path):
    found = json.loads(calibrant("status", "--ledger", done / "ledger", "--json").out)
    assert found["records"] == 7 and found["by_status"] == {"finished": 7} and found["unfinished"] == []
    assert "records: 7" in calibrant("status", "--ledger", done / "ledger").out
    assert json.loads(calibrant("status", "--ledger", tmp_path, "--json").out)["records"] == 0


def test_the_page_is_written_from_the_ledger(calibrant, copied):
    shown = calibrant("view", copied.parent / "trial.toml", "--ledger", copied)
    assert shown.code == 0 and "<html" in Path(shown.out.strip()).read_text()
    told = calibrant("view", copied.parent / "trial.toml", "--ledger", copied.parent / "empty")
    assert told.code == 3 and "-> run it first: calibrant run trial" in told.err


def test_an_intact_ledger_and_one_that_was_tampered_with(calibrant, copied):
    records = copied / "records.jsonl"
    text = records.read_text()
    told = calibrant("verify", "--ledger", copied)
    assert told.code == 0 and "the last line is held by no line after it" in told.out
    assert f"head: {sha256(text.splitlines()[-1].encode()).hexdigest()}" in told.out
    records.write_text(text.replace('"seed":1', '"seed":2', 1))
    told = calibrant("verify", "--ledger", copied)
    assert told.code == 1 and "line 3" in told.out and "FAIL" in told.out
    assert json.loads(calibrant("verify", "--ledger", copied, "--json").out)["problems"]
    assert calibrant("status", "--ledger", copied).code == 3  # a damaged ledger is not read past
    assert calibrant("run", copied.parent / "trial.toml", "--ledger", copied).code == 3
    records.write_text(text)
    stored = next(path for path in (copied / "objects").rglob("*") if path.is_file())
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes() + b" ")
    assert calibrant("verify", "--ledger", copied).code == 1


def test_an_empty_ledger_is_not_called_intact(calibrant, tmp_path):
    assert calibrant("verify", "--ledger", tmp_path).code == 2


def test_the_ledger_by_environment(calibrant, done, monkeypatch):
    monkeypatch.setenv("CALIBRANT_LEDGER", str(done / "ledger"))
    assert "records: 7" in calibrant("status").out


def test_the_demo_is_the_packaged_study(calibrant, monkeypatch, tmp_path):
    asked = []

    def run_study(study, *_, **__):
        asked.append(study.name)
        raise cli.typer.Exit(0)

    monkeypatch.setattr(cli, "run_study", run_study)
    assert calibrant("demo", "--ledger", tmp_path).code == 0 and asked == ["demo"]


@pytest.mark.parametrize(
    ("error", "said"), [(KeyboardInterrupt(), "Stopped."), (KeyError("x"), "this is a bug")]
)
def test_what_no_command_answers(calibrant, monkeypatch, error, said):
    def broken():
        raise error

    monkeypatch.setattr(cli.listing, "everything", broken)
    told = calibrant("ls")
    assert told.code == 3 and said in told.err and ("Traceback" in told.err) == isinstance(error, KeyError)


@pytest.mark.parametrize("words", [["ls"], ["show", "--help"]], ids=" ".join)
def test_a_closed_pipe_is_a_tool_error(start, words):
    process = start(*words)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 3 and err == ""
