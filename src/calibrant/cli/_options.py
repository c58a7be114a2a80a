"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Where = Annotated[Path, typer.Option("--ledger", help="Folder of the ledger.", envvar="CALIBRANT_LEDGER")]
AllowPython = Annotated[bool, typer.Option("--allow-python", help="Allow references to code, python:mod:fn.")]
LEDGER = Path(".calibrant")
