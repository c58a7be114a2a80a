"""Plot of a matrix: hazards by technique families, or layers by heads; a number with its interval a cell.

A cell's colour says how much, its numbers say it without colour. What is unknown has no colour: the hatched
part of a cell's foot is the share of goals without an outcome, and a cell without a rate is hatched whole.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from calibrant.views.figures import Lane, Mark, tip
from calibrant.views.formatting import anchor, brief, exact, in_short, known
from calibrant.views.palette import HAIR, HEAT, INK, MUTED, PAPER
from calibrant.views.series import TOGETHER
from calibrant.views.svg import Canvas

EDGES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Where the next colour begins: each twice the last, as one in twenty differs more from one in ten than sixty
in a hundred from sixty-five."""
GAP, FOOT = 3.0, 6.0


class Grid(NamedTuple):
    """Measures of a page, in pixels."""

    width: float
    left: float
    """Where the cells begin; 0 where a row's name stands above it."""
    row: float
    """Height of a row of cells."""
    cell: tuple[float, float]
    """Least and greatest width of a cell."""
    size: float
    """Of a cell's number; the rest is smaller."""

    @property
    def above(self) -> float:
        """Room for a row's name above it."""
        return 0.0 if self.left else 26.0

    def blocks(self, columns: Sequence[str]) -> list[Sequence[str]]:
        """Columns, as many beside each other as there is room for, in equal parts."""
        most = int((self.width - self.left) // self.cell[0])
        count = max(1, -(-len(columns) // most))
        per = max(1, -(-len(columns) // count))
        return [columns[i * per : (i + 1) * per] for i in range(count)]

    def cell_width(self, columns: int) -> float:
        """Width that a column takes, the gap included."""
        return min((self.width - self.left) / max(columns, 1), self.cell[1])

    @property
    def bare(self) -> bool:
        """Cells without numbers, which are told when pointed at."""
        return not self.size


MANY = 600
"""From so many cells on they have a colour, and no number."""
WIDE = Grid(800.0, 150.0, 46.0, (74.0, 118.0), 14.5)
NARROW = Grid(350.0, 0.0, 40.0, (58.0, 110.0), 13.0)
WIDE_BARE = Grid(800.0, 110.0, 17.0, (9.0, 34.0), 0.0)
NARROW_BARE = Grid(350.0, 60.0, 13.0, (5.0, 20.0), 0.0)
HEAD, TITLE, BETWEEN, KEY = 34.0, 28.0, 14.0, 44.0


def draw_matrix(cells: Sequence[Lane], key: str, narrow: bool, across: str = "technique") -> Canvas:
    """A panel a series, rows of cells in it; the key to the colours stands below."""
    many = sum(len(lane.marks) for lane in cells) > MANY
    grid = (NARROW_BARE if many else NARROW) if narrow else (WIDE_BARE if many else WIDE)
    panels = [list(lanes) for _, lanes in groupby(cells, key=lambda lane: lane.series)]
    tops, y = [], 0.0
    for lanes in panels:
        tops.append(y)
        y += (TITLE if len(panels) > 1 else 0) + BETWEEN
        for columns in grid.blocks(_columns(lanes)):
            y += (HEAD if columns else 0) + len(lanes) * (grid.row + grid.above)
    canvas = Canvas(grid.width, y + KEY + (24 if narrow else 0), key)
    for top, lanes in zip(tops, panels, strict=True):
        if len(panels) > 1:
            series = lanes[0].series
            canvas.text(
                0, top + 12, ", ".join(filter(None, (series.label, series.stage))), INK, 14, weight="bold"
            )
            top += TITLE
        _panel(canvas, grid, lanes, top, f"#{key[:-1]}-numbers", across)
    units = "goals" if across == "technique" else "units"
    _key(canvas, y, narrow, "" if many else f"unknown; foot only: that share of {units} is unknown")
    return canvas


def _columns(lanes: Sequence[Lane]) -> list[str]:
    """Names of the columns, ``TOGETHER`` last."""
    names = dict.fromkeys(mark.column for lane in lanes for mark in lane.marks if mark.column)
    return sorted(names, key=lambda name: name == TOGETHER)


def _panel(canvas: Canvas, grid: Grid, lanes: Sequence[Lane], y: float, numbers: str, across: str) -> None:
    for columns in grid.blocks(_columns(lanes)):
        wide = grid.cell_width(len(columns))
        every = max(1, int(70 / wide)) if grid.bare else 1
        for place, column in enumerate(columns):
            middle = grid.left + (place + 0.5) * wide - GAP / 2
            if place % every:
                continue
            if grid.bare:
                canvas.text(middle, y + HEAD - 12, column, MUTED, 11, ha="center")
                continue
            for line, text in enumerate(_wrapped(column, int(wide / 6.4))[::-1]):
                canvas.text(middle, y + HEAD - 12 - 14 * line, text, MUTED, 12, ha="center")
        y += HEAD if columns else 0
        for lane in lanes:
            _name(canvas, grid, lane, y)
            y += grid.above
            if not lane.name:
                span = (len(columns) * wide if columns else grid.width - grid.left) - GAP
                _unmeasured(canvas, lane, (grid.left, y, span, grid.row - GAP), numbers)
            for place, column in enumerate(columns if lane.name else ()):
                marks = [mark for mark in lane.marks if mark.column == column]
                corner = (grid.left + place * wide, y, wide - GAP, grid.row - GAP)
                _cell(canvas, lane._replace(marks=tuple(marks)), corner, grid.size, numbers, across)
            y += grid.row


def _unmeasured(canvas: Canvas, lane: Lane, corner: tuple[float, float, float, float], numbers: str) -> None:
    """A whole row of a record without rates, or of no record."""
    x, y, wide, high = corner
    note = f"unknown: {in_short(lane.marks[0].estimate)}" if lane.marks else lane.summary
    _hatch(canvas, x, y, wide, high)
    note = textwrap.shorten(note, int(wide / 6.4), placeholder=" …")
    canvas.text(x + 10, y + high / 2, note, INK, 12, style="italic", url=numbers)


def _name(canvas: Canvas, grid: Grid, lane: Lane, y: float) -> None:
    """A row's name, and over how many units its rates go, where that is one number."""
    if grid.bare:
        canvas.text(0, y + grid.row / 2, textwrap.shorten(lane.name, 16, placeholder="…"), INK, 10)
        return
    units = {(mark.estimate.n, mark.estimate.unit) for mark in lane.marks if mark.estimate.n}
    n, unit = units.pop() if len(units) == 1 else (0, "")
    name = lane.name or "not measured"
    weight = "bold" if name == "all hazards" else "normal"
    counted = f"{n} {unit or 'unit'}s" if n else ""
    if not grid.left:
        canvas.text(0, y + 15, textwrap.shorten(name, 34, placeholder="…"), INK, 13, weight=weight)
        canvas.text(grid.width - GAP, y + 15, counted, MUTED, 11, ha="right")
        return
    lines = _wrapped(name, 20)
    start = y + (grid.row - GAP) / 2 - 8 * (len(lines) - (0 if counted else 1))
    for index, line in enumerate(lines):
        canvas.text(0, start + 16 * index, line, INK, 13, weight=weight)
    canvas.text(0, start + 16 * len(lines), counted, MUTED, 11)


def _cell(
    canvas: Canvas,
    lane: Lane,
    corner: tuple[float, float, float, float],
    size: float,
    numbers: str,
    across: str,
) -> None:
    """One cell over all records: its worse end gives the colour."""
    x, y, wide, high = corner
    values = [value for _, value in lane.seen]
    middle = x + wide / 2
    if not size:
        _bare(canvas, lane, values, (x, y, wide + GAP - 1, high + GAP - 1))
    elif values:
        tint = heat(_worse(lane, values))
        canvas.box(x, y, wide, high, HEAT[tint])
        lost = max(_lost(mark) for mark in lane.marks)
        if lost:
            _hatch(canvas, x, y + high - FOOT, lost * wide, FOOT)
        colour = PAPER if tint > 3 else INK
        ends = list(dict.fromkeys(brief(value) for value in (min(values), max(values))))
        shown = ends[0] if len(ends) == 1 else "–".join(map(_short, ends))
        style = {"ha": "center", "gid": "bare"}
        canvas.text(middle, y + high / 2 - 8, shown, colour, size, weight="bold", **style)
        canvas.text(middle, y + high / 2 + 7, _span(lane), colour, size - 3.5, **style)
    else:
        _hatch(canvas, x, y, wide, high)
        span = _span(lane) if lane.bounds else ""
        up = 8 if span else 0
        canvas.text(middle, y + high / 2 - up, lane.summary, INK, size - 2.5, ha="center", style="italic")
        canvas.text(middle, y + high / 2 + 7, span, INK, size - 3.5, ha="center")
    if lane.marks:
        where = f"#{anchor(lane.marks[0].digest)}" if len(lane.marks) == 1 else numbers
        shown = "\n".join(tip(lane, mark, across) for mark in lane.marks)
        canvas.spot(x, y, wide, high, url=where, tip=shown)


def _bare(
    canvas: Canvas, lane: Lane, values: Sequence[float], corner: tuple[float, float, float, float]
) -> None:
    """A colour, a dash across where the number is below 0; nothing where it is unknown."""
    x, y, wide, high = corner
    if not values:
        canvas.line([x, x + wide], [y + high, y], MUTED, 0.6)
        return
    value = _worse(lane, values)
    tint = heat(value)
    canvas.box(x, y, wide, high, HEAT[tint])
    if value < 0 and tint:
        canvas.line([x + 1, x + wide - 1], [y + high / 2] * 2, PAPER if tint > 3 else INK, 1.0)


def heat(value: float) -> int:
    """Index of the colour of ``value``, by its size: its sign is told beside it."""
    return sum(abs(value) >= edge for edge in EDGES)


def _worse(lane: Lane, values: Sequence[float]) -> float:
    """The worse of a cell's values; the largest in size where neither end is."""
    return min(values) if _higher(lane.marks) else max(values, key=abs)


def _higher(marks: Sequence[Mark]) -> bool:
    """Whether a high rate is the good one."""
    return any(mark.estimate.better == "higher" for mark in marks)


def _lost(mark: Mark) -> float:
    """Share of the units without an outcome; all of them where the rate is unknown."""
    e = mark.estimate
    return 1.0 if not known(e.value) else e.missing / e.n if e.n else 0.0


def _span(lane: Lane) -> str:
    """'[.05, .23]': from the lowest lower end to the highest upper one."""
    lows = [m.estimate.low for m in lane.marks if known(m.estimate.low)]
    highs = [m.estimate.high for m in lane.marks if known(m.estimate.high)]
    if not lows or not highs:
        return "no interval"
    return f"[{_short(brief(min(lows)))}, {_short(brief(max(highs)))}]"


def _short(number: str) -> str:
    """'.05' for '0.05', '1' for '1.00'."""
    return {"0.00": "0", "1.00": "1"}.get(number, number.replace("0.", "."))


def _hatch(canvas: Canvas, x: float, y: float, wide: float, high: float) -> None:
    """Paper with slanted lines; drawn by hand, for a pattern would be fetched by name."""
    canvas.box(x, y, wide, high, PAPER)
    canvas.box(x, y, wide, 0.8, MUTED)
    canvas.box(x, y + high - 0.8, wide, 0.8, MUTED)
    reach = 5.0
    while reach < wide + high:
        start, end = max(0.0, reach - high), min(reach, wide)
        canvas.line([x + start, x + end], [y + reach - start, y + reach - end], MUTED, 0.7, alpha=0.6)
        reach += 7.0


def _key(canvas: Canvas, y: float, narrow: bool, hatch: str) -> None:
    """Colours from 0 to 1 with the numbers between them, and what a hatch means; "": of bare cells."""
    x, wide = (0.0, 30.0) if narrow else (WIDE.left, 42.0)
    for index, colour in enumerate(HEAT):
        canvas.box(x + index * wide, y + 8, wide, 12, colour)
    canvas.line(
        [x, x + len(HEAT) * wide, x + len(HEAT) * wide, x, x], [y + 8, y + 8, y + 20, y + 20, y + 8], HAIR
    )
    for index, edge in enumerate((0.0, *EDGES, 1.0)):
        canvas.text(x + index * wide, y + 32, exact(edge), MUTED, 11, ha="center" if index else "left")
    x, y = (0.0, y + 44) if narrow else (x + len(HEAT) * wide + 30, y + 8)
    if hatch:
        _hatch(canvas, x, y, 28, 12)
        canvas.text(x + 36, y + 6, hatch, MUTED, 11)
    else:
        canvas.text(x, y + 6, "a dash: below 0; a slash: unknown", MUTED, 11)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 4), max_lines=2, placeholder="…") or [""]
