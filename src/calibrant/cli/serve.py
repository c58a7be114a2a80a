"""`calibrant serve`: servers. `serve guard` is the guard proxy."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from calibrant.app import catalog
from calibrant.app.guarding import opened_model, opened_stack
from calibrant.app.references import locate
from calibrant.app.references.openers import Openers
from calibrant.app.study import finished_jobs
from calibrant.cli._options import LEDGER, AllowPython, Where
from calibrant.core import ConfigError
from calibrant.ledger import Ledger

app = typer.Typer(no_args_is_help=True)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


Study = Annotated[str, typer.Option("--study", help="Name of the study whose jobs 'record:JOB' means.")]


class Kept(StrEnum):
    """How texts stand in the audit."""

    digest = "digest"
    full = "full"


@app.callback()
def serve() -> None:
    """Serve a guarded model."""


@app.command()
def guard(
    stack: Annotated[str, typer.Argument(help="File of the layers, such as own_guards.toml.")],
    upstream: Annotated[
        str, typer.Option("--upstream", help="OpenAI-compatible server: http://localhost:8000/v1.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Or a reference to a model, which runs in this process.")
    ] = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535)] = 8900,
    key_env: Annotated[
        str, typer.Option("--key-env", help="Variable that holds the upstream's key; else the client's.")
    ] = "",
    token_env: Annotated[
        str, typer.Option("--token-env", help="Variable that holds the token which clients must send.")
    ] = "",
    deadline: Annotated[float, typer.Option("--deadline", help="Seconds for one request.", min=0.1)] = 120.0,
    refusal_after: Annotated[
        float,
        typer.Option(
            "--refusal-after", help="No refusal leaves before so many seconds; 0: at once.", min=0.0
        ),
    ] = 0.0,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Largest request.", min=1)] = 2**20,
    keep: Annotated[
        Kept, typer.Option("--keep", help="Texts in the audit: salted digests, or in full, for replay.")
    ] = Kept.digest,
    study: Study = "",
    ledger: Where = LEDGER,
    allow_python: AllowPython = False,
) -> None:
    """Put guards before and behind a model: an OpenAI-compatible proxy that fails closed."""
    if bool(upstream) == bool(model):
        raise ConfigError(
            "it takes one of --upstream and --model" + (", not both" if model else ""),
            hint="--upstream http://localhost:8000/v1, or --model ./my-model",
        )
    token, key = _secret(token_env), _secret(key_env)
    if host not in _LOOPBACK and not token:
        raise ConfigError(
            f"on {host} everybody could use the model",
            hint="give --token-env NAME, or listen on 127.0.0.1 behind a gateway that lets people in",
        )
    settings = catalog.load("calibrant.serve.proxy.case:Settings")(
        upstream=upstream,
        key=key,
        token=token,
        host=host,
        port=port,
        deadline=deadline,
        refusal_after=refusal_after,
        most_bytes=max_bytes,
        keep=keep.value,
        audits=ledger / "audit",
    )
    openers = _openers(ledger, stack, study, allow_python)
    spec, layers = opened_stack(stack, openers)
    behind = opened_model(model, openers) if model else None
    run = catalog.load("calibrant.serve.proxy.run:run")
    run(spec, layers, behind, settings, lambda text: typer.echo(text, err=True))


@app.command()
def replay(
    audit: Annotated[Path, typer.Argument(help="File of an audit that keeps texts in full.")],
    stack: Annotated[str, typer.Argument(help="File of the layers to ask.")],
    study: Study = "",
    ledger: Where = LEDGER,
    allow_python: AllowPython = False,
) -> None:
    """Ask layers about what an audit holds; exit status 1 where something would end otherwise."""
    spec, layers = opened_stack(stack, _openers(ledger, stack, study, allow_python))
    told = catalog.load("calibrant.serve.proxy.replay:replayed")(audit, layers, spec)
    typer.echo(told.summary())
    raise typer.Exit(1 if told.changed or told.policy else 0)


def _openers(ledger: Path, stack: str, study: str, allow_python: bool) -> Openers:
    """Openers that know the jobs which the stack file names as 'record:JOB'."""
    store = Ledger(ledger)
    named = locate.file(stack, Path.cwd()).read_text(encoding="utf-8", errors="replace")
    return Openers(store, jobs=finished_jobs(store, named, study), allow_python=allow_python)


def _secret(name: str) -> str:
    """What the environment variable ``name`` holds; "" without a name."""
    if not name:
        return ""
    value = os.environ.get(name, "").strip()
    if not value or not value.isascii() or not value.isprintable():
        raise ConfigError(f"the environment variable {name} holds no usable key", hint=f"export {name}=...")
    return value
