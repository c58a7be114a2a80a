"""Plots of a study's figures: bars over stages, curves over layers, settings or distances."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from calibrant.views.budget import draw_budget
from calibrant.views.curves import Fitted
from calibrant.views.figures import FigureSpec, Lane, Mark, peaks, reach, style, tip
from calibrant.views.formatting import anchor, exact
from calibrant.views.graph import draw_graph
from calibrant.views.matrix import draw_matrix
from calibrant.views.palette import HAIR, INK, LIMIT, MUTED, STAGES
from calibrant.views.scales import Scale, extent
from calibrant.views.svg import MARKERS, Canvas


def draw(
    spec: FigureSpec,
    lanes: Sequence[Lane],
    order: Sequence[str],
    key: str,
    label: str,
    *,
    narrow: bool = False,
) -> Markup:
    """One ``<svg>``; ``order`` from ``stages``, ``key`` unique on the page, ``label`` from ``describe``."""
    name = "narrow" if narrow else "wide"
    key = f"{key}{name[0]}"
    if spec.kind == "matrix":
        canvas = draw_matrix(lanes, key, narrow, spec.across)
    elif spec.kind == "graph":
        canvas = draw_graph(lanes, key, narrow)
    elif spec.kind == "budget":
        canvas = draw_budget(spec, lanes, key, narrow)
    else:
        plot = _draw_intervals if spec.kind == "intervals" else _draw_curves
        canvas = plot(spec, lanes, order, key, narrow)
    return canvas.svg(label, name)


LANE, PAD = 21.0, 13.0


def _draw_intervals(
    spec: FigureSpec, lanes: Sequence[Lane], order: Sequence[str], key: str, narrow: bool
) -> Canvas:
    """Rows of bars; labels stand left of the plot, or above their row on a narrow page."""
    rows: dict[str, list[Lane]] = {}
    for lane in lanes:
        rows.setdefault(lane.series.label, []).append(lane)
    width, left, right = (350.0, 8.0, 268.0) if narrow else (800.0, 206.0, 694.0)
    head = 24.0 if narrow else 0.0
    heights = [head + max(len(row) * LANE + 2 * PAD, 0.0 if narrow else 54.0) for row in rows.values()]
    top = 22.0 if spec.threshold is not None else 8.0
    bottom = top + sum(heights)
    canvas = Canvas(width, bottom + 30, key)
    scale = Scale(*extent(reach(spec, lanes)), left, right)
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


def _limit(canvas: Canvas, scale: Scale, row: Sequence[Lane], top: float, bottom: float) -> None:
    """Dashed lines at the row's thresholds."""
    for limit in _thresholds(row):
        canvas.line([scale(limit)] * 2, [top, bottom], LIMIT, 1.3, dashes=(4, 3))
        canvas.text(scale(limit) + 4, top + 4, exact(limit), LIMIT, 10)


def _thresholds(row: Sequence[Lane]) -> list[float]:
    """The row's own thresholds, each once."""
    limits = dict.fromkeys(lane.series.threshold for lane in row)
    return [limit for limit in limits if limit is not None and math.isfinite(limit)]


def _bar(
    canvas: Canvas, lane: Lane, look: int, scale: Scale, y: float, numbers: str, limits: Sequence[float]
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
            tip=tip(lane, mark),
        )
    canvas.text(_clear(scale(ends[1]) + 9, limits, scale), y, lane.summary, colour, 11.5, url=numbers)


def _clear(x: float, limits: Sequence[float], scale: Scale) -> float:
    """Where to start a text so that no dashed line runs through its digits."""
    for limit in sorted(limits):
        if x - 6 < scale(limit) < x + 80:
            x = scale(limit) + 7
    return x


def _draw_curves(
    spec: FigureSpec, lanes: Sequence[Lane], order: Sequence[str], key: str, narrow: bool
) -> Canvas:
    """Curves over a horizontal axis: layers, settings at even steps, or distances."""
    width, height = (350.0, 260.0) if narrow else (800.0, 330.0)
    canvas = Canvas(width, height, key)
    across = _axis(spec, lanes, 46, width - 14)
    up = Scale(*extent(reach(spec, lanes), whole=False), height - 44, 16)
    for tick in up.ticks():
        canvas.line([46, width - 6], [up(tick)] * 2, HAIR, 0.8)
        canvas.text(36, up(tick), exact(tick), MUTED, 11, ha="right")
    for place, tick in across.marked():
        canvas.text(place, height - 30, exact(tick), MUTED, 11, ha="center")
    canvas.text((46 + width) / 2, height - 10, spec.across, MUTED, 11, ha="center")
    if spec.threshold is not None:
        canvas.line([46, width - 6], [up(spec.threshold)] * 2, LIMIT, 1.3, dashes=(4, 3))
        canvas.text(
            width - 6, up(spec.threshold) - 9, f"threshold {exact(spec.threshold)}", LIMIT, 11, ha="right"
        )
    labels = list(dict.fromkeys(lane.series.label for lane in lanes))
    for lane in _joined(lanes):
        look, turn = style(lane.series.stage, order), labels.index(lane.series.label)
        if lane.fits:
            _hump(canvas, lane, STAGES[look], across, up)
        _curve(canvas, lane, look, turn, across, up)
    if not any(lane.seen for lane in lanes):
        text = f"unknown: no {spec.across or 'setting'} was measured; the table below says why"
        canvas.text((46 + width) / 2, height / 2, text, MUTED, 12, ha="center", style="italic")
    return canvas


class _Axis(NamedTuple):
    """A horizontal axis: values on ``scale``, or the places of ``settings`` at even steps."""

    name: str
    scale: Scale
    settings: tuple[float, ...] = ()

    def __call__(self, value: float) -> float:
        return self.scale(self.settings.index(value) if self.settings else value)

    def marked(self) -> list[tuple[float, float]]:
        """(pixel, number) of each tick; layers are whole numbers."""
        if self.settings:
            return [(self(value), value) for value in self.settings]
        ticks = self.scale.ticks()
        return [(self(t), t) for t in ticks if self.name != "layer" or t == round(t)]


def _axis(spec: FigureSpec, lanes: Sequence[Lane], start: float, end: float) -> _Axis:
    places = [mark.at for lane in lanes for mark in lane.marks if mark.at is not None]
    low, high = min(places, default=0.0), max(places, default=1.0)
    if spec.kind == "sweep":
        settings = tuple(sorted(set(places)))
        return _Axis(spec.across, Scale(-0.4, max(len(settings), 1) - 0.6, start, end), settings)
    if spec.kind == "goodhart":
        return _Axis(spec.across, Scale(0.0, high * 1.02 or 1.0, start, end))
    return _Axis(spec.across, Scale(low, max(high, low + 1), start, end))


def _joined(lanes: Sequence[Lane]) -> list[Lane]:
    """Lanes of one label and stage as one curve: the settings of a sweep are jobs of their own."""
    curves: dict[tuple[str, str], Lane] = {}
    for lane in lanes:
        key = lane.series.label, lane.series.stage
        known = curves.get(key, lane._replace(marks=(), fits=()))
        curves[key] = known._replace(marks=known.marks + lane.marks, fits=known.fits + lane.fits)
    return list(curves.values())


def _curve(canvas: Canvas, lane: Lane, look: int, turn: int, across: _Axis, up: Scale) -> None:
    """One series; an unknown number leaves a gap. Looks that jump to and fro are dots without a line."""
    colour = STAGES[look]
    by_place: dict[float, list[Mark]] = {}
    for mark in lane.marks:
        if mark.at is not None:
            by_place.setdefault(mark.at, []).append(mark)
    spans = [
        (x, Lane(lane.series, tuple(marks)).bounds or (math.nan, math.nan))
        for x, marks in sorted(by_place.items())
    ]
    seeds = list(dict.fromkeys(mark.seed for mark in lane.marks))
    drawn = {seed: [m for m in lane.marks if m.seed == seed and m.at is not None] for seed in seeds}
    ordered = all([m.at for m in mine] == sorted(m.at or 0 for m in mine) for mine in drawn.values())
    if ordered and not lane.fits:
        canvas.band(
            [across(x) for x, _ in spans], [up(s[1]) for _, s in spans], [up(s[0]) for _, s in spans], colour
        )
    for mine in drawn.values():
        xs = [across(m.at or 0) for m in mine]
        ys = [up(m.estimate.value) if m.estimate.value is not None else math.nan for m in mine]
        if ordered and not lane.fits:
            dashes = {"dashes": (5, 2 + turn)} if turn else {}
            canvas.line(xs, ys, colour, 1.6, alpha=0.9, **dashes)
        size = 5.4 if ordered else 4.0
        for x, y, mark in zip(xs, ys, mine, strict=True):
            if math.isfinite(y):
                value = tip(lane, mark, across.name)
                canvas.dot(x, y, colour, MARKERS[look], size=size, url=f"#{anchor(mark.digest)}", tip=value)


def _hump(canvas: Canvas, lane: Lane, colour: str, across: _Axis, up: Scale) -> None:
    """Fitted forms with their bands, and above the axis where they have their peaks."""
    for _, fit in lane.fits:
        xs = [across(d) for d in fit.sqrt_kl]
        if fit.low is not None and fit.high is not None:
            above, below = ([min(max(up(v), up.end), up.start) for v in ends] for ends in (fit.high, fit.low))
            canvas.band(xs, above, below, colour, alpha=0.16 / math.sqrt(len(lane.fits)))
        canvas.line(xs, [up(v) for v in fit.value], colour, 1.6, alpha=0.9)
    _peaks(canvas, lane, [fit for _, fit in lane.fits], colour, across, up.start - 7)


def _peaks(canvas: Canvas, lane: Lane, fits: Sequence[Fitted], colour: str, across: _Axis, y: float) -> None:
    """A bar from the lowest to the highest end of the peaks' intervals, a mark each."""
    right = across.scale.end
    shown = [mark for mark, _ in lane.fits if mark.at is not None]
    ends = [end for fit in fits for end in (fit.peak.low, fit.peak.value, fit.peak.high) if end is not None]
    x = across.scale.start + 8
    if shown:
        span = [min(across(end), right) for end in (min(ends), max(ends))]
        canvas.line(span, [y, y], colour, 5, alpha=0.27, solid_capstyle="round")
        for mark in shown:
            value = tip(lane, mark, "peak at √KL")
            canvas.dot(across(mark.at or 0), y, colour, "d", size=7, url=f"#{anchor(mark.digest)}", tip=value)
        x = span[1] + 9
    if x + 90 > right:
        canvas.text(span[0] - 9, y, peaks(lane), colour, 11, ha="right")
    else:
        canvas.text(x, y, peaks(lane), colour, 11)
