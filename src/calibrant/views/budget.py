"""Drawing of success against queries: a step function with its band for each attack, named where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from calibrant.views.curves import Steps
from calibrant.views.figures import FigureSpec, Lane, reach, tip
from calibrant.views.palette import HAIR, INK, LIMIT, MUTED, STAGES
from calibrant.views.scales import Scale, extent
from calibrant.views.svg import MARKERS, Canvas
from calibrant.views.words import anchor, brief, count, exact, known

LINES = 6
"""Most lines in one figure: those that came farthest; the table has all."""
SPREAD = 30.0
"""Ratio of costs past which the axis is logarithmic."""


def draw_budget(spec: FigureSpec, found: Sequence[Lane], key: str, narrow: bool) -> Canvas:
    """Curves over queries; colour and mark stand for the attack, dashes for the stage."""
    width, height, left, right = (350.0, 290.0, 34.0, 262.0) if narrow else (800.0, 350.0, 46.0, 650.0)
    curves = sorted((lane for lane in found if lane.steps), key=_came, reverse=True)
    shown = [lane for lane in found if lane in curves[:LINES]]
    canvas = Canvas(width, height, key)
    across = _across(shown, left, right)
    limit = spec.threshold
    ends = reach(spec.model_copy(update={"threshold": limit}), [_unlimited(lane) for lane in shown])
    up = Scale(*extent(ends, whole=False), height - 44, 16)
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
    _lost(canvas, found, len(curves) - len(shown), (left, right, up.end), f"#{key[:-1]}-numbers")
    return canvas


def _came(lane: Lane) -> float:
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
    names = list(dict.fromkeys(lane.name for lane in lanes))
    stages = list(dict.fromkeys(lane.series.stage for lane in lanes))
    labels: list[tuple[float, float, str, str]] = []
    for lane in lanes:
        turn, look = stages.index(lane.series.stage), names.index(lane.name) % len(STAGES)
        turn += 2 * (names.index(lane.name) // len(STAGES))
        dashes = {"dashes": (5, 2 + turn)} if turn else {}
        for steps in lane.steps:
            xs, value, low, high = _stepped(steps)
            places = [across(x) for x in xs]
            canvas.band(
                places, [_in(up, v) for v in high], [_in(up, v) for v in low], STAGES[look], alpha=0.12
            )
            before = [(across.start, up(0.0)), (places[0], up(0.0))] if places[0] > across.start else []
            points = before + list(zip(places, [up(v) for v in value], strict=True))
            canvas.line(
                *map(list, zip(*points, strict=True)), STAGES[look], 1.7, solid_joinstyle="miter", **dashes
            )
        for mark, value in lane.seen:
            said = tip(lane, mark, "queries")
            url = f"#{anchor(mark.digest)}"
            canvas.dot(
                across(mark.at or 0), up(value), STAGES[look], MARKERS[look], size=5.6, url=url, tip=said
            )
        far = max(steps.costs[-1] for steps in lane.steps)
        ends = [steps.value[-1] for steps in lane.steps]
        said = "–".join(dict.fromkeys(brief(end) for end in (min(ends), max(ends))))
        stage = f", {lane.series.stage}" if len(stages) > 1 else ""
        labels.append(
            (across(far) + 8, up(sum(ends) / len(ends)), f"{lane.name}{stage} {said}", STAGES[look])
        )
    _named(canvas, labels, (up.end, up.start), 10.5 if narrow else 12.0)


def _stepped(steps: Steps) -> tuple[list[float], list[float], list[float], list[float]]:
    """Corners of the curve and of its band: each value holds up to the next cost."""
    rows = list(zip(steps.costs, steps.value, steps.low, steps.upper, strict=True))
    corners = [rows[0]]
    for row, after in pairwise(rows):
        corners += [(after[0], *row[1:]), after]
    # Where the curve ends the upper end is the one at that cost: beyond it nothing is known.
    corners[-1] = (*corners[-1][:3], steps.high[-1])
    xs, value, low, high = (list(column) for column in zip(*corners, strict=True))
    return xs, value, low, high


def _in(up: Scale, value: float) -> float:
    """The pixel, kept inside the plot."""
    return min(max(up(value), up.end), up.start)


def _named(
    canvas: Canvas, labels: Sequence[tuple[float, float, str, str]], room: tuple[float, float], size: float
) -> None:
    """Names beside the ends of their lines, moved apart where they would cover each other."""
    placed: list[tuple[float, float, float]] = []
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        end = x + len(text) * size * 0.56
        beside = [other for left, right, other in placed if left < end and x < right]
        y = max([y, *(other + size + 2 for other in beside)])
        placed.append((x, end, y))
        canvas.text(x, min(y, room[1] - 6), text, colour, size, weight="bold")


def _lost(
    canvas: Canvas, found: Sequence[Lane], more: int, room: tuple[float, float, float], numbers: str
) -> None:
    """What is not drawn, said aloud: attacks past the last line, and curves that are not there."""
    left, right, top = room
    missing = [
        lane for lane in found if not lane.marks or any(not known(m.estimate.value) for m in lane.marks)
    ]
    said = [
        f"{lane.label}, {lane.series.stage}: {'unknown' if lane.marks else lane.summary}" for lane in missing
    ]
    said += [f"{count(more, 'more attack')} in the table"] if more else []
    for line, text in enumerate(said):
        x, y = (
            (left + 10, top + 12 + 16 * line) if len(missing) == len(found) else (right, top - 8 + 14 * line)
        )
        place = {"ha": "left" if len(missing) == len(found) else "right"}
        canvas.text(x, y, text, INK if missing else MUTED, 11, style="italic", url=numbers, **place)
