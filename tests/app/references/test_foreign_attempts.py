"""References to other tools' files."""

from __future__ import annotations

import json

import pytest

from calibrant.app.catalog import load
from calibrant.app.export import report_of
from calibrant.app.references.foreign_attempts import TOOLS, attempts_from, read_foreign
from calibrant.app.references.openers import Openers
from calibrant.core import InputError
from calibrant.data.rows import Attempts


@pytest.fixture
def completions(tmp_path):
    cases = {"fizz": [{"test_case": "how?", "generation": "so", "label": 1}, {"test_case": "how?"}]}
    (tmp_path / "c.json").write_text(json.dumps(cases), encoding="utf-8")
    return tmp_path


@pytest.fixture
def opened(ledger, completions):
    return lambda reference: Openers(ledger, base=completions).open(reference, Attempts)


def test_every_tool_has_a_reader():
    assert all(callable(load(target)) for target in TOOLS.values())


def test_attempts_with_the_account_of_what_was_refused(completions):
    table = attempts_from("harmbench:c.json", completions)
    assert (len(table), table.source) == (1, "harmbench:c.json")
    assert table.refused[0].line == 2 and "generation" in table.refused[0].reason


def test_a_target_is_named_after_the_path(completions):
    with pytest.raises(InputError, match="no attempt on 'big'"):
        read_foreign("harmbench:c.json#big", completions)


def test_the_digest_is_of_the_file_the_tool_and_the_target(completions, opened):
    (completions / "d.json").write_bytes((completions / "c.json").read_bytes())
    one = opened("harmbench:c.json")
    assert one.digest == opened("harmbench:d.json").digest
    assert one.digest not in [opened(other).digest for other in ("pyrit:c.json", "harmbench:c.json#big")]
    assert len(one.load()) == 1


def test_a_missing_file(completions):
    with pytest.raises(InputError, match=r"no file 'none\.json'"):
        read_foreign("garak:none.json", completions)


def test_totals_that_contradict_the_rows_lose_no_row(tmp_path):
    row = {"index": 0, "goal": "g", "behavior": "b", "prompt": "p", "response": "r", "jailbroken": True}
    about = {"model": "m", "method": "PAIR", "total_number_of_jailbreaks": 12}
    value = {"parameters": about, "jailbreaks": [row, {}]}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8")
    table = attempts_from("jbb:a.json", tmp_path)
    assert (len(table), [lost.line for lost in table.lost], len(table.refused)) == (1, [2], 2)
    assert table.disputed == "'total_number_of_jailbreaks' is 12 in the file, 1 in its rows"
    assert report_of(table).caveats[-2:] == (
        "1 rows of the source could not be read and are not counted",
        f"totals in the source are not those of its rows: {table.disputed}",
    )
    assert attempts_from("jbb:a.json", tmp_path).model_copy(update={"refused": ()}).disputed == ""


def test_the_digest_tells_readers_of_two_versions_apart(opened, monkeypatch):
    now = opened("harmbench:c.json").digest
    monkeypatch.setattr("calibrant.app.references.foreign_attempts.VERSION", 1)
    assert opened("harmbench:c.json").digest != now


@pytest.mark.parametrize("tool", ["jbb", "promptfoo"])
def test_a_file_of_another_shape_is_named(tool, completions):
    with pytest.raises(InputError, match=rf"c\.json: no results of {tool}: missing: no ") as caught:
        attempts_from(f"{tool}:c.json", completions)
    assert f"is it {tool}'s file" in caught.value.hint
