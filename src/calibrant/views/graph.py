"""Plot of a model's edges: what is read first stands above, heads and MLP of a layer on two rows.

An edge runs from what writes to what reads it, and says by its width, its number and its dashes how much it
carries and in which direction: nothing hangs on colour alone. Of a head the three places where it reads stand
above its name: q, k and v.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from calibrant.views.figures import Lane, Mark, tip
from calibrant.views.formatting import anchor, in_short, known, number
from calibrant.views.palette import HAIR, INK, MUTED, PAPER, STAGES
from calibrant.views.svg import Canvas

MOST = 24
"""Edges that are drawn: the strongest."""
_EDGE = re.compile(r"(?P<writer>[^>]+)->(?P<reader>[^<]+)(?:<(?P<port>[qkv])>)?")
_NODE = re.compile(r"(?P<sort>[am])(?P<layer>\d+)(?:\.h(?P<head>\d+))?")
_PORTS = {"q": -1, "k": 0, "v": 1, "": 0}
TOP, ROW, HIGH, KEY = 22.0, 92.0, 34.0, 46.0


class _Edge(NamedTuple):
    """One edge with its numbers."""

    writer: str
    reader: str
    port: str
    """q, k, v, or "" where there is one place only."""
    value: float
    marks: tuple[tuple[Lane, Mark], ...]
    """Of every lane; the first gives the value."""


def draw_graph(lanes: Sequence[Lane], key: str, narrow: bool) -> Canvas:
    """The edges of the first lane; others are told when an edge is pointed at."""
    width, wide = (350.0, 58.0) if narrow else (800.0, 84.0)
    edges = edges_of(lanes)
    shown = sorted(edges, key=lambda edge: -abs(edge.value))[:MOST]
    places, rows = _placed(shown, width, wide)
    bottom = TOP + max(rows, 1) * ROW - (ROW - HIGH)
    canvas = Canvas(width, bottom + KEY + (40 if narrow else 0), key)
    if not shown:
        canvas.text(width / 2, TOP + 10, _why_none(lanes), MUTED, 12, ha="center", style="italic")
        return canvas
    labels: list[tuple[float, float]] = []
    for edge in sorted(shown, key=lambda edge: abs(edge.value)):
        _draw_edge(canvas, edge, places, wide, labels, f"#{key[:-1]}-numbers")
    heads = {edge.reader for edge in shown if edge.port}
    for name, (x, y) in places.items():
        _draw_node(canvas, name, x, y, wide, name in heads)
    _draw_key(canvas, bottom + 20, narrow, len(edges) - len(shown))
    return canvas


def edges_of(lanes: Sequence[Lane]) -> list[_Edge]:
    """Edges whose number in the first lane is known, in its order."""
    others: dict[str, list[tuple[Lane, Mark]]] = {}
    for lane in lanes:
        for mark in lane.marks:
            others.setdefault(mark.column, []).append((lane, mark))
    found = []
    for mark in lanes[0].marks if lanes else ():
        match = _EDGE.fullmatch(mark.column)
        if match and mark.estimate.value is not None and known(mark.estimate.value):
            found.append(
                _Edge(match["writer"], match["reader"], match["port"] or "", mark.estimate.value,
                      tuple(others[mark.column]))
            )  # fmt: skip
    return found


def rank(name: str) -> tuple[int, int]:
    """Row and place in it: input, each layer's attention, its MLP, logits."""
    match = _NODE.fullmatch(name)
    if match is None:
        return (-1, 0) if name == "input" else (10**9, 0)
    return 2 * int(match["layer"]) + (match["sort"] == "m"), int(match["head"] or 0)


def _placed(edges: Sequence[_Edge], width: float, wide: float) -> tuple[dict[str, tuple[float, float]], int]:
    """Middle of each node's upper edge; rows that hold none are left out, and full ones are broken."""
    names = sorted({name for edge in edges for name in (edge.writer, edge.reader)}, key=rank)
    rows: dict[int, list[str]] = {}
    for name in names:
        rows.setdefault(rank(name)[0], []).append(name)
    most = max(1, int(width // (wide + 14)))
    parts = [row[at : at + most] for row in rows.values() for at in range(0, len(row), most)]
    places = {}
    for number_, part in enumerate(parts):
        for at, name in enumerate(part):
            places[name] = (width * (at + 1) / (len(part) + 1), TOP + number_ * ROW)
    return places, len(parts)


def _draw_edge(
    canvas: Canvas,
    edge: _Edge,
    places: Mapping[str, tuple[float, float]],
    wide: float,
    labels: list[tuple[float, float]],
    numbers: str,
) -> None:
    """A curve that leaves downwards and comes in from above, around what lies between."""
    (x0, y0), (x1, y1) = places[edge.writer], places[edge.reader]
    x1 += _PORTS[edge.port] * wide / 3
    y0 += HIGH + 1
    bow = 0.0 if y1 - y0 < ROW else (1 if x0 + x1 >= 2 * _middle(places) else -1) * (wide * 0.75)
    reach = (y1 - y0) / 2
    xs, ys = _bezier((x0, y0), (x0 + bow, y0 + reach), (x1 + bow, y1 - reach), (x1, y1 - 7))
    colour = STAGES[0] if edge.value >= 0 else STAGES[1]
    dashes = {} if edge.value >= 0 else {"dashes": (3, 2)}
    canvas.line(
        xs, ys, colour, 1 + 4 * min(1.0, abs(edge.value)), alpha=0.75, solid_capstyle="butt", **dashes
    )
    _, mark = edge.marks[0]
    link = f"#{anchor(mark.digest)}" if mark.digest else numbers
    shown = "\n".join(tip(one, other, "edge") for one, other in edge.marks)
    canvas.dot(x1, y1 - 6, colour, "v", size=11, url=link, tip=shown)
    told = number(edge.value)
    reach = 6.2 * len(told) + 7

    def free(t: int) -> bool:
        x, y = xs[t] + 7, ys[t]
        apart = all(abs(x - left) > reach or abs(y - up) > 13 for left, up in labels)
        boxed = (
            abs(x + reach / 2 - mid) < (wide + reach) / 2 and -8 < y - up < HIGH + 8
            for mid, up in places.values()
        )
        return apart and not any(boxed)

    at = next((t for t in (10, 12, 8, 14, 6, 16, 4, 18) if free(t)), 10)
    labels.append((xs[at] + 7, ys[at]))
    canvas.text(xs[at] + 7, ys[at], told, INK, 11, zorder=5)


def _middle(places: Mapping[str, tuple[float, float]]) -> float:
    return sum(x for x, _ in places.values()) / len(places)


def _bezier(*points: tuple[float, float]) -> tuple[list[float], list[float]]:
    """21 points of a cubic curve."""
    xs, ys = [], []
    for step in range(21):
        t = step / 20
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        xs.append(sum(w * x for w, (x, _) in zip(weights, points, strict=True)))
        ys.append(sum(w * y for w, (_, y) in zip(weights, points, strict=True)))
    return xs, ys


def _draw_node(canvas: Canvas, name: str, x: float, y: float, wide: float, head: bool) -> None:
    """On top of the edges that pass behind it."""
    left, high = x - wide / 2, HIGH
    canvas.box(left, y, wide, high, PAPER, zorder=3)
    canvas.line(
        [left, left + wide, left + wide, left, left], [y, y, y + high, y + high, y], MUTED, 1.1, zorder=3
    )
    for port in "qkv" if head else "":
        canvas.text(x + _PORTS[port] * wide / 3, y + 8, port, MUTED, 9.5, ha="center", zorder=4)
    middle = y + (23 if head else high / 2)
    canvas.text(x, middle, name, INK, 12.5, ha="center", weight="bold", zorder=4)


def _draw_key(canvas: Canvas, y: float, narrow: bool, left_out: int) -> None:
    canvas.line([0, 350 if narrow else 800], [y - 14, y - 14], HAIR, 0.8)
    canvas.line([0, 26], [y, y], STAGES[0], 4, alpha=0.75)
    canvas.text(34, y, "for the answer", MUTED, 11)
    canvas.line([132, 158], [y, y], STAGES[1], 4, alpha=0.75, dashes=(3, 2))
    canvas.text(166, y, "against it", MUTED, 11)
    told = ["width and number: share of the effect"]
    told += [f"{left_out} weaker edges not drawn"] if left_out else []
    for at, line in enumerate(told if narrow else ["; ".join(told)]):
        canvas.text(0 if narrow else 250, y + (20 * (at + 1) if narrow else 0), line, MUTED, 11)


def _why_none(lanes: Sequence[Lane]) -> str:
    """Why no edge is drawn."""
    marks = [mark for lane in lanes for mark in lane.marks]
    return f"unknown: {in_short(marks[0].estimate)}" if marks else "no edge was measured"
