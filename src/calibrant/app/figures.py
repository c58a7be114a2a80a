"""A figure of a result or a record, from Python: ``figure(result)`` in a notebook, ``.save("a.svg")`` else.

What is drawn follows from the names of the metrics: 'X/layer_3/head_2' is a matrix of layers by heads,
'X/layer_3' a curve over layers, everything else a row with its interval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from calibrant.core import Entry, Estimate, InputError, Record, Result
from calibrant.core.errors import nearest
from calibrant.ledger.layout import disk
from calibrant.views.figures import FigureSpec, Series
from calibrant.views.page import StudyView, figures
from calibrant.views.standalone import standalone

Kind = Literal["matrix", "lens", "intervals"]
_CELL = re.compile(r"(?P<family>.+)/(?P<row>[a-z]+_\d+)/(?P<column>[a-z]+)_\d+")
_LAYER = re.compile(r"(?P<family>.+)/layer_\d+")
_ROWS, _PANELS, _CELLS = 24, 4, 600


class Figure:
    """An SVG document."""

    def __init__(self, svg: str) -> None:
        """``svg`` stands alone: title and legend inside."""
        self.svg = svg

    def save(self, path: str | Path) -> Path:
        """Write it. Raises InputError: not named .svg, or refused by the disk."""
        path = Path(path)
        if path.suffix != ".svg":
            raise InputError(f"{path} is written as SVG", hint=f"name it {path.stem}.svg")
        with disk("writing", path):
            path.write_text(self.svg, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return self.svg


def figure(
    source: Result | Record | Entry, metrics: Sequence[str] = (), *, title: str = "", kind: Kind | None = None
) -> Figure:
    """Draw a result, a record, or an entry of a ledger.

    Args:
        source: whose metrics are drawn.
        metrics: their names, or families such as 'denoise'; (): the first 24 rows, or 4 panels, that
            the kind shows.
        title: stands above; "": the name of the technique.
        kind: None: the first of matrix, curves over layers ('lens') and intervals that the names allow.

    Raises:
        InputError: no metrics, or none of that name or kind.
    """
    record, wanted = _record(source), [metrics] if isinstance(metrics, str) else list(metrics)
    if not record.metrics:
        raise InputError("there are no metrics to draw", hint="a job that failed has none")
    shapes: Mapping[Kind, list[str]] = {
        "matrix": _families(_CELL, record.metrics),
        "lens": _families(_LAYER, record.metrics),
        "intervals": list(record.metrics),
    }
    if kind is not None and kind not in shapes:
        raise InputError(f"no kind '{kind}'{nearest(kind, shapes)}", hint=f"kinds: {', '.join(shapes)}")
    fitting: list[Kind] = [one for one, found in shapes.items() if found and set(wanted) <= set(found)]
    chosen: Kind = kind or (fitting or ["intervals"])[0]
    known = shapes[chosen]
    wrong = next((name for name in wanted if name not in known), "")
    if wrong or not known:
        raise InputError(
            f"no metric to draw as {chosen}" + (f": '{wrong}'{nearest(wrong, known)}" if wrong else ""),
            hint=f"there are: {', '.join(known[:8]) or 'none of this kind'}",
        )
    names = wanted or known[: _PANELS if chosen == "matrix" else _ROWS]
    cells = sum(any(name.startswith(f"{family}/") for family in names) for name in record.metrics)
    if chosen == "matrix" and cells > _CELLS:
        raise InputError(
            f"{cells} cells are too many for a matrix with numbers: at most {_CELLS}",
            hint="name one family, or draw kind='intervals' with the names of some",
        )
    title = title or record.technique
    if len(names) < len(wanted or known):
        title += f" ({len(names)} of {len(known)})"
    spec = FigureSpec(
        title=title,
        kind=chosen,
        axis=_column(names[0], record.metrics) if chosen == "matrix" else "",
        series=tuple(
            Series(
                label=record.technique if chosen == "lens" else name,
                job_id="",
                metric=name,
                stage=name if chosen == "lens" else record.technique,
            )
            for name in names
        ),
    )
    entry = Entry(seq=0, record=record, digest=record.digest)
    drawn = figures(StudyView(name="figure", title="", entries=(entry,), figures=(spec,)))
    return Figure(standalone(drawn[0]))


def _record(source: Result | Record | Entry) -> Record:
    if isinstance(source, Entry):
        return source.record
    if isinstance(source, Record):
        return source
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(source).__name__.removesuffix("Result")).lower()
    return Record(technique=name, version=1, job="", result="", status="finished", metrics=source.metrics)


def _families(shape: re.Pattern[str], metrics: Mapping[str, Estimate]) -> list[str]:
    """What stands before layer and column, where there are two or more."""
    found = [match.group("family") for name in metrics if (match := shape.fullmatch(name))]
    return [name for name in dict.fromkeys(found) if found.count(name) > 1]


def _column(family: str, metrics: Mapping[str, Estimate]) -> str:
    matches = (_CELL.fullmatch(name) for name in metrics)
    return next(match.group("column") for match in matches if match and match.group("family") == family)
