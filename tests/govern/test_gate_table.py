"""The table of attempts in docs/gate_attacks.md and the tests that try them agree."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "gate_attacks.md"
WHOLE = ("govern/test_gate_adversarial.py", "govern/test_gate_pins.py", "app/test_gate_attacks.py")
"""Files whose every test is an attempt, or a control."""


@cache
def found_in(name: str) -> set[str]:
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    return {item.name for item in tree.body if isinstance(item, ast.FunctionDef) and item.name[:5] == "test_"}


def named() -> list[tuple[str, str]]:
    return re.findall(r"\| `([\w/]+\.py)::(\w+)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_line_names_a_test_that_there_is() -> None:
    missing = [f"{file}::{test}" for file, test in named() if test not in found_in(file)]
    assert not missing, f"{PAGE.name} names tests that are gone: {missing}"
    assert len(named()) == len(set(named())), "a test stands in two lines"


def test_every_attempt_has_its_line() -> None:
    told = set(named())
    missing = [f"{file}::{test}" for file in WHOLE for test in found_in(file) if (file, test) not in told]
    assert not missing, f"write a line in {PAGE.name}: {missing}"
