"""`calibrant console`: manual red-teaming in the terminal. Works with piped input too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibrant.app import catalog
from calibrant.app.references import locate
from calibrant.app.references.openers import Openers
from calibrant.app.references.schemes import scheme
from calibrant.cli import render
from calibrant.cli._options import LEDGER, AllowPython, Where
from calibrant.cli.annotate import Ignore, tell_unused
from calibrant.core import LM, InputError, Judge, Sampling
from calibrant.core.shown import visible
from calibrant.data.rows import Goals
from calibrant.ledger import Ledger

if TYPE_CHECKING:
    from calibrant.app.people.console_session import ConsoleSession


def console(
    target: Annotated[str, typer.Argument(help="The target: a reference to a model, defended or not.")],
    out: Annotated[Path, typer.Option("--out", help="File of attempts (.jsonl), append-only.")],
    goals: Annotated[str, typer.Option("--goals", help="Reference of a table of goals.")] = "",
    judge: Annotated[
        str, typer.Option("--judge", help="testbed:judge/NAME, a behaviour's name, or a TOML file of one.")
    ] = "",
    show_layers: Annotated[bool, typer.Option("--show-layers", help="Show what each guard says.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest reply.", min=1)] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
    ignore: Ignore = None,
    ledger: Where = LEDGER,
    allow_python: AllowPython = False,
) -> None:
    """Red-team a model by hand; every turn becomes an attempt. Run it again to resume."""
    openers = Openers(Ledger(ledger), allow_python=allow_python)
    reference = {"file": goals, "ignore": tuple(ignore or ())}
    table = openers.open(reference, Goals).load() if goals else None
    if table is not None:
        tell_unused(table)
    session = catalog.load("calibrant.app.people.console_session:ConsoleSession")(
        openers.open(target, LM).load(),
        out,
        table,
        judge=openers.open(_judge(judge), Judge).load() if judge else None,
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed),
        show_layers=show_layers,
    )
    with session:
        try:
            _talk(session)
        except KeyboardInterrupt:  # as good a way to leave as any: all is on the disk
            _say("")
        finally:
            _say(f"{session.console.turns.counts()}; kept in {out}")


def _judge(named: str) -> Any:
    """A reference to a judge."""
    if scheme(named):
        return named
    return locate.toml(locate.file(named, Path.cwd())) if named.endswith(".toml") else {"use": named}


def _talk(session: ConsoleSession) -> None:
    """Read lines until the person leaves or the input ends."""
    _say(session.console.greeting())
    while not session.over:
        line = _line()
        if line == "":
            return
        for text in session.hear(line):
            _say(text)


def _line() -> str:
    """The next line of input; "" at its end."""
    if sys.stdin.isatty():
        render.OUT.print("> ", end="")
    try:
        return sys.stdin.readline()
    except UnicodeDecodeError:
        raise InputError("the input is not UTF-8 text", hint="type or pipe UTF-8") from None


def _say(text: str) -> None:
    render.OUT.print(visible(text), markup=False, emoji=False)
