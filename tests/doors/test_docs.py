"""What `docs/` repeats from the code is what the code says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from calibrant.app.check import check_study
from calibrant.app.study_file import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """``tools/docs.py``, which is a script and no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("calibrant_docs", ROOT / "tools" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_pages_are_those_of_the_code(docs: ModuleType) -> None:
    pages, problems = docs.generated(ROOT / "docs")
    assert not problems, "write these pages: " + "; ".join(problems)
    stale = [
        name
        for name, text in pages.items()
        if not (path := ROOT / "docs" / name).is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run `make docs`: {stale}"


def test_only_what_stands_between_the_markers_is_rewritten(docs: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "train.dpo.md"
    page.write_text(
        f"# By hand\n\n{docs.BEGIN}\nwhat stood here\n{docs.END}\n\nAlso by hand.\n", encoding="utf-8"
    )
    text = docs.generated(tmp_path)[0]["train.dpo.md"]
    assert text.startswith(f"# By hand\n\n{docs.BEGIN}\n") and text.endswith(f"{docs.END}\n\nAlso by hand.\n")
    assert "what stood here" not in text and "| `epochs` | `int` | `1` |" in text
    page.write_text(text, encoding="utf-8")
    assert docs.generated(tmp_path)[0]["train.dpo.md"] == text, "a second run changes nothing"


def test_pages_without_markers_and_missing_pages_are_named_and_not_made(
    docs: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "train.dpo.md").write_text(f"{docs.END} {docs.BEGIN}", encoding="utf-8")
    pages, problems = docs.generated(tmp_path)
    assert set(pages) == {"cli.md", "techniques.md", "../decisions/floors.svg"}
    assert len(problems) == len(docs.names())
    assert any("train.dpo.md needs" in problem for problem in problems)
    assert any("train.sft.md is missing" in problem for problem in problems)


def test_no_two_names_share_a_page(docs: ModuleType) -> None:
    files = [docs.page(name) for name in docs.names()]
    assert len(set(files)) == len(files)


def test_a_cell_never_breaks_its_table(docs: ModuleType) -> None:
    row = next(iter(docs.table([docs._cell("int |\n None")], [])))
    assert row == "| int \\| None |"


def test_every_study_of_a_page_passes_check(tmp_path: Path) -> None:
    faults: dict[str, list[str]] = {}
    for page in sorted((ROOT / "docs").glob("*.md")):
        studies = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        for number, study in enumerate(studies):
            path = tmp_path / f"{page.stem}_{number}.toml"
            path.write_text(study, encoding="utf-8")
            if (
                "[[job]]" in study
                and study.startswith("name = ")
                and (found := check_study(load_study(str(path)), files=False))
            ):
                faults[f"{page.name}, block {number}"] = found
    assert faults == {}
