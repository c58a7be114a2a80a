"""`calibrant keys` and `calibrant seal`: keys, and signed checkpoints of a ledger in a file outside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibrant.app import catalog
from calibrant.cli._options import LEDGER, Where


def keys(
    path: Annotated[Path, typer.Argument(help="Where the private key goes, such as keys/ann.pem.")],
) -> None:
    """Make an Ed25519 key: a private file for its owner alone, and the public one (.pub) beside it."""
    if path.suffix != ".pem":
        path = path.with_name(f"{path.name}.pem")
    key = catalog.load("calibrant.ledger.signatures:PrivateKey").new(path.stem)
    public = key.write(path)
    typer.echo(f"private key: {path}\npublic key: {public}, to give to who verifies\nid: {key.public.id}")


def seal(
    to: Annotated[Path, typer.Argument(help="File for the checkpoint, .jsonl, that others keep.")],
    key: Annotated[Path, typer.Option("--key", help="File of the private key that signs.")],
    name: Annotated[
        str, typer.Option("--name", help="Name of the log; else that of the first checkpoint.")
    ] = "",
    ledger: Where = LEDGER,
) -> None:
    """Sign how many records a ledger has, and which; a cut or rewritten ledger then shows."""
    made = catalog.load("calibrant.app.witness:seal")(ledger, key, to, name)
    typer.echo(f"'{made.origin}', {made.size} records, root {made.root.hex()}: signed, in {to}")
