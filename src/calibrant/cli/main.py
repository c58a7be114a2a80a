"""The command line: parse, call app, render. No logic of its own.

Exit status: 0 pass, 1 fail, 2 inconclusive, 3 tool error. ``--json`` wherever a program may read.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from calibrant import __version__
from calibrant.app import catalog, listing
from calibrant.app.check import check_guards, check_study, stack_file
from calibrant.app.execute import execute
from calibrant.app.references.openers import Openers
from calibrant.app.study import Outcome, finished_jobs, run_study
from calibrant.app.study_file import load_study
from calibrant.app.verdict import gate_table
from calibrant.cli import render, serve
from calibrant.cli._options import LEDGER, AllowPython, Where
from calibrant.cli.annotate import annotate
from calibrant.cli.console import console
from calibrant.cli.export import export
from calibrant.cli.progress import Shown
from calibrant.cli.seal import keys, seal
from calibrant.core import CalibrantError, ConfigError, Job, Verdict
from calibrant.core.digest import plain
from calibrant.core.secrets import without_secrets
from calibrant.core.shown import harmless
from calibrant.govern.gate import exit_code
from calibrant.ledger import Ledger, verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, understand, attack, oversee, defend and gate language models, with evidence.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Changes = Annotated[list[str] | None, typer.Argument(help="given.NAME=VALUE, or JOB.FIELD=VALUE.")]
# Typer carries a copy of click whose errors it does not export; this is its UsageError.
_Usage: Any = typer.BadParameter.__base__
_BUG = "calibrant: this is a bug; please report it with the lines above\n"
STOPPED = "Stopped. Finished jobs are kept: run the same command again to resume."


@app.command()
def ls(as_json: Json = False) -> None:
    """List techniques, behaviours and packaged studies."""
    entries = listing.everything()
    if as_json:
        render.json_of(entries)
    else:
        render.listing(entries)


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Explain a technique or behaviour: inputs, config, defaults."""
    entry = listing.describe(name)
    if as_json:
        render.json_of(entry)
    else:
        render.description(entry)


@app.command()
def check(
    study: str, changes: Changes = None, as_json: Json = False, allow_python: AllowPython = False
) -> None:
    """Find every problem of a study, or of a file of guards, without running it."""
    guards = stack_file(study)
    if guards is not None and not changes:
        name = guards.name
        fine, problems = check_guards(guards, allow_python=allow_python)
    else:
        loaded = load_study(study, changes or [])
        name, problems = loaded.name, check_study(loaded, allow_python=allow_python, files=True)
        fine = f"{sum(len(job.runs()) for job in loaded.job)} runs of {len(loaded.job)} jobs"
    if as_json:
        render.json_of({"study": name, "problems": without_secrets(problems)})
    elif not problems:
        render.OUT.print(f"{name}: {fine}, no problem found")
    if problems:
        if as_json:
            raise typer.Exit(3)
        raise ConfigError(problems)


@app.command()
def run(
    study: str,
    changes: Changes = None,
    ledger: Where = LEDGER,
    as_json: Json = False,
    allow_python: AllowPython = False,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Also write event files here, one folder per job.")
    ] = None,
) -> None:
    """Run or resume a study: finished jobs are skipped. Writes its page and prints the verdict."""
    _run(study, changes or [], ledger, as_json=as_json, allow_python=allow_python, board=tensorboard)


@app.command()
def demo(ledger: Where = LEDGER, as_json: Json = False) -> None:
    """Measure, align, attack, defend, attack again and gate a small model, with a page of evidence."""
    _run("demo", [], ledger, as_json=as_json, allow_python=False)


def _run(
    name: str,
    changes: list[str],
    where: Path,
    *,
    as_json: bool,
    allow_python: bool,
    board: Path | None = None,
) -> None:
    study, ledger = load_study(name, changes), Ledger(where)
    with Shown(sys.stderr) as progress:
        outcome = run_study(study, ledger, progress, allow_python=allow_python, board=board)
    _finish(outcome, ledger, as_json)


def _finish(outcome: Outcome, ledger: Ledger, as_json: bool) -> None:
    page = str(catalog.load("calibrant.app.pages:write")(outcome, ledger))
    for run, crash in outcome.crashes.items():
        sys.stderr.write(harmless(without_secrets(f"{run} crashed: {crash}{_BUG}")))
    if as_json:
        rows = [listing.row(entry) for _, entry in outcome.runs]
        render.json_of(
            {
                "verdict": outcome.verdict,
                "page": page,
                "reused": outcome.reused,
                "records": rows,
                "skipped": outcome.skipped,
            }
        )
    else:
        finished = [(job.seed, e) for job, e in outcome.runs if e.record.status == "finished"]
        gates = [(s, gate_table(e, ledger)) for s, e in finished if e.record.technique == "govern.gate"]
        render.outcome(outcome, gates, page)
    # What broke must be mended before the verdict means anything, so it comes first.
    raise typer.Exit(3 if outcome.unfinished else exit_code(outcome.verdict))


app.command()(annotate)
app.command()(console)
app.command()(export)
app.command()(keys)
app.command()(seal)
app.add_typer(serve.app, name="serve")


@app.command()
def log(
    record: Annotated[
        str,
        typer.Argument(help="One record to show: its digest (or a beginning), STUDY/JOB or STUDY/JOB#SEED."),
    ] = "",
    ledger: Where = LEDGER,
    files: Annotated[
        Path | None, typer.Option("--files", help="Copy the record's stored files into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the records of a ledger, or show one of them."""
    store = Ledger(ledger)
    if files is not None:
        for path in catalog.load("calibrant.app.copies:copy_out")(store, record, files):
            sys.stdout.write(f"{path}\n")
        return
    if record:
        entry = listing.entry_of(store, record)
        if as_json:
            render.json_of(entry.record.statement())
        else:
            render.record(entry.digest, entry.record)
        return
    rows = [listing.row(entry) for entry in store.entries()]
    if as_json:
        render.json_of(rows)
    else:
        render.log(rows)


@app.command()
def view(study: Annotated[str, typer.Argument()] = "demo", ledger: Where = LEDGER) -> None:
    """Write the page of a study from what the ledger holds, and print its path."""
    store = Ledger(ledger)
    outcome = catalog.load("calibrant.app.pages:from_ledger")(load_study(study), store)
    sys.stdout.write(f"{catalog.load('calibrant.app.pages:write')(outcome, store)}\n")


@app.command()
def gate(
    policy: Annotated[str, typer.Argument(help="TOML file of the release policy.")],
    subject: Annotated[str, typer.Argument(help="Reference of the system to be released.")],
    study: Annotated[
        str, typer.Option("--study", help="Name of the study whose jobs 'record:JOB' means.")
    ] = "",
    ledger: Where = LEDGER,
    as_json: Json = False,
    allow_python: AllowPython = False,
) -> None:
    """Release gate: weigh the ledger's evidence about a system against a policy. Loads no model."""
    store = Ledger(ledger)
    job = Job(id="gate", use="govern.gate", inputs={"subject": subject, "policy": policy})
    record = execute(
        job, Openers(store, jobs=finished_jobs(store, subject, study), allow_python=allow_python)
    )
    if record.failure is not None:
        raise CalibrantError(record.failure.message, hint=record.failure.hint)
    table = gate_table(store.get(record.digest), store)
    if as_json:
        render.json_of(table)
    else:
        render.gate(table)
    raise typer.Exit(exit_code(Verdict.model_validate(table["verdict"])))


@app.command("verify")
def verify_command(
    ledger: Where = LEDGER,
    as_json: Json = False,
    witness: Annotated[
        Path | None, typer.Option("--witness", help="File of checkpoints that was kept elsewhere.")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="Public key whose checkpoints count; may be repeated."),
    ] = None,
) -> None:
    """Check that every record and stored file of a ledger is intact, and what a witness saw of it."""
    if trust and witness is None:
        raise ConfigError(
            "--trust without --witness", hint="give the file of checkpoints that was kept elsewhere"
        )
    report, tail = verify(ledger), None
    if witness is not None:
        tail = catalog.load("calibrant.app.witness:tail_of")(ledger, witness, trust or [])
    verdicts = [report.verdict, *([tail.verdict] if tail else [])]
    worst = min(verdicts, key=lambda one: ("no", "unknown", "yes").index(one.answer))
    if as_json:
        told = {**plain(report), "verdict": plain(report.verdict)}
        render.json_of(
            told if tail is None else {**told, "tail": plain(tail.verdict), "witness": tail.notices}
        )
    else:
        for line in (*report.notices, *(tail.notices if tail else ()), *report.problems):
            render.OUT.print(line, markup=False)
        render.OUT.print(f"{report.records} records, {report.artifacts} artefacts, {report.bytes:,} bytes")
        render.OUT.print(f"head: {report.head or 'none'}", markup=False)
        render.verdict(report.verdict.answer, f"intact: {report.verdict.reason}")
        if tail is not None:
            render.verdict(tail.verdict.answer, f"tail witnessed: {tail.verdict.reason}")
    raise typer.Exit(exit_code(worst))


@app.command()
def status(ledger: Where = LEDGER, as_json: Json = False) -> None:
    """Status of a ledger: records, studies, unfinished jobs."""
    state = listing.status(Ledger(ledger))
    if as_json:
        render.json_of(state)
    else:
        render.status(state)


@app.callback(invoke_without_command=True)
def _version(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        sys.stdout.write(f"calibrant {__version__}\n")
        raise typer.Exit(0)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; always ends in SystemExit with one of the four exit statuses."""
    # A closed pipe or a crash must not look like 'fail' (1) to a program that reads the status.
    try:
        code = _invoke(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except CalibrantError as error:
        sys.stderr.write(harmless(f"calibrant: {without_secrets(str(error))}\n"))
        code = 3
    except _Usage as error:
        error.show()
        code = 3
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write(f"\n{STOPPED}\n")
        code = 3
    except BaseException as error:  # noqa: BLE001 - SystemExit of code from elsewhere, too: no verdict
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # rich ends help by SystemExit
        else:
            sys.stderr.write(harmless(without_secrets(traceback.format_exc())))
            sys.stderr.write(_BUG)
        code = 3
    sys.exit(code)


def _invoke(arguments: list[str]) -> int:
    """Run the command and return its exit status; typer's own ``main`` would choose others (130, 1, 2)."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("calibrant", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    return 0
