"""The two axes: every entry exists where the table says so, and a tag is made only where it follows."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import get_args

import pytest

from calibrant.attack.engine.protocol import Family
from calibrant.core.attempt import Access
from calibrant.data.taxonomy import (
    AILUMINATE,
    ATLAS,
    HAZARDS,
    OWASP,
    TECHNIQUES,
    Hazard,
    hazard_of,
    tags_of,
    technique_of,
)
from calibrant.testbed.words import CATEGORIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "taxonomy.md"


def test_the_axes_are_those_of_goals_and_attacks() -> None:
    assert tuple(row.name for row in HAZARDS) == tuple(CATEGORIES)
    assert tuple(row.family for row in TECHNIQUES) == get_args(Family)
    assert {access for row in TECHNIQUES for access in row.access} == set(get_args(Access))


def test_every_hazard_of_ailuminate_has_one_place_and_every_id_a_name() -> None:
    placed = [code for row in HAZARDS for code in row.ailuminate]
    assert sorted(placed) == sorted(AILUMINATE)
    assert len(AILUMINATE) == 12 and len(OWASP) == 10
    assert {e for row in HAZARDS for e in row.owasp} <= set(OWASP)
    used = {e for row in (*HAZARDS, *TECHNIQUES) for e in row.atlas}
    assert used == set(ATLAS)


@pytest.mark.parametrize("framework", ["harmbench", "jailbreakbench", "strongreject"])
def test_other_lists_are_placed_whole_and_once(framework: str) -> None:
    entries = [e for row in HAZARDS for e in getattr(row, framework)]
    assert (
        len(entries)
        == len(set(entries))
        == {"harmbench": 7, "jailbreakbench": 10, "strongreject": 6}[framework]
    )


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("privacy", "privacy"),
        ("Privacy Violations", "privacy"),
        ("HARMFUL-CONTENT", "harmful_content"),
        ("harmful", "harmful_content"),
        ("Malware/Hacking", "harmful_content"),
        ("malware_hacking", "harmful_content"),
        ("iwp", "harmful_content"),
        ("child sexual exploitation", "harmful_content"),
        ("hate", "bias"),
        ("Harassment/Discrimination", "bias"),
        ("copyright", "privacy"),
        ("misinformation disinformation", "deception"),
        ("Disinformation and deception", "deception"),
        ("manipulation", "manipulation"),
    ],
)
def test_a_word_of_any_list_finds_its_row(word: str, name: str) -> None:
    row = hazard_of(word)
    assert row is not None and row.name == name


@pytest.mark.parametrize("word", ["", " ", "uncategorised", "weather", "priv"])
def test_unknown_words_are_not_guessed(word: str) -> None:
    assert hazard_of(word) is None
    assert technique_of(word) is None
    assert tags_of(word, word) == ()


def test_no_word_means_two_rows() -> None:
    """Each word of each list leads back to the row that holds it."""
    for row in HAZARDS:
        words = [row.name, row.title, *row.ailuminate, *(AILUMINATE[c] for c in row.ailuminate)]
        for word in (*words, *row.harmbench, *row.jailbreakbench, *row.strongreject):
            assert hazard_of(word) is row, word


def test_tags_of_our_own_word() -> None:
    assert tags_of("bias", "plain") == (
        "calibrant:bias",
        "ailuminate:hte",
        "jailbreakbench:Harassment/Discrimination",
        "atlas:AML.T0048.002",
    )


def test_what_means_the_same_stands_in_its_row() -> None:
    for row in HAZARDS:
        for tag in row.same:
            framework, _, entry = tag.partition(":")
            assert entry in getattr(row, framework)


def test_privacy_by_an_encoding() -> None:
    """'privacy' is AILuminate's own word for 'prv'; intellectual property is not meant."""
    tags = tags_of("privacy", "transform")
    assert {"calibrant:privacy", "ailuminate:prv", "owasp:LLM02:2025", "atlas:AML.T0054"} <= set(tags)
    assert {"atlas:AML.T0057", "atlas:AML.T0068", "owasp:LLM01:2025"} <= set(tags)
    assert not {"ailuminate:ipv", "harmbench:copyright"} & set(tags)
    assert "ailuminate:prv" not in tags_of("copyright", "transform")


def test_a_broad_category_is_not_tagged_with_all_that_it_covers() -> None:
    """None of eight hazards follows from 'harmful_content'; the code itself names one."""
    assert not [t for t in tags_of("harmful_content", "plain") if t.startswith("ailuminate:")]
    assert [t for t in tags_of("iwp", "plain") if t.startswith("ailuminate:")] == ["ailuminate:iwp"]
    assert [t for t in tags_of("illegal", "plain") if ":" in t and not t.startswith("atlas")] == [
        "calibrant:harmful_content",
        "harmbench:illegal",
    ]


def test_a_family_alone_is_tagged_and_plain_is_no_attack() -> None:
    assert tags_of("weather", "gradient") == ("owasp:LLM01:2025", "atlas:AML.T0054", "atlas:AML.T0043.000")
    assert tags_of("weather", "plain") == ()
    assert tags_of("weather", "lm-made") == tags_of("weather", "LM-made") != ()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def _row(row: Hazard) -> list[str]:
    lists = (row.ailuminate, row.harmbench, row.jailbreakbench, row.strongreject, row.owasp, row.atlas)
    return [f"`{row.name}`", *(", ".join(entries) or "none" for entries in lists)]


def test_the_page_shows_these_tables() -> None:
    lines = [_cells(line) for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [line for line in lines if len(line) == 7] == [_row(row) for row in HAZARDS]
    assert [line for line in lines if len(line) == 4] == [
        [f"`{row.family}`", row.title, ", ".join(row.access), ", ".join(row.atlas) or "none"]
        for row in TECHNIQUES
    ]
    named = {**OWASP, **ATLAS, **AILUMINATE}
    assert [line for line in lines if len(line) == 2] == [[f"`{key}`", name] for key, name in named.items()]


@pytest.mark.real
def test_every_atlas_id_exists_under_that_name(real_data: Path) -> None:
    """A technique of the file is an 'id:' with its 'name:' on the next line."""
    path = real_data / "frameworks" / "ATLAS.yaml"
    if not path.is_file():
        pytest.skip("needs ATLAS.yaml: see data:frameworks in docs/references.md")
    text = path.read_text(encoding="utf-8")
    found = dict(re.findall(r"^ *- id: (AML\.T\d{4}(?:\.\d{3})?)\n +name: (.+)$", text, re.MULTILINE))
    assert {key: found.get(key) for key in ATLAS} == ATLAS


@pytest.mark.real
def test_every_category_of_a_published_file_is_known(real_data: Path) -> None:
    path = real_data / "behaviours" / "harmbench_val.csv"
    if not path.is_file():
        pytest.skip("needs harmbench_val.csv: see data:behaviours in docs/references.md")
    with path.open(encoding="utf-8", newline="") as file:
        categories = {row["SemanticCategory"] for row in csv.DictReader(file)}
    assert len(categories) == 7
    assert {category for row in HAZARDS for category in row.harmbench} == categories
