"""What the pages of the attack wing tell a reader to type works: Python is run, studies are checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from calibrant.app.check import check_study
from calibrant.app.study_file import load_study

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted([*DOCS.glob("attack.*.md"), DOCS / "attacks.md"])
NEEDS_A_MODEL = {"attack.rounds.md", "attack.gcg.md", "attack.soft_prompt.md"}
"""Pages whose Python opens a folder of the reader's own."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = blocks(page, "python")
    assert told
    code = compile("\n".join(told), page.name, "exec")
    if page.name not in NEEDS_A_MODEL:
        exec(code, {"__name__": page.stem})
        assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_studies_of_a_page_can_be_run(page: Path, tmp_path: Path) -> None:
    for number, study in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(study, encoding="utf-8")
        assert check_study(load_study(str(path)), files=False) == []


def test_the_attack_of_the_page_finds_its_hole_and_prints_what_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = DOCS / "attacks.md"
    exec("\n".join(blocks(page, "python")), {"__name__": "attacks"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["holed", "firm"]
    for line in lines:
        assert f"`{line}`" in page.read_text(encoding="utf-8")


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (DOCS / link).exists(), f"{page.name}: {link}"
