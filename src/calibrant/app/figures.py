"""A figure of a result or a record, from Python: ``figure(result)`` in a notebook, ``.save("a.svg")`` else.

What there is to draw, a result says itself (``figure_data``): plain data, drawn by ``views``. A record is
drawn as the result that its technique gives.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from pathlib import Path

from calibrant.app.catalog import find_technique
from calibrant.core import CalibrantError, Entry, InputError, Record, Result
from calibrant.core.errors import nearest
from calibrant.core.figure_data import FigureData, FigureKind, by_names
from calibrant.ledger.layout import disk
from calibrant.views.drawn import drawn_data
from calibrant.views.standalone import standalone

_ROWS, _PANELS, _CELLS = 24, 4, 6000


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
    source: Result | Record | Entry,
    metrics: Sequence[str] = (),
    *,
    title: str = "",
    kind: FigureKind | None = None,
) -> Figure:
    """Draw a result, a record, or an entry of a ledger.

    Args:
        source: what is drawn.
        metrics: names of metrics, or families such as 'denoise'; (): the first figure that the result has,
            at most 24 rows or 4 panels of it.
        title: stands above; "": the data's own, or the name of the technique.
        kind: None: the first that there is; or 'matrix', 'lens' (curves over layers), 'sweep' (over
            settings), 'graph', 'intervals'.

    Raises:
        InputError: no metrics, or none of that name or kind.
    """
    record, wanted = _record(source), [metrics] if isinstance(metrics, str) else list(metrics)
    if not record.metrics:
        raise InputError("there are no metrics to draw", hint="a job that failed has none")
    own = source.figure_data() if isinstance(source, Result) else figure_data(record)
    known = typing.get_args(FigureKind)
    if kind is not None and kind not in known:
        raise InputError(f"no kind '{kind}'{nearest(kind, known)}", hint=f"kinds: {', '.join(known)}")
    offered = [one for one in (*own, *by_names(record.metrics)) if kind in (None, one.kind)]
    fitting = [one for one in offered if set(wanted) <= _labels(one)]
    if not fitting:
        _refuse(offered[-1:], wanted, kind)
    data, left_out = few_enough(_only(fitting[0], wanted), bool(wanted))
    named = title or data.title or record.technique
    told = f"{named} ({left_out})" if left_out else named
    made = drawn_data(data.model_copy(update={"title": told}), record.technique, "f0", digest=record.digest)
    return Figure(standalone(made))


def figure_data(record: Record) -> tuple[FigureData, ...]:
    """What the result of the record's technique shows of itself; by names alone where that is not known."""
    try:
        hints = typing.get_type_hints(find_technique(record.technique).function)
    except CalibrantError:  # made by a plug-in that is not installed, or not by a technique
        return by_names(record.metrics)
    result: type[Result] = hints["return"]
    return result.model_construct(metrics=record.metrics, caveats=record.limits).figure_data()


def _record(source: Result | Record | Entry) -> Record:
    if isinstance(source, Entry):
        return source.record
    if isinstance(source, Record):
        return source
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(source).__name__.removesuffix("Result")).lower()
    return Record(technique=name, version=1, job="", result="", status="finished", metrics=source.metrics)


def _labels(data: FigureData) -> set[str]:
    return {one.label for one in data.values}


def _only(data: FigureData, labels: Sequence[str]) -> FigureData:
    """With these labels alone, in their order; all where none is named."""
    if not labels:
        return data
    values = [one for label in labels for one in data.values if one.label == label]
    return data.model_copy(update={"values": tuple(values)})


def few_enough(data: FigureData, named: bool = False) -> tuple[FigureData, str]:
    """As much as can be read, and what was left out in words; what was named is all drawn, or refused."""
    labels = list(dict.fromkeys(one.label for one in data.values))
    most = len(labels) if named or data.kind == "graph" else _PANELS if data.kind == "matrix" else _ROWS
    told = f"{most} of {len(labels)}" if most < len(labels) else ""
    data = _only(data, labels[:most])
    if data.kind == "matrix" and len(data.values) > _CELLS:
        raise InputError(
            f"{len(data.values)} cells are too many for a matrix: at most {_CELLS}",
            hint="name one family, or draw kind='intervals' with the names of some",
        )
    return data, told


def _refuse(offered: Sequence[FigureData], wanted: Sequence[str], kind: FigureKind | None) -> typing.NoReturn:
    known = sorted({label for one in offered for label in _labels(one)})
    wrong = next((name for name in wanted if name not in known), "")
    raise InputError(
        f"no metric to draw as {kind or 'intervals'}"
        + (f": '{wrong}'{nearest(wrong, known)}" if wrong else ""),
        hint=f"there are: {', '.join(known[:8]) or 'none of this kind'}",
    )
