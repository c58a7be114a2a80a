"""Write the README's table of benchmarks from ``benchmarks/results/*.json``, losses included.

.venv/bin/python tools/bench_table.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
HEAD = ("Race", "Ratio [95 % interval]", "Target", "Memory", "")


def read(results: Path) -> list[dict[str, Any]]:
    """All rows of a folder of results, by file name."""
    return [
        row for path in sorted(results.glob("*.json")) for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, and what they ran with."""
    if not rows:
        return "No full run yet: `make bench` makes one.\n"
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(_cells(row)) for row in rows]
    note = "Ratio: the peer's time over ours, or limit over measured; above 1 is better for us. Memory alike."
    return "\n".join([*lines, "", note, _ran_with([row["versions"] for row in rows]), ""])


def _ran_with(versions: Sequence[dict[str, Any]]) -> str:
    """What all rows ran with, once, and then what some ran with besides."""
    written = [[f"{name} {found}" for name, found in one.items()] for one in versions]
    shared = [item for item in written[0] if all(item in one for one in written)]
    others = sorted({item for one in written for item in one if item not in shared})
    return f"Ran with {', '.join(shared)}" + (f"; by race: {', '.join(others)}." if others else ".")


def replaced(text: str, body: str) -> str:
    """``text`` with ``body`` between the markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text needs one '{BEGIN}' and after it one '{END}'")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{body}{END}{rest.partition(END)[2]}"


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["equal"]:
        said = "results differ"
    elif row["low"] is None:
        said = "quick run: no interval"
    else:
        said = "no target" if not row["target"] else "met" if row["low"] >= row["target"] else "missed"
    low, high = (("?" if row[end] is None else f"{row[end]:.2f}") for end in ("low", "high"))
    memory = "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
    return [
        row["name"],
        f"{row['ratio']:.2f} [{low}, {high}]",
        f"{row['target']:g}" if row["target"] else "",
        memory,
        said,
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Rewrite the README's table."""
    readme = ROOT / "README.md"
    body = table(read(ROOT / "benchmarks" / "results"))
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), body), encoding="utf-8")


if __name__ == "__main__":
    main()
