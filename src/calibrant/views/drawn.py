"""From numbers to a figure that a page, or a file of its own, can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from calibrant.core.figure_data import Datum, FigureData
from calibrant.views.figures import FigureSpec, Lane, Mark, Series, describe, legend, stages, table
from calibrant.views.plots import draw


class Drawn(NamedTuple):
    """A figure ready for the template."""

    spec: FigureSpec
    wide: Markup
    narrow: Markup
    legend: list[tuple[str, int, str]]
    rows: list[tuple[Lane, Mark | None, str]]
    key: str
    """Unique on the page."""


def drawn(spec: FigureSpec, lanes: Sequence[Lane], order: Sequence[str], key: str) -> Drawn:
    """Draw ``lanes``, for wide and for narrow pages; ``order``: of the colours, from ``stages``."""
    label = describe(spec, lanes)
    wide = draw(spec, lanes, order, key, label)
    narrow = draw(spec, lanes, order, key, label, narrow=True)
    return Drawn(spec, wide, narrow, legend(spec, order), table(lanes), key)


def drawn_data(data: FigureData, name: str, key: str, *, seed: int = 0, digest: str = "") -> Drawn:
    """Draw plain data of one record.

    Args:
        data: what a result shows of itself.
        name: of the technique: the title, and the colour, where the data have none.
        key: unique on the page.
        seed: of the record.
        digest: of the record: marks lead to it.
    """
    lanes: dict[tuple[str, str, str], Lane] = {}
    for one in data.values:
        series = _series(data, one, name)
        place = (series.label, series.stage, one.row)
        lane = lanes.get(place, Lane(series, (), name=one.row))
        mark = Mark(seed, digest, one.estimate, one.at, one.column)
        lanes[place] = lane._replace(marks=(*lane.marks, mark))
    spec = FigureSpec(
        title=data.title or name,
        caption=data.caption,
        kind=data.kind,
        axis=data.axis,
        series=tuple(dict.fromkeys(lane.series for lane in lanes.values())),
    )
    return drawn(spec, list(lanes.values()), stages([spec]), key)


def _series(data: FigureData, one: Datum, name: str) -> Series:
    """Curves are told apart by colour, which is the stage's."""
    if data.kind in ("lens", "sweep"):
        return Series(label=name, job_id="", metric=one.label, stage=one.label)
    return Series(label=one.label, job_id="", metric=one.label, stage=one.stage or name)
