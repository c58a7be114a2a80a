"""From records to the data of a figure: what there is, what is missing, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product

from calibrant.core.errors import nearest
from calibrant.core.estimate import Estimate, unknown
from calibrant.core.figure_data import ROLES, edges_of, settings_of
from calibrant.core.record import Entry
from calibrant.views.curves import Budget, Curve, Fitted
from calibrant.views.figures import FigureSpec, Lane, Mark, Series
from calibrant.views.formatting import OFFERED
from calibrant.views.scales import rounds

_MOST = 30
"""Names of metrics that are listed where one is missing."""
_PLACE = re.compile(r"(?<=/)(layer_|head_|position_|x)\d+(?:\.\d+)?(?=/|$)|(?<=/)[^/]+->[^/]+$")
"""A number, or an edge, in the name of a metric: a family is listed once."""
TOGETHER = "together"
"""Column of a matrix: by any of the techniques."""


def lanes(
    spec: FigureSpec, entries: Sequence[Entry], curves: Mapping[str, Curve | Budget] | None = None
) -> tuple[Lane, ...]:
    """The numbers that ``spec`` asks for, in its order; a missing number is a mark with a reason.

    ``curves``: record digest -> what it stored, for figures of the kinds 'goodhart' and 'budget'.
    """
    done = {e.record.job for e in entries if e.record.status == "finished"}
    # An interrupted try of a job that finished later is in the ledger, not in the figure.
    finished = [e for e in entries if e.record.status == "finished" or e.record.job not in done]
    finished.sort(key=lambda e: (e.record.seed, e.seq))
    drawn: list[Lane] = []
    for series in spec.series:
        mine = [e for e in finished if e.record.job_id == series.job_id]
        if spec.kind == "goodhart":
            drawn.append(_optimised(series, mine, curves or {}))
        elif spec.kind in ("matrix", "budget"):
            split = _hazards(series, mine) if spec.kind == "matrix" else _attacks(series, mine, curves or {})
            drawn += split or [Lane(series, ())]
        else:
            read = _READERS.get(spec.kind, _single)
            drawn.append(Lane(series, tuple(mark for e in mine for mark in read(e, series))))
    return tuple(drawn)


def _single(entry: Entry, series: Series) -> list[Mark]:
    """The one number of an interval plot or of a setting."""
    estimate = entry.record.metrics.get(series.metric) or _absent(entry, series.metric)
    return [Mark(entry.record.seed, entry.digest, estimate, series.at)]


def _settings(entry: Entry, series: Series) -> list[Mark]:
    """The numbers of a sweep: of this job's setting, or of all that the job went through."""
    if series.at is not None:
        return _single(entry, series)
    marks = [
        Mark(entry.record.seed, entry.digest, one.estimate, one.at)
        for one in settings_of(entry.record.metrics, series.metric)
    ]
    if marks or series.metric in entry.record.metrics:
        return marks or _single(entry, series)
    name = series.metric if "*" in series.metric else f"{series.metric}/x*"
    return [Mark(entry.record.seed, entry.digest, _absent(entry, name))]


def _edges(entry: Entry, series: Series) -> list[Mark]:
    """The numbers of a graph, by edge."""
    marks = [
        Mark(entry.record.seed, entry.digest, one.estimate, column=one.column)
        for one in edges_of(entry.record.metrics, series.metric)
    ]
    return marks or [Mark(entry.record.seed, entry.digest, _absent(entry, f"{series.metric}/*->*"))]


def _optimised(series: Series, entries: Sequence[Entry], curves: Mapping[str, Curve | Budget]) -> Lane:
    """Proxy or gold over the distance, with the fits of the gold."""
    marks: list[Mark] = []
    fits: list[tuple[Mark, Fitted]] = []
    for entry in entries:
        seed, curve = entry.record.seed, curves.get(entry.digest)
        if not isinstance(curve, Curve) or series.metric not in ("proxy", "gold"):
            why = f"the record holds no metric '{series.metric}'"
            marks.append(Mark(seed, entry.digest, _lost(entry, why)))
            continue
        estimates = curve.gold if series.metric == "gold" else curve.proxy
        marks += [Mark(seed, entry.digest, e, d) for d, e in zip(curve.sqrt_kl, estimates, strict=True)]
        if curve.fit is not None and series.metric == "gold":
            fits.append((Mark(seed, entry.digest, curve.fit.peak, curve.fit.peak.value), curve.fit))
    return Lane(series, tuple(marks), tuple(fits))


def _layers(entry: Entry, series: Series) -> list[Mark]:
    """The numbers of a lens, by layer."""
    family = series.metric
    pattern = re.compile(re.escape(family) + r"/layer_(\d+)")
    marks = [
        Mark(entry.record.seed, entry.digest, estimate, int(match.group(1)))
        for name, estimate in entry.record.metrics.items()
        if (match := pattern.fullmatch(name))
    ]
    marks.sort(key=lambda mark: mark.at or 0)
    return marks or [Mark(entry.record.seed, entry.digest, _absent(entry, f"{family}/layer_*"))]


def _hazards(series: Series, entries: Sequence[Entry]) -> list[Lane]:
    """A lane a hazard, a mark a technique and record; records without such rates have a lane of their own."""
    rows: dict[str, list[Mark]] = {}
    for entry in entries:
        seed, digest, cells = entry.record.seed, entry.digest, _cells(entry.record.metrics, series.metric)
        if not cells:
            rows.setdefault("", []).append(Mark(seed, digest, _absent(entry, f"{series.metric}/*/*")))
        for (hazard, technique), estimate in cells.items():
            rows.setdefault(hazard, []).append(Mark(seed, digest, estimate, column=technique))
    return [Lane(series, tuple(marks), name=name) for name, marks in rows.items()]


def _cells(metrics: Mapping[str, Estimate], family: str) -> dict[tuple[str, str], Estimate]:
    """(hazard, technique) -> rate, whole rows; 'all hazards' comes first, and ``TOGETHER`` last."""
    every = f"{family}/all/"
    techniques = [name.removeprefix(every) for name in metrics if name.startswith(every)]
    rows = {"all": "all hazards"}
    for name, technique in product(metrics, techniques):
        hazard = name.removeprefix(f"{family}/").removesuffix(f"/{technique}")
        if name == f"{family}/{hazard}/{technique}":
            rows.setdefault(hazard, hazard.replace("_", " "))
    cells = {}
    if not techniques:  # of a sweep over a model's parts: denoise/layer_1/head_2
        start = f"{family}/"
        parts = [(n.removeprefix(start).split("/"), one) for n, one in metrics.items() if n.startswith(start)]
        named = {(_spelt(part[0]), _spelt(part[1])): one for part, one in parts if len(part) == 2}
        cells = dict(sorted(named.items(), key=lambda cell: tuple(map(_counted, cell[0]))))
    for hazard, row in rows.items() if techniques else ():
        names = {technique: f"{family}/{hazard}/{technique}" for technique in techniques}
        if len(techniques) > 1:
            names[TOGETHER] = family if hazard == "all" else f"{family}/{hazard}"
        for column, name in names.items():
            cells[row, column] = metrics.get(name) or unknown(f"the record holds no metric '{name}'")
    return cells


def _spelt(part: str) -> str:
    return part.replace("_", " ")


def _counted(name: str) -> tuple[str, int]:
    """By which names of parts are put in order: layer 2 before layer 10, a prompt's places as it has them."""
    if (part := name.replace(" ", "_")) in ROLES:
        return "", ROLES.index(part)
    words, _, number = name.rpartition(" ")
    return (words, int(number)) if number.isdecimal() else (name, 0)


def _attacks(series: Series, entries: Sequence[Entry], curves: Mapping[str, Curve | Budget]) -> list[Lane]:
    """A lane an attack: its curves, with marks at round numbers of queries and where they end."""
    family, _, wanted = series.metric.partition("/")
    lanes: dict[str, Lane] = {}
    for entry in entries:
        stored = curves.get(entry.digest)
        curves_by_name = (
            stored.attacks if isinstance(stored, Budget) and family == "attack_success_rate" else {}
        )
        if wanted:
            curves_by_name = {name: steps for name, steps in curves_by_name.items() if name == wanted}
        for name, steps in curves_by_name.items():
            lane = lanes.get(name, Lane(series, (), name=name))
            places = sorted({*rounds(steps.costs[0], steps.costs[-1]), steps.costs[0], steps.costs[-1]})
            marks = tuple(Mark(entry.record.seed, entry.digest, steps.at(place), place) for place in places)
            lanes[name] = lane._replace(marks=lane.marks + marks, steps=(*lane.steps, steps))
        if not curves_by_name:
            why = f"the record stores no curve of success against queries{f' of {wanted}' if wanted else ''}"
            lane = lanes.get(wanted, Lane(series, (), name=wanted))
            lost = Mark(entry.record.seed, entry.digest, _lost(entry, why))
            lanes[wanted] = lane._replace(marks=(*lane.marks, lost))
    return list(lanes.values())


def _absent(entry: Entry, metric: str) -> Estimate:
    """Why the record does not hold the metric, and which it holds."""
    plain = f"the record holds no metric '{metric}'"
    families = dict.fromkeys(_PLACE.sub(_star, name) for name in entry.record.metrics)
    if not families:
        return _lost(entry, plain)
    more = f" and {len(families) - _MOST} more" if len(families) > _MOST else ""
    listed = ", ".join(list(families)[:_MOST])
    return _lost(
        entry, f"{plain}{nearest(metric, [*families, *entry.record.metrics])}{OFFERED}{listed}{more}"
    )


def _star(place: re.Match[str]) -> str:
    return f"{place[1]}*" if place[1] else "*->*"


def _lost(entry: Entry, otherwise: str) -> Estimate:
    """Unknown: because the job did not finish, or as ``otherwise`` says."""
    record = entry.record
    if record.status != "finished":
        return unknown(f"the job {record.status}" + (f": {record.failure.message}" if record.failure else ""))
    return unknown(otherwise)


_READERS: Mapping[str, Callable[[Entry, Series], list[Mark]]] = {
    "lens": _layers,
    "sweep": _settings,
    "graph": _edges,
}
