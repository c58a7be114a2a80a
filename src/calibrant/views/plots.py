"""Drawings of a study's figures: bars over stages, curves over layers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from calibrant.views.figures import FigureSpec, Lane, Mark, style
from calibrant.views.palette import HAIR, INK, LIMIT, MUTED, STAGES
from calibrant.views.svg import MARKERS, Canvas
from calibrant.views.words import anchor, exact, interval, number


def draw(
    spec: FigureSpec,
    found: Sequence[Lane],
    order: Sequence[str],
    key: str,
    label: str,
    *,
    narrow: bool = False,
) -> Markup:
    """One ``<svg>``; ``order`` from ``stages``, ``key`` unique on the page, ``label`` from ``describe``."""
    name = "narrow" if narrow else "wide"
    plot = _draw_lens if spec.kind == "lens" else _draw_intervals
    return plot(spec, found, order, f"{key}{name[0]}", narrow).svg(label, name)


class _Scale(NamedTuple):
    """Values ``low``..``high`` onto pixels ``start``..``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """At most six round values inside."""
        values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(v) for v in values if self.low - slack <= v <= self.high + slack]


def extent(values: Sequence[float], *, whole: bool = True) -> tuple[float, float]:
    """Ends of an axis: 0 to 1 for shares (``whole``), else a little more than the data, from 0 if it fits."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and (whole or high > 0.5):
        return 0.0, 1.0
    pad = 0.06 * (high - low) or 0.5
    return (0.0 if low >= 0 else low - pad), high + pad


def _reach(spec: FigureSpec, found: Sequence[Lane]) -> list[float]:
    """Everything that the axis must hold."""
    limits = [lane.series.threshold for lane in found] + [spec.threshold]
    ends = [end for lane in found if lane.bounds for end in lane.bounds]
    return ends + [limit for limit in limits if limit is not None and math.isfinite(limit)]


LANE, PAD = 21.0, 13.0


def _draw_intervals(
    spec: FigureSpec, found: Sequence[Lane], order: Sequence[str], key: str, narrow: bool
) -> Canvas:
    """Rows of bars; labels stand left of the plot, or above their row on a narrow page."""
    rows: dict[str, list[Lane]] = {}
    for lane in found:
        rows.setdefault(lane.series.label, []).append(lane)
    width, left, right = (350.0, 8.0, 268.0) if narrow else (800.0, 206.0, 694.0)
    head = 24.0 if narrow else 0.0
    heights = [head + max(len(row) * LANE + 2 * PAD, 0.0 if narrow else 54.0) for row in rows.values()]
    top = 22.0 if spec.threshold is not None else 8.0
    bottom = top + sum(heights)
    canvas = Canvas(width, bottom + 30, key)
    scale = _Scale(*extent(_reach(spec, found)), left, right)
    for tick in scale.ticks():
        canvas.line([scale(tick)] * 2, [top, bottom], HAIR, 0.8)
        canvas.text(scale(tick), bottom + 15, exact(tick), MUTED, 11, ha="center")
    y = top
    for (label, row), height in zip(rows.items(), heights, strict=True):
        canvas.line([0 if not narrow else left, width if not narrow else right], [y, y], HAIR, 0.8)
        _label(canvas, label, row, y, height, narrow)
        _limit(canvas, scale, row, y + head + 3, y + height - 3)
        inner = height - head
        first = y + head + (inner - len(row) * LANE) / 2 + LANE / 2
        for index, lane in enumerate(row):
            look, middle = style(lane.series.stage, order), first + index * LANE
            _bar(canvas, lane, look, scale, middle, f"#{key[:-1]}-numbers", _thresholds(row))
        y += height
    canvas.line([0 if not narrow else left, width if not narrow else right], [y, y], HAIR, 0.8)
    if spec.threshold is not None:
        x = scale(spec.threshold)
        canvas.line([x, x], [top - 4, bottom], LIMIT, 1.3, dashes=(4, 3))
        canvas.text(x, top - 12, f"threshold {exact(spec.threshold)}", LIMIT, 11, ha="center")
    return canvas


def _label(canvas: Canvas, label: str, row: Sequence[Lane], y: float, height: float, narrow: bool) -> None:
    """The row's name, and which way is good."""
    ways = {mark.estimate.better for lane in row for mark, _ in lane.seen}
    way = ways.pop() if len(ways) == 1 else "none"
    hint = "" if way == "none" else f"{way} is better"
    if narrow:
        canvas.text(8, y + 18, textwrap.shorten(label, 44, placeholder="…"), INK, 13, weight="bold")
        if len(label) <= 30:
            canvas.text(342, y + 18, hint, MUTED, 11, ha="right")
        return
    lines = textwrap.wrap(label, 26, max_lines=2, placeholder="…") or [""]
    start = y + height / 2 - 8 * (len(lines) - (0 if hint else 1))
    for index, line in enumerate(lines):
        canvas.text(0, start + 16 * index, line, INK, 13, weight="bold")
    canvas.text(0, start + 16 * len(lines), hint, MUTED, 11)


def _limit(canvas: Canvas, scale: _Scale, row: Sequence[Lane], top: float, bottom: float) -> None:
    """Dashed lines at the row's thresholds."""
    for limit in _thresholds(row):
        canvas.line([scale(limit)] * 2, [top, bottom], LIMIT, 1.3, dashes=(4, 3))
        canvas.text(scale(limit) + 4, top + 4, exact(limit), LIMIT, 10)


def _thresholds(row: Sequence[Lane]) -> list[float]:
    """The row's own thresholds, each once."""
    found = dict.fromkeys(lane.series.threshold for lane in row)
    return [limit for limit in found if limit is not None and math.isfinite(limit)]


def _bar(
    canvas: Canvas, lane: Lane, look: int, scale: _Scale, y: float, numbers: str, limits: Sequence[float]
) -> None:
    """One stage: a bar over all intervals, a mark for each record, the values linked to the table."""
    colour, ends = STAGES[look], lane.bounds
    if ends is None:
        x = _clear(scale.start + 6, limits, scale)
        canvas.text(x, y, lane.summary, colour, 11.5, style="italic", url=numbers)
        return
    dashed = {} if lane.seen else {"dashes": (1, 1.2), "dash_capstyle": "butt"}
    canvas.line(
        [scale(ends[0]), scale(ends[1])],
        [y, y],
        colour,
        7,
        alpha=0.27,
        **(dashed or {"solid_capstyle": "round"}),
    )
    for mark, value in lane.seen:
        canvas.dot(
            scale(value),
            y,
            colour,
            MARKERS[look],
            size=8.4,
            url=f"#{anchor(mark.digest)}",
            tip=_tip(lane, mark),
        )
    canvas.text(_clear(scale(ends[1]) + 9, limits, scale), y, lane.summary, colour, 11.5, url=numbers)


def _clear(x: float, limits: Sequence[float], scale: _Scale) -> float:
    """Where to start a text so that no dashed line runs through its digits."""
    for limit in sorted(limits):
        if x - 6 < scale(limit) < x + 80:
            x = scale(limit) + 7
    return x


def _tip(lane: Lane, mark: Mark) -> str:
    """What a mark says when pointed at."""
    e, layer = mark.estimate, "" if mark.layer is None else f", layer {mark.layer}"
    return (
        f"{lane.series.label}, {lane.series.stage}{layer}, seed {mark.seed}: "
        f"{number(e.value)} {interval(e.low, e.high)} n = {e.n}"
    )


def _draw_lens(
    spec: FigureSpec, found: Sequence[Lane], order: Sequence[str], key: str, narrow: bool
) -> Canvas:
    """Curves over layers, one a seed, on the band of all their intervals."""
    width, height = (350.0, 260.0) if narrow else (800.0, 330.0)
    canvas = Canvas(width, height, key)
    layers = [mark.layer for lane in found for mark in lane.marks if mark.layer is not None]
    across = _Scale(
        min(layers, default=0), max(max(layers, default=1), min(layers, default=0) + 1), 46, width - 14
    )
    up = _Scale(*extent(_reach(spec, found), whole=False), height - 44, 16)
    for tick in up.ticks():
        canvas.line([46, width - 6], [up(tick)] * 2, HAIR, 0.8)
        canvas.text(36, up(tick), exact(tick), MUTED, 11, ha="right")
    for tick in (t for t in across.ticks() if t == round(t)):
        canvas.text(across(tick), height - 30, exact(tick), MUTED, 11, ha="center")
    canvas.text((46 + width) / 2, height - 10, "layer", MUTED, 11, ha="center")
    if spec.threshold is not None:
        canvas.line([46, width - 6], [up(spec.threshold)] * 2, LIMIT, 1.3, dashes=(4, 3))
        canvas.text(
            width - 6, up(spec.threshold) - 9, f"threshold {exact(spec.threshold)}", LIMIT, 11, ha="right"
        )
    labels = list(dict.fromkeys(lane.series.label for lane in found))
    for lane in found:
        _curve(canvas, lane, style(lane.series.stage, order), labels.index(lane.series.label), across, up)
    if not any(lane.seen for lane in found):
        canvas.text(
            (46 + width) / 2,
            height / 2,
            "unknown: no layer was measured",
            MUTED,
            12,
            ha="center",
            style="italic",
        )
    return canvas


def _curve(canvas: Canvas, lane: Lane, look: int, turn: int, across: _Scale, up: _Scale) -> None:
    """One series; an unknown layer leaves a gap."""
    colour = STAGES[look]
    by_layer: dict[int, list[Mark]] = {}
    for mark in lane.marks:
        if mark.layer is not None:
            by_layer.setdefault(mark.layer, []).append(mark)
    spans = [
        (n, Lane(lane.series, tuple(marks)).bounds or (math.nan, math.nan))
        for n, marks in sorted(by_layer.items())
    ]
    canvas.band(
        [across(n) for n, _ in spans], [up(s[1]) for _, s in spans], [up(s[0]) for _, s in spans], colour
    )
    for seed in dict.fromkeys(mark.seed for mark in lane.marks):
        mine = [m for m in lane.marks if m.seed == seed and m.layer is not None]
        xs = [across(m.layer or 0) for m in mine]
        ys = [up(m.estimate.value) if m.estimate.value is not None else math.nan for m in mine]
        dashes = {"dashes": (5, 2 + turn)} if turn else {}
        canvas.line(xs, ys, colour, 1.6, alpha=0.9, **dashes)
        for x, y, mark in zip(xs, ys, mine, strict=True):
            if math.isfinite(y):
                canvas.dot(
                    x, y, colour, MARKERS[look], size=5.4, url=f"#{anchor(mark.digest)}", tip=_tip(lane, mark)
                )
