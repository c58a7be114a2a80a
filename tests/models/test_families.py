"""The table of families: every cell right or refused by name, and docs/families.md says which.

A slice of different kinds of memory runs by default, the other families with ``-m slow``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import families as made  # noqa: E402
from zoo import SLICE, ZOO  # noqa: E402


def written() -> dict[str, made.Row]:
    """Rows of the page, notes put back in."""
    text = made.PAGE.read_text(encoding="utf-8").partition(made.BEGIN)[2].partition(made.END)[0]
    notes = dict(re.findall(r"^(\d+)\. (.*)\.$", text, re.M))
    rows = {}
    for line in text.splitlines()[3:]:
        if line.startswith("|"):
            family, memory, drawn, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            said = (re.sub(r"^refused \[(\d+)\]$", lambda found: notes[found[1]], cell) for cell in cells)
            rows[family] = made.Row(family, memory, drawn, tuple(said))
    return rows


def test_the_page_has_every_family_and_two_of_each_kind() -> None:
    rows = written()
    assert list(rows) == list(ZOO) and len(ZOO) >= 40
    assert all(row.memory == ZOO[name].memory for name, row in rows.items())
    assert all(len(row.cells) == len(made.COLUMNS) for row in rows.values())
    assert made.page(rows.values()) == made.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SLICE)
def test_right_or_refused(name: str) -> None:
    assert made.row(name) == written()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if name not in SLICE])
def test_right_or_refused_everywhere(name: str) -> None:
    assert made.row(name) == written()[name]


@pytest.mark.parametrize(
    "name",
    ["phi", "mpt", "biogpt", "xglm", "persimmon", "mamba2", "granite", "cohere", "openai-gpt"],
)
def test_the_lens_finds_blocks_under_any_name(name: str) -> None:
    """And factors of the logits; the last layer's reading is what the model says, or this fails."""
    made.looked(made.build(name), ROOT)
