"""What the pages on looking inside a model tell a reader to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def test_what_the_page_on_activations_shows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile("\n".join(blocks("activations.md", "python")), "activations.md", "exec"), {})
    assert "i can not help with that" in capsys.readouterr().out
