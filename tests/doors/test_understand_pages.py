"""What the pages on looking inside a model tell a reader to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from calibrant.app.study import run_study
from calibrant.app.study_file import load_study
from calibrant.ledger import Ledger
from calibrant.views.figures import table
from calibrant.views.series import lanes

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def test_what_the_page_on_activations_shows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile("\n".join(blocks("activations.md", "python")), "activations.md", "exec"), {})
    assert "i can not help with that" in capsys.readouterr().out


SMALL = {
    "contrasts/induction?corrupt=earlier": "contrasts/induction?corrupt=earlier&n=12",
    '"testbed:contrasts/induction"': '"testbed:contrasts/induction?n=12"',
    "contrasts/induction?seed=1": "contrasts/induction?seed=1&n=12",
    "facts/names": "facts/names?n=12",
    "goals/plant_harmful": "goals/plant_harmful?n=32",
    "goals/plant_harmless": "goals/plant_harmless?n=32",
    "random = 20": "random = 10, tokens = 3",
    "prompts/train?n=200": "prompts/train?n=60",
    "tokens = 100000, batch = 512": "tokens = 8000, batch = 256, features = 3",
    '"testbed:prompts/train"': '"testbed:prompts/train?n=60"',
    "steps = 200": "steps = 5",
    "model/base": "model/tiny",
    "limit = 100": "limit = 10",
}
"""What a page's study is made smaller by."""
WITH_FIGURES = (
    "patch", "attribute", "edges", "circuit", "causal_trace", "sae", "lens", "tuned_lens",
    "refusal_direction",
)  # fmt: skip


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_the_figures_of_a_page_show_what_its_study_measured(name: str, tmp_path: Path) -> None:
    study = blocks(f"understand.{name}.md", "toml")[0]
    for whole, small in SMALL.items():
        study = study.replace(whole, small)
    (tmp_path / "study.toml").write_text(study, encoding="utf-8")
    loaded, ledger = load_study(str(tmp_path / "study.toml")), Ledger(tmp_path / "ledger")
    assert loaded.figure
    outcome = run_study(loaded, ledger)
    entries = [entry for entry in ledger.entries() if entry.record.job_id]
    assert all(entry.record.status == "finished" for entry in entries), outcome
    for spec in loaded.figure:
        for lane, mark, reason in table(lanes(spec, entries)):
            assert mark is not None and not reason, f"{spec.title}: {lane.label}: {reason}"
