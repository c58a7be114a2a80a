"""`calibrant annotate` in the terminal: what is typed, what is shown, and input piped into a process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.cli.annotate import KEYS, annotate, visible
from calibrant.core import InputError
from calibrant.data.readers import read_file
from calibrant.data.rows import Preferences
from calibrant.data.votes import CHOICES, read_votes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "outputs.jsonl"
    rows = [
        {"id": f"row-{i}", "prompt": f"question {i}?", "a": f"good {i}", "b": f"poor {i}"} for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Type lines into a session; returns what was shown."""

    def sat(*typed: str, file: Path | None = None, **options: Any) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        given = {"rater": "ann", "repeats": 0.0, **options}
        annotate(file or data, tmp_path / "votes.jsonl", **given)
        return capsys.readouterr().out

    return sat


def test_every_choice_has_a_key() -> None:
    assert set(KEYS.values()) == set(CHOICES)


def test_a_sitting_to_the_end(sit: Callable[..., str], tmp_path: Path) -> None:
    shown = sit("1", "what?", "2", "g", "u", "b", "S")
    votes = read_votes(tmp_path / "votes.jsonl")
    assert [vote.choice for vote in votes] == ["first", "second", "both bad", "same"]
    assert "not understood: what?" in shown
    assert "4 of 4 answered by ann" in shown
    assert "with yourself: unknown (no comparison was answered twice)" in shown


def test_nothing_gives_a_side_away(sit: Callable[..., str]) -> None:
    shown = sit("1", "1", "1", "1")
    for word in ("row-", "chosen", "rejected", "side a", "repeat "):
        assert word not in shown


def test_it_stops_at_the_end_of_the_input_and_goes_on(sit: Callable[..., str], tmp_path: Path) -> None:
    assert "1 of 4 answered" in sit("1")
    assert "2 of 4 answered" in sit("1", "q", "1")
    assert "there is no vote to take back" in sit("u", rater="bob")
    assert "4 of 4 answered" in sit("1", "1")
    assert len(read_votes(tmp_path / "votes.jsonl")) == 4


def test_swapped_repeats_and_other_raters_are_reported(sit: Callable[..., str]) -> None:
    sit(*"1111")
    shown = sit(*"1" * 8, rater="bob", repeats=0.5)
    assert "6 of 6 answered by bob" in shown
    assert "with yourself, on swapped repeats: 0.000" in shown
    assert "between raters: " in shown


def test_pairs_are_written(sit: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    assert f"2 pairs written to {out}; 1 undecided, 1 without a vote" in sit("1", "2", "s", pairs=out)
    before = out.read_bytes()
    assert len(read_file(Preferences, out)) == 2
    out.unlink()
    assert "2 pairs" in sit(rater="", pairs=out)
    assert out.read_bytes() == before


def test_an_output_cannot_steer_the_terminal(sit: Callable[..., str], tmp_path: Path) -> None:
    row = {"prompt": "hi [bold]", "a": "x\x1b[2J :smile:", "b": "y\u202ez"}
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(row) + "\n{\n")
    shown = sit(file=path)
    assert "hi [bold]" in shown
    assert "x\\x1b[2J :smile:" in shown
    assert "y\\u202ez" in shown
    assert "1 rows left out, first line 2: malformed JSON" in shown
    assert visible("caf\u00e9\n\t") == "caf\u00e9\n\t"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b'{"prompt": "hi", "left": "x", "right": "y"}\n', "missing column"),
        (b"\xff\xfeh\x00i\x00", "UTF-16"),
        (b'{"prompt": "caf\xe9", "a": "x", "b": "y"}\n', "not UTF-8"),
        (b'{"prompt": "hi", "a": "x", "b": "x"}\n', "equal replies"),
    ],
)
def test_a_file_that_holds_nothing_to_compare(
    sit: Callable[..., str], tmp_path: Path, text: bytes, said: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match=said) as caught:
        sit("1", file=path)
    assert caught.value.hint
    assert not (tmp_path / "votes.jsonl").exists()


def test_something_must_be_asked_for(sit: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="nothing to do"):
        sit("1", rater="")


def test_pairs_never_overwrite_what_they_are_made_from(sit: Callable[..., str], data: Path) -> None:
    before = data.read_bytes()
    with pytest.raises(InputError, match="would overwrite"):
        sit("1", pairs=data)
    assert data.read_bytes() == before


def test_typing_that_is_no_text(
    sit: Callable[..., str], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(InputError, match="not UTF-8"):
        annotate(data, tmp_path / "votes.jsonl", rater="ann")


def test_piped_input_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    code = "import typer; from calibrant.cli.annotate import annotate; typer.run(annotate)"
    votes = tmp_path / "votes.jsonl"
    command = [
        sys.executable,
        "-c",
        code,
        str(data),
        "--rater",
        "ann",
        "--votes",
        str(votes),
        "--repeats",
        "0",
    ]
    done = subprocess.run(command, input="1\n2\ng\n", capture_output=True, text=True, check=True)
    assert "3 of 4 answered by ann" in done.stdout
    assert len(read_votes(votes)) == 3


def test_the_verb_needs_no_torch() -> None:
    code = (
        "import sys, calibrant.cli.annotate; print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_columns_that_are_not_shown_are_named_and_left_out_knowingly(
    sit: Callable[..., str], data: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps({**row, "system": "Be terse.", "n": 1}) + "\n" for row in rows))
    with pytest.raises(InputError, match="left out, 'system' would change"):
        sit("1")
    assert "columns not used: 'n'" in sit("1", ignore=["system"])
