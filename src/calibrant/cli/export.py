"""`calibrant export`: attempts for other tools; prompts and replies are redacted by default."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from calibrant.app import catalog
from calibrant.cli import render
from calibrant.cli._options import LEDGER, Where
from calibrant.core.shown import visible
from calibrant.ledger import Ledger


class Format(StrEnum):
    """What can be written."""

    jsonl = "jsonl"
    parquet = "parquet"
    eval = "eval"
    sarif = "sarif"
    avid = "avid"
    junit = "junit"
    html = "html"


def export(
    source: Annotated[
        str,
        typer.Argument(help="record:JOB/attempts.jsonl, an attempts file, or garak:PATH and similar."),
    ],
    to: Annotated[Format, typer.Option("--to", help="jsonl, parquet, eval, sarif, avid, junit or html.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write it.")],
    reveal: Annotated[bool, typer.Option("--reveal", help="Show prompts and replies.")] = False,
    study: Annotated[
        str, typer.Option("--study", help="Name of the study whose jobs 'record:JOB' means.")
    ] = "",
    ledger: Where = LEDGER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Export attempts to other tools (SARIF, JUnit, Inspect, AVID, HTML, ...), redacted unless revealed."""
    write = catalog.load("calibrant.app.export:export")
    done = write(source, to.value, out, ledger=Ledger(ledger), study=study, reveal=reveal)
    if as_json:
        render.json_of(done)
        return
    target = done.target or "an unnamed target"
    if done.what == "answers":
        _say(
            f"{done.attempts} answers of {target}: {done.successes} correct, {done.undetermined} without one"
        )
    else:
        _say(
            f"{done.attempts} attempts on {target}: {done.successes} succeeded, "
            f"{done.undetermined} undetermined"
        )
    if done.refused:
        first = done.refused[0]
        _say(f"{len(done.refused)} rows left out, first line {first.line}: {first.reason}")
    if done.disputed:
        _say(f"totals in the source are not those of its rows: {done.disputed}")
    covered = "prompts and replies are in it" if done.revealed else "prompts and replies are covered"
    _say(f"{done.format}: {done.path} ({covered})")


def _say(text: str) -> None:
    render.OUT.print(visible(text), markup=False, emoji=False)
