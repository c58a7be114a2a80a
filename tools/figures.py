"""Draw a study's figures for the documentation, each as an SVG file that stands alone.

    .venv/bin/python tools/figures.py demo
    .venv/bin/python tools/figures.py real_weights --ledger runs/real

They are the figures of the study's page, drawn from the records of the ledger and from nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calibrant.app import pages
from calibrant.app.study_file import load_study
from calibrant.core import CalibrantError
from calibrant.ledger import Ledger
from calibrant.views import page
from calibrant.views.series import lanes
from calibrant.views.standalone import standalone

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
NAMES = {"demo": ("harm", "cost", "lens")}
"""What the figures of a study are called, in order; others are numbered, and a lone one needs no number."""


def draw(ledger: Ledger, study: str, folder: Path) -> list[Path]:
    """Write every figure of ``study`` to ``folder`` and return the paths.

    Raises:
        InputError: the ledger holds no record of the study. ConfigError: no such study.
    """
    view = pages.view(pages.from_ledger(load_study(study), ledger), ledger)
    drawn = page.figures(view)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, figure in enumerate(drawn):
        known = NAMES.get(view.name, ())
        key = known[index] if index < len(known) else "" if len(drawn) == 1 else str(index + 1)
        path = folder / f"{'_'.join(filter(None, (view.name, key)))}.svg"
        path.write_text(standalone(figure), encoding="utf-8")
        paths.append(path)
        empty = [lane.series for lane in lanes(figure.spec, view.entries) if not lane.marks]
        for series in empty:
            sys.stderr.write(f"{path.name}: no record of job '{series.job_id}' ({series.label})\n")
    return paths


def main() -> int:
    """Draw; say where. 3 where something is missing, as the command line does."""
    parser = argparse.ArgumentParser(description="Draw a study's figures as SVG files for docs/figures.")
    parser.add_argument("study", help="a packaged study, or a TOML file")
    parser.add_argument("--ledger", type=Path, default=Path(".calibrant"), help="folder of the ledger")
    parser.add_argument("--to", type=Path, default=FIGURES, help="folder of the figures")
    given = parser.parse_args()
    try:
        for path in draw(Ledger(given.ledger), given.study, given.to):
            sys.stdout.write(f"{path}\n")
    except CalibrantError as error:
        sys.stderr.write(f"figures: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
