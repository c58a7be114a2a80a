"""Plot of success against queries: a step function with its band for each attack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from calibrant.views.curves import Steps
from calibrant.views.figures import FigureSpec, Lane, reach, tip
from calibrant.views.formatting import anchor, brief, count, exact
from calibrant.views.palette import HAIR, LIMIT, MUTED, STAGES
from calibrant.views.scales import Scale, extent
from calibrant.views.svg import MARKERS, Canvas

LINES = 6
"""Most lines in one figure: those that came farthest; the table has all."""
SPREAD = 30.0
"""Ratio of costs past which the axis is logarithmic."""


def draw_budget(spec: FigureSpec, lanes: Sequence[Lane], key: str, narrow: bool) -> Canvas:
    """Curves over queries; colour and mark stand for the attack, dashes for the stage."""
    width, height, left, right = (350.0, 290.0, 34.0, 262.0) if narrow else (800.0, 350.0, 46.0, 650.0)
    curves = sorted((lane for lane in lanes if lane.steps), key=_end, reverse=True)
    shown = [lane for lane in lanes if lane in curves[:LINES]]
    lost = _missing(lanes, len(curves) - len(shown))
    canvas = Canvas(width, height + 18 * len(lost), key)
    across = _across(shown, left, right)
    limit = spec.threshold
    up = Scale(*extent(reach(spec, [_unlimited(lane) for lane in shown]), whole=False), height - 44, 16)
    for tick in up.ticks():
        canvas.line([left, right], [up(tick)] * 2, HAIR, 0.8)
        canvas.text(left - 10, up(tick), exact(tick), MUTED, 11, ha="right")
    for tick in across.ticks():
        canvas.line([across(tick)] * 2, [up.start, up.start + 4], MUTED, 0.8)
        canvas.text(across(tick), height - 30, exact(tick), MUTED, 11, ha="center")
    title = f"{spec.across} per goal{', logarithmic' if across.log else ''}"
    canvas.text((left + right) / 2, height - 9, title, MUTED, 11, ha="center")
    if limit is not None:
        canvas.line([left, right], [up(limit)] * 2, LIMIT, 1.3, dashes=(4, 3))
        canvas.text(right, up(limit) - 9, f"threshold {exact(limit)}", LIMIT, 11, ha="right")
    _lines(canvas, shown, across, up, narrow)
    for line, text in enumerate(lost):
        url = f"#{key[:-1]}-numbers"
        canvas.text(left, height + 12 + 18 * line, text, MUTED, 11.5, style="italic", url=url)
    return canvas


def _end(lane: Lane) -> float:
    """The highest value where its curves end."""
    return max(steps.value[-1] for steps in lane.steps)


def _unlimited(lane: Lane) -> Lane:
    """Without the threshold of a gate, which is asked of the whole campaign and not of one attack."""
    return lane._replace(series=lane.series.model_copy(update={"threshold": None}))


def _across(lanes: Sequence[Lane], left: float, right: float) -> Scale:
    """Queries, from 0 or, where they spread far, by factors."""
    costs = [cost for lane in lanes for steps in lane.steps for cost in (steps.costs[0], steps.costs[-1])]
    low, high = min((cost for cost in costs if cost > 0), default=1.0), max(costs, default=1.0)
    if high > SPREAD * low:
        return Scale(low, high, left, right, log=True)
    return Scale(0.0, high or 1.0, left, right)


def _lines(canvas: Canvas, lanes: Sequence[Lane], across: Scale, up: Scale, narrow: bool) -> None:
    """Every line with its band, marks at round numbers of queries, and its name."""
    names = list(dict.fromkeys(lane.name for lane in lanes))
    stages = list(dict.fromkeys(lane.series.stage for lane in lanes))
    labels: list[tuple[float, float, str, str]] = []
    for lane in lanes:
        place = names.index(lane.name)
        turn = stages.index(lane.series.stage) + len(stages) * (place // len(STAGES))
        colour, marker = STAGES[place % len(STAGES)], MARKERS[place % len(STAGES)]
        for steps in lane.steps:
            _curve(canvas, steps, colour, turn, across, up)
        for mark, value in lane.seen:
            x, url = across(mark.at or 0), f"#{anchor(mark.digest)}"
            canvas.dot(x, up(value), colour, marker, size=5.6, url=url, tip=tip(lane, mark, "queries"))
        far = max(steps.costs[-1] for steps in lane.steps)
        ends = [steps.value[-1] for steps in lane.steps]
        share = "–".join(dict.fromkeys(brief(end) for end in (min(ends), max(ends))))
        stage = f", {lane.series.stage}" if len(stages) > 1 else ""
        y = up(sum(ends) / len(ends))
        labels.append((across(far) + 8, y, f"{lane.name}{stage} {share}", colour))
    _named(canvas, labels, up.start, 10.5 if narrow else 12.0)


def _curve(canvas: Canvas, steps: Steps, colour: str, turn: int, across: Scale, up: Scale) -> None:
    """The steps of one record, from nothing before the first cost."""
    corners = _corners(steps)
    xs = [across(cost) for cost, *_ in corners]
    low, high = ([min(max(up(row[end]), up.end), up.start) for row in corners] for end in (2, 3))
    canvas.band(xs, high, low, colour, alpha=0.12)
    start = [across.start, xs[0]] if xs[0] > across.start else []
    ys = [up(0.0) for _ in start] + [up(row[1]) for row in corners]
    dashes = {"dashes": (5, 2 + turn)} if turn else {}
    canvas.line(start + xs, ys, colour, 1.7, **dashes)


def _corners(steps: Steps) -> list[tuple[float, float, float, float]]:
    """(cost, value, low, high) at each corner: a value holds up to the next cost, the last one no further."""
    rows = list(zip(steps.costs, steps.value, steps.low, steps.upper, strict=True))
    corners = [rows[0]]
    for row, after in pairwise(rows):
        corners += [(after[0], *row[1:]), after]
    return [*corners[:-1], (*rows[-1][:3], steps.high[-1])]


def _named(canvas: Canvas, labels: Sequence[tuple[float, float, str, str]], low: float, size: float) -> None:
    """Names beside the ends of their lines, moved apart where they would cover each other."""
    placed: list[tuple[float, float, float]] = []
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        end = x + len(text) * size * 0.56
        beside = [other + size + 2 for left, right, other in placed if left < end and x < right]
        y = max([min(y, low - 6), *beside])
        placed.append((x, end, y))
        canvas.text(x, y, text, colour, size, weight="bold")


def _missing(lanes: Sequence[Lane], more: int) -> list[str]:
    """What is not drawn, in words: curves that are not there, and attacks past the last line."""
    notes = [
        f"{lane.label}, {lane.series.stage}: {'unknown' if lane.marks else lane.summary}"
        for lane in lanes
        if len(lane.seen) < max(len(lane.marks), 1)
    ]
    return notes + ([f"{count(more, 'more attack')} in the table"] if more else [])
