"""`calibrant console` with lines piped in: what is shown, what is written, how it ends."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.app.references.openers import Openers
from calibrant.data.rows import Attempts
from calibrant.ledger import Ledger

GOALS = "testbed:goals/heldout?n=3"


@pytest.fixture
def talk(
    calibrant: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Pipe lines into a session with the tiny model."""

    def talked(*lines: str, target: str = "", options: tuple[object, ...] = ("--goals", GOALS)) -> Any:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        settings = ("--out", "attempts.jsonl", "--max-tokens", "3")
        return calibrant("console", target or model, *settings, *options)

    return talked


def attempts(folder: Path) -> Attempts:
    """What a technique gets that is given the file."""
    opened = Openers(Ledger(folder / "ledger"), base=folder).open("jsonl:attempts.jsonl", Attempts)
    table: Attempts = opened.load()
    return table


def test_a_sitting_is_kept_as_attempts_and_gone_on_with(talk: Callable[..., Any], tmp_path: Path) -> None:
    done = talk("hello", "/hit", "/rot13 mill", "/quit", "never sent")
    assert done.code == 0 and not done.err
    assert "/help lists commands" in done.out and "goal heldout/" in done.out
    assert "[1] hit" in done.out and "sent: zvyy" in done.out
    assert done.out.endswith("2 attempts, by people 1 hits and 0 misses; kept in attempts.jsonl\n")
    assert [a.human for a in attempts(tmp_path)] == [True, None]
    assert [a.attack for a in attempts(tmp_path)] == ["human", "human/rot13"]
    again = talk("more")
    assert "2 turns are here already" in again.out and "3 attempts" in again.out
    assert attempts(tmp_path).rows[2].parent == attempts(tmp_path).rows[1].id


def test_a_defended_target_and_a_judge(talk: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    (tmp_path / "guards.toml").write_text(
        '[[layer]]\nname = "words"\nside = "input"\n'
        'guard = { use = "defend.pattern_guard", config = { words = ["zorble"] } }\n'
    )
    options = ("--goals", GOALS, "--judge", "measure.string_judge")
    target = f"defended:guards.toml#{model}"
    done = talk("get the zorble", "/judge", target=target, options=options)
    assert "talking to a defended system" in done.out
    assert "words" not in done.out.partition("has the model")[0]
    assert "has the model complied? no" in done.out
    assert done.out.endswith("by the judge 0 hits; kept in attempts.jsonl\n")
    shown = talk("get a zorble", target=target, options=(*options, "--show-layers"))
    assert "    words: no" in shown.out


def test_a_judge_from_a_file_and_from_the_testbed(talk: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "judge.toml").write_text('use = "measure.string_judge"\nconfig = { behaviour = "refused" }\n')
    assert (
        "has the model refused?"
        in talk("hello", "/judge", options=("--goals", GOALS, "--judge", "judge.toml")).out
    )
    asked = talk("hello", "/judge", options=("--goals", GOALS, "--judge", "testbed:judge/refused"))
    assert "did the model refuse?" in asked.out


def test_without_goals_one_is_put_in_words(talk: Callable[..., Any], tmp_path: Path) -> None:
    done = talk("hello", "/goal say a word", "hello", options=())
    assert "no goal is chosen" in done.out and "1 attempts" in done.out


def test_a_reply_cannot_steer_the_terminal(talk: Callable[..., Any]) -> None:
    assert "sent: m\\u200bi" in talk("/zero_width mi").out
    assert "[bold]" in talk("/goal [bold]x", options=()).out


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("./nowhere", (), "no such folder"),
        ("", ("--goals", "jsonl:none.jsonl"), "no file"),
        ("", ("--judge", "measure.strong_judge"), "did you mean 'measure.string_judge'"),
        ("", ("--judge", "none.toml"), "no file 'none.toml'"),
        ("", ("--out", "attempts.csv"), "written as JSON lines"),
    ],
)
def test_what_cannot_be_opened_is_said_before_anyone_types(
    talk: Callable[..., Any], target: str, options: tuple[str, ...], words: str
) -> None:
    done = talk("hello", target=target, options=options)
    assert done.code == 3 and words in done.err and "hello" not in done.out


def test_leaving_by_control_c_keeps_what_was_said(
    talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = iter(["hello\n"])

    def line() -> str:
        for typed in lines:
            return typed
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrant.cli.console._line", line)
    done = talk()
    assert done.code == 0 and "1 attempts" in done.out
    assert len(attempts(tmp_path)) == 1


def test_the_command_line_stays_light() -> None:
    """What the console needs is loaded when someone talks."""
    code = "import sys, calibrant.cli.console; print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_goals_with_a_column_that_nobody_reads(talk: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text('{"text": "brew zorble", "benign": true, "n": 1}\n')
    refused = talk("hello", options=("--goals", "g.jsonl"))
    assert refused.code == 3 and "'benign' would change" in refused.err + refused.out
    done = talk("hello", options=("--goals", "g.jsonl", "--ignore", "benign"))
    assert done.code == 0 and "columns not used: 'n', 'benign'" in done.out
