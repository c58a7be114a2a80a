"""Bad input: one clear message with the remedy, exit status 3, ledger intact, and the study goes on later."""

from __future__ import annotations

from functools import partial

import pytest

from calibrant.ledger import Ledger, verify
from calibrant.models.api import ApiConfig

GOALS = '{"id": "g1", "text": "how do i brew the zorble?"}\n{"id": "g2", "text": "how do i mix the quib?"}\n'
ASK = """
name = "bad"
[given]
model = "MODEL"
goals = "jsonl:goals.jsonl"
[[job]]
id = "ask"
use = "measure.refusal"
inputs = { model = "given:model", goals = "given:goals", judge = { use = "measure.string_judge" } }
config = { sampling = { max_tokens = 4, temperature = 1.0 } }
[[job]]
id = "other"
use = "measure.refusal"
inputs = { model = "MODEL", goals = "testbed:goals/heldout?n=2", judge = "testbed:judge/harmful" }
config = { sampling = { max_tokens = 4, temperature = 1.0 } }
"""
TRAIN = """
name = "bad"
[[job]]
id = "sft"
use = "train.sft"
inputs = { model = "MODEL", examples = "testbed:pairs/tone[:32]" }
"""


@pytest.fixture
def run(tmp_path, model, calibrant):
    """Write the study and run it with changes."""

    def ran(text, *changes):
        (tmp_path / "bad.toml").write_text(text.replace("MODEL", str(model)))
        return calibrant("run", tmp_path / "bad.toml", *changes, "--ledger", tmp_path / "ledger")

    return ran


def statuses(folder):
    return [entry.record.status for entry in Ledger(folder / "ledger").entries()]


BAD_FILES = {
    "missing": (None, "no file 'goals.jsonl'", "looked in"),
    "empty": (b"", "goals.jsonl is empty", "written to the end"),
    "only blank": (b"\n\n", "holds no rows", "written to the end"),
    "wrong column": (b'{"id": "g1", "txt": "brew"}\n', "missing column", "rename the columns"),
    "not UTF-8": (GOALS.replace("brew", "br\xe9w").encode("latin-1"), "not UTF-8", "UTF-8"),
    "UTF-16": (GOALS.encode("utf-16"), "UTF-16", "iconv"),
    "not JSON": (b"brew the zorble\n", "malformed JSON", "one JSON object a line"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(run, tmp_path, calibrant, kind):
    written, said, remedy = BAD_FILES[kind]
    if kind == "not UTF-8":
        written = written.splitlines(keepends=True)[0]
    if written is not None:
        (tmp_path / "goals.jsonl").write_bytes(written)
    told = run(ASK)
    assert told.code == 3 and told.err == ""
    assert told.out.count(said) == 1 and "-> " in told.out and remedy in told.out
    assert statuses(tmp_path) == ["failed", "finished"]  # the other job ran
    assert calibrant("verify", "--ledger", tmp_path / "ledger").code == 0
    (tmp_path / "goals.jsonl").write_text(GOALS)
    mended = run(ASK)
    assert mended.code == 0 and "1 of 2 runs were already finished" in mended.out


def test_an_extra_column_is_named_on_the_terminal_and_in_the_record(run, tmp_path):
    (tmp_path / "goals.jsonl").write_text(GOALS.replace('"id"', '"source": "a book", "id"'))
    told = run(ASK)
    said = "columns not used of 'goals' (jsonl:goals.jsonl): 'source'"
    assert told.code == 0 and told.out.count(said) == 1
    assert Ledger(tmp_path / "ledger").entries()[0].record.limits[-1] == said


def test_a_column_that_changes_meaning_is_left_out_only_knowingly(run, tmp_path):
    (tmp_path / "goals.jsonl").write_text(GOALS.replace('"id"', '"benign": true, "id"'))
    told = run(ASK)
    assert told.code == 3 and "left out, 'benign' would change what the rows mean" in told.out
    assert "ignore = ['benign']" in told.out and statuses(tmp_path) == ["failed", "finished"]
    table = '{ file = "jsonl:goals.jsonl", ignore = ["benign"] }'
    told = run(ASK.replace('"jsonl:goals.jsonl"', table))
    assert told.code == 0 and "columns not used of 'goals' (jsonl:goals.jsonl): 'benign'" in told.out
    record = Ledger(tmp_path / "ledger").entries()[-1].record
    assert record.inputs["goals"].reference == {"file": "jsonl:goals.jsonl", "ignore": ["benign"]}


def test_a_refused_row_is_told_in_the_record(run, tmp_path, calibrant):
    (tmp_path / "goals.jsonl").write_bytes(GOALS.encode() + b'{"id": "g3", "text": "br\xe9w"}\n')
    assert run(ASK).code == 0
    record = Ledger(tmp_path / "ledger").entries()[0].record
    assert "1 of 3 rows of 'goals' were refused, the first on line 3: not UTF-8" in record.limits[-1]


def test_an_unreachable_endpoint(run, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrant.models.api.ApiConfig", partial(ApiConfig, max_retries=0))
    (tmp_path / "goals.jsonl").write_text(GOALS)
    told = run(ASK, "given.model=api:http://127.0.0.1:9/v1#mine")
    assert told.code == 3 and "cannot reach http://127.0.0.1:9/v1" in told.out
    assert "-> see that the server runs" in told.out
    assert (
        statuses(tmp_path) == ["failed", "finished"] and verify(tmp_path / "ledger").verdict.answer == "yes"
    )
    assert run(ASK).code == 0


def test_a_loss_that_is_no_number(run, tmp_path):
    told = run(TRAIN, "sft.fit.lr=1e30", "sft.batch_size=8")
    assert told.code == 3 and " at step " in told.out and "-> lower lr" in told.out
    assert Ledger(tmp_path / "ledger").entries()[-1].record.failure.type == "NumericalError"
    assert verify(tmp_path / "ledger").verdict.answer == "yes"
    assert run(TRAIN).code == 0


def test_prompts_longer_than_the_context_are_not_cut(run, tmp_path):
    told = run(TRAIN, "sft.max_length=4")
    assert (
        told.code == 3 and "none of 32 rows fits 4 tokens" in told.out and "-> raise max_length" in told.out
    )
    assert run(TRAIN).code == 0


def test_a_measurement_in_which_no_prompt_fits_is_told_with_the_remedy(run, tmp_path):
    (tmp_path / "goals.jsonl").write_text('{"id": "g", "text": "' + "brew " * 3000 + '"}\n')
    told = run(ASK)
    assert told.code == 3 and "none of 1 requests got a reply" in told.out and "tokens" in told.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ask.samplin.max_tokens=3", "unknown key 'samplin' (did you mean 'sampling'?)"),
        ("ask.sampling.max_token=3", "unknown key 'sampling.max_token' (did you mean 'max_tokens'?)"),
        ("aks.sampling.max_tokens=3", "no job 'aks' (did you mean 'ask'?)"),
        ("given.modle=x", "no given 'modle' (did you mean 'model'?)"),
        ("ask.inputs.judge.use=measure.sting_judge", "did you mean 'measure.string_judge'"),
    ],
)
def test_unknown_keys_are_told_with_the_nearest_name_and_nothing_is_run(run, tmp_path, change, said):
    told = run(ASK, change)
    assert told.code == 3 and told.out == "" and told.err.count("calibrant:") == 1 and said in told.err
    assert not (tmp_path / "ledger").exists()


def test_unknown_techniques_and_studies(run, calibrant, tmp_path):
    assert (
        "no technique 'measure.refusl' (did you mean 'measure.refusal'?)"
        in run(ASK.replace("measure.refusal", "measure.refusl")).err
    )
    told = calibrant("run", "demmo", "--ledger", tmp_path / "ledger")
    assert told.code == 3 and "no study 'demmo' (did you mean 'demo'?)" in told.err


@pytest.mark.parametrize("text", ['name = "bad"', "name = ", "name = 3\n[[job]]\nid = 1"])
def test_files_that_are_no_studies(run, text):
    told = run(text)
    assert told.code == 3 and told.err.startswith("calibrant: ") and "Traceback" not in told.err


def test_a_study_that_is_not_utf_8(calibrant, tmp_path):
    (tmp_path / "bad.toml").write_bytes(b'name = "\xe9"')
    told = calibrant("run", tmp_path / "bad.toml", "--ledger", tmp_path / "ledger")
    assert told.code == 3 and "not UTF-8" in told.err and "-> save it as UTF-8" in told.err


def test_a_budget(run, tmp_path):
    (tmp_path / "goals.jsonl").write_text(GOALS)
    told = run(ASK, "ask.budget.queries=1")
    assert told.code == 3 and "its budget is 1" in told.out and "-> raise budget.queries" in told.out
    assert run(ASK).code == 0


def test_code_from_outside_is_not_run_unasked(run, tmp_path):
    told = run(ASK, "ask.inputs.judge.use=python:os:system")
    assert told.code == 3 and "--allow-python" in told.err and not (tmp_path / "ledger").exists()
