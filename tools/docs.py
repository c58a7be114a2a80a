"""Regenerate the parts of ``docs/`` that repeat what the code says.

    .venv/bin/python tools/docs.py

- ``cli.md``: every verb with its arguments and options;
- ``techniques.md``: all techniques and behaviours in a line each;
- ``../decisions/floors.svg``: the floors, drawn from the imports (``tools/floors.py``);
- in each technique's page, what stands between the two config markers: inputs, fields, defaults.

Pages are written by people. One that is missing, or lacks its markers, is named, and the exit status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import floors
from typer.main import get_command

from calibrant.app import catalog, listing
from calibrant.cli.main import app
from calibrant.core.digest import plain
from calibrant.understand._cards import rule_in_words, shipped_card
from calibrant.understand._rule import Rule

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- config -->", "<!-- /config -->"
CARD = "<!-- card -->", "<!-- /card -->"
RULINGS = {
    "true": "the planted heads",
    "false": "others, or one planted head and another",
    "null": "any heads, on a null",
}
NOTE = "<!-- Made by `make docs` from the code: edit the code, not this page. -->"


def generated(docs: Path) -> tuple[dict[str, str], list[str]]:
    """The text of every generated page of the folder ``docs`` by file name, and what is missing in it."""
    pages = {"cli.md": cli(), "techniques.md": overview(), "../decisions/floors.svg": floors.picture()}
    problems = []
    for name in names():
        path = docs / page(name)
        if not path.is_file():
            problems.append(f"docs/{path.name} is missing: the page of {name}")
            continue
        text = path.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            problems.append(f"docs/{path.name} needs one '{BEGIN}' and after it one '{END}'")
            continue
        before, _, rest = text.partition(BEGIN)
        pages[path.name] = f"{before}{BEGIN}\n{config(name)}{END}{rest.partition(END)[2]}"
    name = page("understand.calibrate")
    if name in pages:
        before, _, rest = pages[name].partition(CARD[0])
        pages[name] = f"{before}{CARD[0]}\n{card()}{CARD[1]}{rest.partition(CARD[1])[2]}"
    return pages, problems


def card() -> str:
    """The shipped card of instruments, over the three classes of models."""
    shipped = shipped_card()
    cases = ("none", "equal", "third", "tenth", "negative")
    points = [f"{case}/earlier" for case in cases] + ["none/answer"]
    lines = [
        f"{len(shipped.seeds)} draws of each case in each class ({len(shipped.null_seeds)} of nulls), "
        f"{shipped.pairs} pairs. AUROC by case; then, over all cases but `answer`, planted heads found, "
        "sweeps with a false find, and rank correlations with other pairs and with other words.",
        "",
        *_head(
            *("Instrument", *cases, "`answer`", "power", "false finds, planted", "false finds, nulls"),
            *("stability", "paraphrase"),
        ),
    ]
    for name in dict.fromkeys(row.instrument for row in shipped.rows):
        own = [row for row in shipped.rows if row.instrument == name]
        curves = [[a for row in own if row.point.endswith(point) for a in row.auroc] for point in points]
        shown = [row for row in own if not row.null and not row.point.endswith("answer")]
        nulls = [row for row in own if row.null]
        cells = [f"`{name}`", *(f"{sum(one) / len(one):.2f}" if one else "" for one in curves)]
        cells.append(f"{sum(r.hits for r in shown) / max(1, sum(r.planted for r in shown)):.2f}")
        cells += [
            f"{sum(r.false_sweeps for r in part)} of {sum(r.cases for r in part)}" for part in (shown, nulls)
        ]
        for ranks in (
            [r for row in shown for r in row.stability],
            [r for row in shown for r in row.paraphrase],
        ):
            cells.append(f"{sum(ranks) / len(ranks):.2f}" if ranks else "")
        lines.append(f"| {' | '.join(cells)} |")
    words = ("supported", "suggestive", "contradicted")
    lines += ["", *_head("Claim", "judged", *words, "not testable")]
    for kind, says in RULINGS.items():
        for hidden in (False, True) if kind == "true" else (None,):
            ruled = [
                row
                for row in shipped.rulings
                if row.claim == kind and hidden in (None, row.point.endswith("answer"))
            ]
            counts = [sum(getattr(row, word) for row in ruled) for word in ("claims", *words)]
            what = f"{says}, under the corruption that hides one" if hidden else says
            lines.append(f"| {what} | {' | '.join(map(str, [*counts, counts[0] - sum(counts[1:])]))} |")
    told = rule_in_words(shipped, Rule())
    return "\n".join([*lines, "", f"{told[0].upper()}{told[1:]}."]) + "\n"


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]


def names() -> list[str]:
    """Calibrant's own techniques and behaviours; those of other packages have pages of their own."""
    return [*sorted(catalog.TECHNIQUES), *sorted(catalog.BEHAVIOURS)]


def page(name: str) -> str:
    """File name of a page: the catalogue name."""
    return f"{name}.md"


def overview() -> str:
    """``techniques.md``."""
    parts = [NOTE, "", "# Techniques and behaviours", ""]
    parts += ["`calibrant show NAME` prints the same as the linked page's tables.", ""]
    for title, listed in (("Techniques", catalog.TECHNIQUES), ("Behaviours", catalog.BEHAVIOURS)):
        rows = [[f"[{name}]({page(name)})", found.summary] for name, found in sorted(listed.items())]
        parts += [f"## {title}", "", *table(("Name", "What it does"), rows), ""]
    return "\n".join(parts)


def config(name: str) -> str:
    """What stands between the markers of a page: the inputs and the config of ``name``."""
    found = listing.describe(name)
    parts = [f"`{name}`, version {found['version']}", ""]
    inputs = [
        [f"`{key}`", about["wanted"], "yes" if about["required"] else "no"]
        for key, about in found["inputs"].items()
    ]
    fields = [
        [f"`{key}`", _code(about["type"]), _default(about["default"]), _cell(about["help"])]
        for key, about in found["config"].items()
    ]
    if inputs:
        parts += [*table(("Input", "Kind", "Required"), inputs), ""]
    if fields:
        parts += [*table(("Field", "Type", "Default", "Meaning"), fields), ""]
    return "\n".join(parts)


def cli() -> str:
    """``cli.md``."""
    group: Any = get_command(app)
    parts = [NOTE, "", "# The command line", "", group.help, ""]
    parts += ["Exit status: 0 pass, 1 fail, 2 inconclusive, 3 tool error.", ""]
    commands = {
        f"{name} {inner}".strip(): command
        for name, outer in group.commands.items()
        for inner, command in getattr(outer, "commands", {"": outer}).items()
    }
    for name, command in commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = ["calibrant", name, *(_usage(p) for p in arguments), *(["[OPTIONS]"] if options else [])]
        parts += [f"## {name}", "", _cell(command.help or ""), "", "```", " ".join(usage), "```", ""]
        rows = [[f"`{_label(p)}`", _shown(p), _cell(p.help or "")] for p in (*arguments, *options)]
        if rows:
            parts += [*table(("Argument", "Default", "Meaning"), rows), ""]
    return "\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


def _label(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return ", ".join(parameter.opts)


def _usage(parameter: Any) -> str:
    name = _label(parameter) + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _shown(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = "" if parameter.default in (None, False, "") else f"`{parameter.default}`"
    variable = getattr(parameter, "envvar", None)
    return f"{value} or `${variable}`" if variable else value


def _default(value: Any) -> str:
    if value == "required":
        return "required"
    return _code(json.dumps(plain(value), ensure_ascii=False))


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def main() -> int:
    """Write what can be written, name what is missing."""
    pages, problems = generated(DOCS)
    DOCS.mkdir(exist_ok=True)
    for name, text in pages.items():
        (DOCS / name).write_text(text, encoding="utf-8")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
