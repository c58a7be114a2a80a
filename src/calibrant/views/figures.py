"""Figures of a study: interval plots over stages, and curves over layers, a swept setting, or a distance.

The study declares what is compared (``FigureSpec``); this file finds the records, says what is
missing, and draws each figure twice, for wide and for narrow pages. No number is pooled: the bar of a
stage runs from the lowest lower bound to the highest upper bound over its records, which is what a
gate reads, and every record's own value is a mark on it that links to the record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from calibrant.core.config import Frozen
from calibrant.core.estimate import Estimate, unknown
from calibrant.core.record import Entry
from calibrant.views.curves import Curve, Fitted
from calibrant.views.palette import STAGES
from calibrant.views.words import exact, interval, known, number, why_unknown


class Series(Frozen):
    """One stage of one row: the numbers called ``metric`` in the records of job ``job_id``."""

    label: str
    """The row: what is measured, or the attack variant ('persona', 'over-refusal')."""
    job_id: str
    """Name of the job in its study; every seed's record is taken."""
    metric: str
    """Metric name; for a lens the family, such as 'top1_agreement' for 'top1_agreement/layer_3'; for
    'goodhart' one of 'proxy' and 'gold'."""
    stage: str
    """Colour key: 'before', 'after', 'behind guards'."""
    at: float | None = None
    """The setting of this job on the axis of a sweep."""
    threshold: float | None = None
    """Where to draw this row's dashed line; a page takes it from the gate's rule when not given."""


class FigureSpec(Frozen):
    """What one figure compares."""

    title: str
    """What the figure shows, as a short sentence."""
    caption: str = ""
    """What the reader should take from it, and what not."""
    kind: Literal["intervals", "lens", "sweep", "goodhart"] = "intervals"
    """'intervals': one row a label, one bar a stage. 'lens': curves over layers. 'sweep': curves over the
    settings ``at`` of several jobs. 'goodhart': proxy and gold over the distance, with the fitted form."""
    axis: str = ""
    """What a sweep goes through: 'KL coefficient'."""
    series: tuple[Series, ...] = ()
    """In the order of drawing; rows with one label are drawn together."""
    threshold: float | None = None
    """A dashed line through the whole figure."""

    @property
    def across(self) -> str:
        """What the horizontal axis is, "" where it is the measure itself."""
        return {"lens": "layer", "sweep": self.axis, "goodhart": "√KL"}.get(self.kind, "")


class Mark(NamedTuple):
    """One record's number."""

    seed: int
    digest: str
    estimate: Estimate
    at: float | None = None
    """Place on the horizontal axis: layer, setting, or distance in root nats."""


class Lane(NamedTuple):
    """All the numbers of one series; no marks when no record was found."""

    series: Series
    marks: tuple[Mark, ...]
    fits: tuple[tuple[Mark, Fitted], ...] = ()
    """Gold lanes of 'goodhart': each record's peak as a mark, and its fitted form."""

    @property
    def seen(self) -> list[tuple[Mark, float]]:
        """Marks with a value, and the value."""
        return [(m, m.estimate.value) for m in self.marks if known(m.estimate.value)]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest of values and bounds; None when nothing was measured."""
        ends = [
            end for m in self.marks for end in (m.estimate.low, m.estimate.value, m.estimate.high)
            if end is not None and math.isfinite(end)
        ]  # fmt: skip
        return (min(ends), max(ends)) if ends else None

    @property
    def summary(self) -> str:
        """'0.031', '0.031–0.052' over seeds, 'unknown' or 'no record'."""
        if not self.marks:
            return "no record"
        values = [value for _, value in self.seen]
        if not values:
            return "unknown"
        ends = list(dict.fromkeys(number(v, self.series.threshold) for v in (min(values), max(values))))
        lost = len(self.marks) - len(values)
        dash = " to " if ends[-1].startswith("\N{MINUS SIGN}") else "–"
        return dash.join(ends) + (f" ({lost} unknown)" if lost else "")


def lanes(
    spec: FigureSpec, entries: Sequence[Entry], curves: Mapping[str, Curve] | None = None
) -> tuple[Lane, ...]:
    """The numbers that ``spec`` asks for, in its order; a missing number is a mark with a reason.

    ``curves``: record digest -> what it stored, for figures of the kind 'goodhart'.
    """
    done = {e.record.job for e in entries if e.record.status == "finished"}
    # An interrupted try of a job that finished later is in the ledger, not in the figure.
    kept = [e for e in entries if e.record.status == "finished" or e.record.job not in done]
    kept.sort(key=lambda e: (e.record.seed, e.seq))
    if spec.kind == "goodhart":
        return tuple(
            _optimised(s, [e for e in kept if e.record.job_id == s.job_id], curves or {}) for s in spec.series
        )
    read = _layers if spec.kind == "lens" else _single
    return tuple(
        Lane(s, tuple(mark for e in kept if e.record.job_id == s.job_id for mark in read(e, s)))
        for s in spec.series
    )


def _single(entry: Entry, series: Series) -> list[Mark]:
    """The one number of an interval plot or of a setting."""
    estimate = entry.record.metrics.get(series.metric) or _absent(entry, series.metric)
    return [Mark(entry.record.seed, entry.digest, estimate, series.at)]


def _optimised(series: Series, entries: Sequence[Entry], curves: Mapping[str, Curve]) -> Lane:
    """Proxy or gold over the distance, with the fits of the gold."""
    marks: list[Mark] = []
    fits: list[tuple[Mark, Fitted]] = []
    for entry in entries:
        seed, curve = entry.record.seed, curves.get(entry.digest)
        if curve is None or series.metric not in ("proxy", "gold"):
            marks.append(Mark(seed, entry.digest, _absent(entry, series.metric)))
            continue
        found = curve.gold if series.metric == "gold" else curve.proxy
        marks += [Mark(seed, entry.digest, e, d) for d, e in zip(curve.sqrt_kl, found, strict=True)]
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


def _absent(entry: Entry, metric: str) -> Estimate:
    """Why the record does not hold the metric."""
    record = entry.record
    if record.status != "finished":
        return unknown(f"the job {record.status}" + (f": {record.failure.message}" if record.failure else ""))
    return unknown(f"the record holds no metric '{metric}'")


def stages(specs: Sequence[FigureSpec]) -> tuple[str, ...]:
    """All stages in order of appearance: a stage has one colour on the whole page."""
    return tuple(dict.fromkeys(series.stage for spec in specs for series in spec.series))


def style(stage: str, order: Sequence[str]) -> int:
    """Index of the stage's colour and marker; a stage past the last starts the round again."""
    return order.index(stage) % len(STAGES)


def describe(spec: FigureSpec, found: Sequence[Lane]) -> str:
    """The figure in words, for readers who do not see it."""
    parts = []
    for lane in found:
        where, at = lane.bounds, lane.series.at
        span = f", interval {interval(*where)}" if where and lane.seen else ""
        setting = f" at {spec.axis or 'setting'} {exact(at)}" if at is not None else ""
        peak = f"; {peaks(lane)}" if lane.fits else ""
        parts.append(f"{lane.series.label}, {lane.series.stage}{setting}: {lane.summary}{span}{peak}")
    limit = f" Threshold {exact(spec.threshold)}." if spec.threshold is not None else ""
    return (
        f"{spec.title}. {'; '.join(parts) or 'nothing to show'}.{limit} The table below holds every number."
    )


def peaks(lane: Lane) -> str:
    """'peak 1.51–1.83', 'peak 1.51 (2 of 3 show none)' or 'no peak is shown'."""
    where = [mark.at for mark, _ in lane.fits if mark.at is not None]
    if not where:
        return "no peak is shown"
    ends = dict.fromkeys(f"{value:.2f}" for value in (min(where), max(where)))
    lost = len(lane.fits) - len(where)
    return f"peak {'–'.join(ends)}" + (f" ({lost} of {len(lane.fits)} show none)" if lost else "")


def table(found: Sequence[Lane]) -> list[tuple[Lane, Mark | None, str]]:
    """The numbers behind a figure, a row each: lane, mark (None without a record), reason if unknown."""
    rows: list[tuple[Lane, Mark | None, str]] = []
    for lane in found:
        if not lane.marks:
            rows.append((lane, None, f"no record of job '{lane.series.job_id}'"))
        for mark in lane.marks:
            rows.append((lane, mark, "" if known(mark.estimate.value) else why_unknown(mark.estimate)))
    return rows


def legend(spec: FigureSpec, order: Sequence[str]) -> list[tuple[str, int, str]]:
    """(text, colour index, dashes) of each entry; a lens with several labels names them as well."""
    if spec.kind == "intervals":
        return [(stage, style(stage, order), "") for stage in stages([spec])]
    labels = list(dict.fromkeys(series.label for series in spec.series))
    entries = [
        (
            s.stage if len(labels) == 1 else f"{s.label}, {s.stage}",
            style(s.stage, order),
            dashes(labels.index(s.label)),
        )
        for s in spec.series
    ]
    return list(dict.fromkeys(entries))


def dashes(turn: int) -> str:
    """SVG dashes of the ``turn``-th label of a lens; '' is a whole line."""
    return f"5 {2 + turn}" if turn else ""
