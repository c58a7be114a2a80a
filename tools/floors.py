"""Draw the floors of the house: the linter's layers, and what each package imports from those below.

    .venv/bin/python tools/floors.py > decisions/floors.svg

Only which packages import which is drawn, no counts, so that the picture changes when the house does.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDE, GAP, LINE, SIDE = 1080, 12, 15, 24
_SAYS = {
    "cli": "parse and print",
    "serve": "kept for servers; empty today",
    "app": "catalogue, references, execute, pages, people",
    "train": "losses and loops",
    "oversee": "supervision by models",
    "understand": "inside the model",
    "attack": "red teaming",
    "defend": "guards and layers",
    "measure": "rates, judges, rewards",
    "govern": "policies, gates, claims",
    "views": "pages and figures",
    "testbed": "models with planted truth",
    "evals": "ask, judge, record",
    "models": "weights, APIs, generation, fitting",
    "maths": "losses, advantages: pure",
    "stats": "estimates with intervals: pure",
    "data": "rows and their readers",
    "formats": "other tools' files",
    "ledger": "records and append-only files",
    "text": "codecs and decodings",
    "core": "types, errors, digests",
}


def layers() -> list[list[str]]:
    """The layers of pyproject.toml, top first; each with its packages."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = table["tool"]["importlinter"]["contracts"][0]["layers"]
    floors = [[part.strip(" ()").removeprefix("calibrant.") for part in row.split("|")] for row in contract]
    return [[name for name in floor if not name.startswith("_")] for floor in floors if floor[0][0] != "_"]


def imports() -> dict[str, set[str]]:
    """Package -> the other packages that its files import."""
    found: dict[str, set[str]] = {}
    source = ROOT / "src" / "calibrant"
    for path in source.rglob("*.py"):
        package = path.relative_to(source).parts[0].removesuffix(".py")
        into = found.setdefault(package, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module] if node.module != "calibrant" else [f"calibrant.{node.names[0].name}"]
            into |= {name.split(".")[1] for name in names if name.startswith("calibrant.")}
    return {package: into - {package} for package, into in found.items()}


def picture() -> str:
    """The SVG."""
    rows, used = layers(), imports()
    order = [name for row in rows for name in row]
    parts, top = [], SIDE
    for row in rows:
        columns = min(len(row), 5)
        for begin in range(0, len(row), columns):
            some = row[begin : begin + columns]
            wide = (WIDE - 2 * SIDE - GAP * (columns - 1)) / columns
            told = [_wrapped(_below(name, used, order), wide) for name in some]
            high = 44 + LINE * max(map(len, told)) + 6
            for column, (name, lines) in enumerate(zip(some, told, strict=True)):
                parts.append(_box(SIDE + column * (wide + GAP), top, wide, high, name, lines))
            top += high + GAP
        top += GAP
    alt = "The floors of Calibrant, top to bottom: " + "; ".join(", ".join(row) for row in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {top}" width="{WIDE}" height="{top}" '
        f'role="img" font-family="system-ui, sans-serif"><title>{escape(alt)}</title>'
        "<style>.b{fill:#fff;stroke:#8a94a0}.n{font-weight:600;font-size:15px;fill:#16202b}"
        ".s{font-size:12px;fill:#4a5663}.u{font-size:11px;fill:#6b7784}</style>"
        f'<rect width="{WIDE}" height="{top}" fill="#f5f6f8"/>{"".join(parts)}</svg>\n'
    )


def _below(name: str, used: dict[str, set[str]], order: Sequence[str]) -> str:
    names = [other for other in order if other in used.get(name, ())]
    return f"imports {', '.join(names)}" if names else "imports nothing of ours"


def _wrapped(text: str, wide: float) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > wide / 5.9 - 4:
            lines.append("")
        lines[-1] += f"{word} "
    return lines


def _box(x: float, y: float, wide: float, high: float, name: str, lines: Sequence[str]) -> str:
    texts = [f'<text class="n" x="{x + 12:.1f}" y="{y + 20}">{name}</text>']
    texts.append(f'<text class="s" x="{x + 12:.1f}" y="{y + 37}">{escape(_SAYS[name])}</text>')
    for number, line in enumerate(lines):
        at = y + 55 + LINE * number
        texts.append(f'<text class="u" x="{x + 12:.1f}" y="{at}">{escape(line.strip())}</text>')
    box = f'<rect class="b" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{high}" rx="6"/>'
    return box + "".join(texts)


if __name__ == "__main__":
    sys.stdout.write(picture())
