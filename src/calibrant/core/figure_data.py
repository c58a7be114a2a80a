"""What a result shows of itself, as plain data: ``views`` draws it, and knows no technique."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from calibrant.core.config import Frozen
from calibrant.core.estimate import Estimate

ROLES = ("subject_first", "subject_middle", "subject_last", "after_first", "after_further", "last")
"""Places in a prompt about a subject, by name, in the order of the prompt."""
FigureKind = Literal["matrix", "lens", "sweep", "graph", "intervals"]
_CELL = re.compile(r"(?P<family>.+)/(?P<row>[a-z]+_\d+)/(?P<column>[a-z]+_\d+)")
_NUMBER = r"(?P<at>\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_LAYER = re.compile(r"(?P<family>.+)/layer_(?P<at>\d+)")


class Datum(Frozen):
    """One number of a figure, and where it stands."""

    label: str
    """Panel of a matrix, curve of a lens or a sweep, row of intervals."""
    estimate: Estimate
    """The number, or why there is none."""
    stage: str = ""
    """What it is compared by, one colour each: 'trained', 'random weights'."""
    row: str = ""
    """Of a matrix: 'layer 3'."""
    column: str = ""
    """Of a matrix: 'head 2'; of a graph the edge: 'a0.h1->a3.h2<k>'."""
    at: float | None = None
    """Place on the axis of a lens: the layer; of a sweep: the setting."""


class FigureData(Frozen):
    """One figure."""

    kind: FigureKind
    """'matrix': rows by columns. 'lens': curves over layers. 'sweep': curves over settings, such as doses.
    'graph': edges between the parts of a model. 'intervals': a row a label, a bar a stage."""
    values: tuple[Datum, ...]
    """In the order of drawing."""
    title: str = ""
    """A short sentence; "": the technique's name, where a figure is asked for."""
    caption: str = ""
    """What to take from it."""
    axis: str = ""
    """What goes from left to right: 'head', 'position', 'layer', 'dose'."""


def by_names(metrics: Mapping[str, Estimate]) -> tuple[FigureData, ...]:
    """What names alone allow.

    'X/layer_3/head_2' are cells of a matrix, 'X/layer_3' is a place on a curve, every metric is an interval.
    """
    cells = family(metrics)
    axis = next((one.column.partition(" ")[0] for one in cells), "")
    curves = curve(metrics)
    rows = tuple(Datum(label=name, estimate=one) for name, one in metrics.items())
    figures = (
        FigureData(kind="matrix", values=cells, axis=axis),
        FigureData(kind="lens", values=curves, axis="layer"),
        FigureData(kind="intervals", values=rows),
    )
    return tuple(figure for figure in figures if figure.values)


def family(metrics: Mapping[str, Estimate], names: Iterable[str] = ()) -> tuple[Datum, ...]:
    """Cells 'NAME/layer_3/head_2' of families with two or more; ``names``: of these alone."""
    found = [(match, one) for name, one in metrics.items() if (match := _CELL.fullmatch(name))]
    values = tuple(
        Datum(label=match["family"], estimate=one, row=_spelt(match["row"]), column=_spelt(match["column"]))
        for match, one in found
    )
    return _several(values, names)


def curve(metrics: Mapping[str, Estimate], names: Mapping[str, str] | None = None) -> tuple[Datum, ...]:
    """Places 'NAME/layer_3' of families with two or more; ``names``: of these, and what to call them."""
    found = [(match, one) for name, one in metrics.items() if (match := _LAYER.fullmatch(name))]
    values = _several(
        tuple(Datum(label=match["family"], estimate=one, at=int(match["at"])) for match, one in found),
        names or (),
    )
    return tuple(one.model_copy(update={"label": (names or {}).get(one.label, one.label)}) for one in values)


def settings_of(metrics: Mapping[str, Estimate], name: str) -> tuple[Datum, ...]:
    """Settings 'NAME/x0.5' of a sweep, from low to high.

    A star in ``name`` is the number, where more follows it: 'addition/x*/random_largest'.
    """
    before, star, after = name.partition("*")
    pattern = re.compile(re.escape(before if star else f"{name}/x") + _NUMBER + re.escape(after))
    found = [(float(m["at"]), one) for metric, one in metrics.items() if (m := pattern.fullmatch(metric))]
    return tuple(
        Datum(label=name, estimate=one, at=at) for at, one in sorted(found, key=lambda pair: pair[0])
    )


def edges_of(metrics: Mapping[str, Estimate], name: str, label: str = "") -> tuple[Datum, ...]:
    """Edges 'NAME/a0.h1->a3.h2<k>'."""
    return tuple(
        Datum(label=label or name, estimate=one, column=found)
        for metric, one in metrics.items()
        if (found := metric.removeprefix(f"{name}/")) != metric and "->" in found and "/" not in found
    )


def _several(values: tuple[Datum, ...], names: Iterable[str]) -> tuple[Datum, ...]:
    wanted, counts = set(names), dict[str, int]()
    for one in values:
        counts[one.label] = counts.get(one.label, 0) + 1
    return tuple(one for one in values if counts[one.label] > 1 and (not wanted or one.label in wanted))


def _spelt(part: str) -> str:
    return part.replace("_", " ")
