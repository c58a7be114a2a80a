"""Plain data to terminal text. Nothing is computed here."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from calibrant.app.execute import NOT_USED
from calibrant.app.listing import PLANNED, beside, hazards, headline
from calibrant.app.study import Outcome
from calibrant.core import Estimate, Record
from calibrant.core.digest import plain
from calibrant.core.record import why_nothing
from calibrant.core.shown import harmless, harmless_json
from calibrant.data.edge_graph import DOUBT


class _Out(Console):
    def on_broken_pipe(self) -> None:
        """Let the command line answer: rich would leave with 1, which means 'fail' here."""
        raise BrokenPipeError

    def render_str(self, text: str, **how: Any) -> Text:
        """No text that is printed steers the terminal or holds a key: rich lets an ESC pass."""
        return super().render_str(harmless(text), **how)


OUT = _Out(soft_wrap=True, highlight=False)
WORDS = {"yes": "PASS", "no": "FAIL", "unknown": "INCONCLUSIVE"}
"""How an answer reads when a release is asked about."""
ANSWERS = ("measure.preference", "understand.triangulate")
"""Techniques whose first limit says whether a claim is supported."""
OF_INPUTS = (NOT_USED, DOUBT)
"""How limits begin that say what is odd about an input: each is printed once."""
_LINES = 8
"""Most lines that are shown of what one rule leaves open."""
_COLOURS = {"yes": "green", "no": "red", "unknown": "yellow"}


def json_of(value: Any) -> None:
    """Print ``value`` for a program."""
    sys.stdout.write(harmless_json(json.dumps(plain(value), indent=2, ensure_ascii=False)) + "\n")


def listing(entries: dict[str, dict[str, str]]) -> None:
    """`calibrant ls`."""
    for heading, names in entries.items():
        OUT.print(f"[bold]{heading}[/bold]")
        width = max(map(len, names), default=0)
        for name, summary in names.items():
            OUT.print(f"  {name:<{width}}  [dim]{escape(summary)}[/dim]")


def description(entry: dict[str, Any]) -> None:
    """`calibrant show`."""
    OUT.print(f"[bold]{entry['name']}[/bold]  {entry['kind']}, version {entry['version']}\n")
    OUT.print(escape(entry["about"]) + "\n")
    OUT.print("[bold]inputs[/bold]")
    for name, about in entry["inputs"].items():
        OUT.print(f"  {name}: {about['wanted']}{'' if about['required'] else '  [dim](optional)[/dim]'}")
    OUT.print("[bold]config[/bold]")
    for name, about in entry["config"].items():
        values = f" (one of {about['type'].replace(' | ', ', ')})" if "' | '" in about["type"] else ""
        told = escape(f"{about['help']}{values}")
        OUT.print(f"  {name} = {escape(repr(about['default']))}\n      [dim]{told}[/dim]")


def record(digest: str, one: Record) -> None:
    """`calibrant log RECORD`: its numbers, its inputs and what limits it."""
    head = f"{one.study}/{one.job_id}, seed {one.seed}: {one.technique}, version {one.version}, {one.status}"
    OUT.print(f"[bold]{escape(head)}[/bold]\n[dim]{digest}[/dim]")
    if one.failure is not None:
        OUT.print(f"[red]{escape(one.failure.message)}[/red]\n  -> {escape(one.failure.hint)}")
    table = Table(box=None, pad_edge=False)
    table.add_column("metric", overflow="fold")
    table.add_column("value", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("unit; remark", overflow="fold")
    for name, estimate in one.metrics.items():
        value = str(estimate).removesuffix(f" ({estimate.reason or 'no reason given'})")
        told = "; ".join(filter(None, (estimate.unit, estimate.reason)))
        table.add_row(escape(name), escape(value), f"{estimate.n:,}" if estimate.n else "", escape(told))
    OUT.print(table)
    for title, rows in (
        ("inputs", [f"{name}: {one.reference}" for name, one in one.inputs.items()]),
        ("limits", list(one.limits)),
        ("stored files", [artifact.name for artifact in one.artifacts]),
    ):
        if rows:
            OUT.print(f"[bold]{title}[/bold]")
            for row in rows:
                OUT.print(f"  {escape(row)}")


def log(rows: list[dict[str, Any]]) -> None:
    """`calibrant log`."""
    table = Table(box=None, pad_edge=False)
    for heading in ("#", "record", "job", "seed", "status", "s", "headline"):
        table.add_column(heading, overflow="fold" if heading == "headline" else "ellipsis")
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        text = row["failure"] or row["headline"]
        name = f"{row['study']}/{row['job']}" if row["study"] else row["job"]
        cells = (str(row["seq"]), row["digest"][:12], name, str(row["seed"]), row["status"], seconds, text)
        table.add_row(*(escape(cell) for cell in cells))
    OUT.print(table)


def status(found: dict[str, Any]) -> None:
    """`calibrant status`."""
    last = found["last"] or {}
    lines = {
        "ledger": found["ledger"],
        "records": f"{found['records']}" + "".join(f", {n} {name}" for name, n in found["by_status"].items()),
        "studies": ", ".join(found["studies"]) or "none",
        "unfinished": ", ".join(found["unfinished"]) or "none",
        "last": " ".join(last[key] for key in ("digest", "job", "status", "recorded_at") if last) or "none",
    }
    for key, value in lines.items():
        OUT.print(f"{key}: {value}", markup=False)


def outcome(done: Outcome, gates: list[tuple[int, dict[str, Any]]], page: str) -> None:
    """`calibrant run`: what each job found, why a gate did not pass, the verdict, and where the page is."""
    for job, entry in done.runs:
        record, name = entry.record, f"{job.id}#{job.seed}"
        if record.status != "finished":
            continue
        metric, estimate = headline(record)
        OUT.print(f"  {name:<22} {escape(_flat(f'{metric} {estimate}') if metric else 'done')}")
        if more := beside(record):
            OUT.print(f"  {'':<22} {escape(_flat(more))}")
        if metric == PLANNED:
            for planned, most in record.metrics.items():
                if planned != PLANNED:
                    OUT.print(f"  {'':<22} {escape(_flat(f'{planned} {most}'))}")
        if record.technique in ANSWERS:
            OUT.print(f"  {'':<22} [dim]{escape(_flat(record.limits[0]))}[/dim]")
        elif estimate is not None and estimate.value is None:  # why nothing was measured
            for limit in record.limits:
                OUT.print(f"  {'':<22} [dim]{escape(_flat(limit))}[/dim]")
        else:
            for limit in why_nothing(record):
                OUT.print(f"  {'':<22} [dim]nothing is stored: {escape(_flat(limit))}[/dim]")
    unfinished(done)
    doubted = [limit for _, e in done.runs for limit in e.record.limits if limit.startswith(OF_INPUTS)]
    for limit in dict.fromkeys(doubted):
        OUT.print(escape(_flat(limit)))
    for job, entry in done.runs:
        matrix(f"{job.id}#{job.seed}", hazards(entry.record))
    if done.reused:
        OUT.print(f"\n{done.reused} of {len(done.runs)} runs were already finished and were not run again.")
    for seed, table in gates:
        if table["verdict"]["answer"] != "yes":
            OUT.print(f"\ngate, seed {seed}")
            rules(table)
    verdict(done.verdict.answer, done.verdict.reason, gated=done.study.verdict is not None)
    for name, parts in done.verdict.about.items():
        for part in parts:
            OUT.print(f"  {name:<12}{_flat(part)}", markup=False)
            name = ""
    if done.unfinished:
        OUT.print(
            f"{len(done.unfinished)} of {len(done.runs)} runs did not finish: fix the first, run again."
        )
    OUT.print(f"page: {page}", markup=False)


def unfinished(done: Outcome) -> None:
    """What did not finish: each reason once, with all its runs; what could not start for want of another."""
    skipped = done.skipped
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for job, entry in done.runs:
        record, name = entry.record, f"{job.id}#{job.seed}"
        if record.status != "finished" and name not in skipped:
            failure = record.failure
            problem = (failure.message, failure.hint) if failure else (record.status, "")
            reasons.setdefault((record.status, *problem), []).append(name)
    for (status, message, hint), names in reasons.items():
        OUT.print(f"  [red]{names[0]:<22} {status}: {escape(_flat(message))}[/red]")
        if names[1:]:
            OUT.print(f"  {'':<22} the same {len(names) - 1} times more: {', '.join(names[1:])}")
        if hint:
            OUT.print(f"  {'':<22} -> {escape(_flat(hint))}")
    for name, needed in skipped.items():
        OUT.print(f"  [red]{name:<22} skipped: it needs {needed}, which did not finish[/red]")


def matrix(name: str, rates: dict[str, dict[str, Estimate]]) -> None:
    """Success of a campaign by hazard and technique family, with bounds; nothing for other records."""
    if not rates:
        return
    families = list(dict.fromkeys(family for row in rates.values() for family in row))
    rows = [["technique", *(_flat(hazard.replace("_", " ")) for hazard in rates)]]
    for family in families:
        rows.append(
            [_flat(family), *(_percent(row[family]) if family in row else "" for row in rates.values())]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    OUT.print(f"\n{escape(name)}: goals reached, in % [95 % interval], by technique and hazard")
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        OUT.print(f"  {'  '.join(cells)}", markup=False)


def _percent(estimate: Estimate) -> str:
    """'12 [5, 23]'; '?' where it is unknown."""
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = ("?" if end is None else f"{100 * end:.0f}" for end in ends)
    return f"{value} [{low}, {high}]"


def verdict(answer: str, reason: str, *, gated: bool = True) -> None:
    """The last word."""
    word = WORDS[answer] if gated or answer != "yes" else "DONE"
    OUT.print(f"\n[bold {_COLOURS[answer]}]{word}[/bold {_COLOURS[answer]}]  {escape(_flat(reason))}")


def _flat(text: str) -> str:
    """In one line: a name or a question that holds line ends could write a verdict of its own."""
    return " ".join(text.split())


def gate(table: dict[str, Any]) -> None:
    """`calibrant gate`: what was asked, every rule with its reason, what is left open, the verdict."""
    OUT.print(f"  system  {_flat(table['subject_name'])} ({table['subject'][:12]})", markup=False)
    OUT.print(f"  policy  {_flat(table['policy_name'])} ({table['policy'][:12]})", markup=False)
    rules(table)
    for rule in table["rules"]:
        _open(rule)
    verdict(table["verdict"]["answer"], table["verdict"]["reason"])


def _open(rule: dict[str, Any]) -> None:
    """What a rule does not pin, as lines that would pin it: a few, and how many more there are."""
    lines = [f"{key} = {'...' if v is None else json.dumps(v)}" for key, v in rule["unpinned"].items()]
    if lines:
        OUT.print(f"  {rule['id']} does not pin:", markup=False)
    for line in lines[:_LINES]:
        OUT.print(f"    {line}", markup=False)
    if len(lines) > _LINES:
        OUT.print(f"    and {len(lines) - _LINES} more, which --json shows", markup=False)


def rules(table: dict[str, Any]) -> None:
    """Every rule of a gate with its reason."""
    for rule in table["rules"]:
        colour, line = _COLOURS[rule["answer"]], escape(_flat(f"{rule['id']}: {rule['reason']}"))
        OUT.print(f"  [{colour}]{WORDS[rule['answer']]:<12}[/{colour}] {line}")
        for word, text in (("judge", rule.get("judge")), ("data", rule.get("read"))):
            if text:
                OUT.print(f"  {'':<12} {word}: {_flat(text)}", markup=False, style="dim")
