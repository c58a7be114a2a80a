"""Figures of a study: intervals over stages, curves over layers, settings, distances or queries, matrices.

The study declares what is compared (``FigureSpec``); ``lanes`` finds the records and says what is missing,
``plots`` draws each figure twice, for wide and for narrow pages. No number is pooled: the bar of a
stage runs from the lowest lower bound to the highest upper bound over its records, which is what a
gate reads, and every record's own value is a mark on it that links to the record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from calibrant.core.config import Frozen
from calibrant.core.estimate import Estimate
from calibrant.views.curves import Fitted, Steps
from calibrant.views.formatting import exact, interval, known, number, why_unknown
from calibrant.views.palette import STAGES


class Series(Frozen):
    """One stage of one row: the numbers called ``metric`` in the records of job ``job_id``."""

    label: str
    """The row: what is measured, or the attack variant ('persona', 'over-refusal')."""
    job_id: str
    """Name of the job in its study; every seed's record is taken."""
    metric: str
    """Metric name; for a lens the family, such as 'top1_agreement' for 'top1_agreement/layer_3'; for a sweep
    without ``at`` the family too, 'addition' for 'addition/x0.5', or with a star for the number,
    'addition/x*/random_largest'; for
    'goodhart' one of 'proxy' and 'gold'; for 'graph' 'removal', of whose '<writer>-><reader>' it shows every
    one; for 'matrix' 'attack_success_rate', of whose
    '<hazard>/<technique>' it shows every one, or 'denoise', of whose '<layer>/<head>'; for 'budget'
    'attack_success_rate' for every attack, or 'attack_success_rate/pair' for that one."""
    stage: str
    """Colour key: 'before', 'after', 'behind guards'."""
    at: float | None = None
    """The setting of this job on the axis of a sweep; None where one job went through all settings."""
    threshold: float | None = None
    """Where to draw this row's dashed line; a page takes it from the gate's rule when not given."""


class FigureSpec(Frozen):
    """What one figure compares."""

    title: str
    """What the figure shows, as a short sentence."""
    caption: str = ""
    """What the reader should take from it, and what not."""
    kind: Literal["intervals", "lens", "sweep", "goodhart", "matrix", "budget", "graph"] = "intervals"
    """'intervals': one row a label, one bar a stage. 'lens': curves over layers. 'sweep': curves over the
    settings ``at`` of several jobs, or over those of one. 'goodhart': proxy and gold over the distance,
    with the fitted form. 'matrix': a campaign's rates, hazards by technique families, or a patch sweep's
    shares, layers by heads. 'budget': a campaign's success against queries. 'graph': edges between parts of a
    model."""
    axis: str = ""
    """What a sweep goes through: 'KL coefficient'; of a matrix, what its columns are: 'head'."""
    series: tuple[Series, ...] = ()
    """In the order of drawing; rows with one label are drawn together."""
    threshold: float | None = None
    """A dashed line through the whole figure; a matrix has none."""

    @property
    def across(self) -> str:
        """What the horizontal axis is, "" where it is the measure itself."""
        names = {
            "lens": "layer",
            "goodhart": "√KL",
            "matrix": "technique",
            "budget": "queries",
            "graph": "edge",
        }
        return self.axis if self.kind == "sweep" else self.axis or names.get(self.kind, "")

    @property
    def limited(self) -> bool:
        """Whether a threshold is drawn."""
        if self.kind in ("matrix", "graph"):
            return False
        rows = self.kind != "budget" and any(s.threshold is not None for s in self.series)
        return rows or self.threshold is not None


class Mark(NamedTuple):
    """One record's number."""

    seed: int
    digest: str
    estimate: Estimate
    at: float | None = None
    """Place on the horizontal axis: layer, setting, distance in root nats, or queries."""
    column: str = ""
    """Column of a matrix."""

    @property
    def place(self) -> str:
        """Column, or place on the axis, as text."""
        return self.column or ("" if self.at is None else f"{self.at:.4g}")


class Lane(NamedTuple):
    """All the numbers of one series; no marks when no record was found."""

    series: Series
    marks: tuple[Mark, ...]
    fits: tuple[tuple[Mark, Fitted], ...] = ()
    """Gold lanes of 'goodhart': each record's peak as a mark, and its fitted form."""
    name: str = ""
    """Row of a matrix, or attack of 'budget': one series has several lanes there."""
    steps: tuple[Steps, ...] = ()
    """Lanes of 'budget': each record's curve."""

    @property
    def label(self) -> str:
        """What is measured."""
        return self.name or self.series.label

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


def stages(specs: Sequence[FigureSpec]) -> tuple[str, ...]:
    """All stages in order of appearance: a stage has one colour on the whole page."""
    return tuple(dict.fromkeys(series.stage for spec in specs for series in spec.series))


def style(stage: str, order: Sequence[str]) -> int:
    """Index of the stage's colour and marker; a stage past the last starts the round again."""
    return order.index(stage) % len(STAGES)


def describe(spec: FigureSpec, lanes: Sequence[Lane]) -> str:
    """The figure in words, for readers who do not see it."""
    parts = []
    for lane in lanes:
        where, at = lane.bounds, lane.series.at
        span = f", interval {interval(*where)}" if where and lane.seen else ""
        setting = f" at {spec.axis or 'setting'} {exact(at)}" if at is not None else ""
        peak = f"; {peaks(lane)}" if lane.fits else ""
        value = within(lane) if lane.steps else f"{lane.summary}{span}"
        named = ", ".join(part for part in (lane.label, lane.series.stage) if part)
        parts.append(f"{named}{setting}: {value}{peak}")
    limit = f" Threshold {exact(spec.threshold)}." if spec.threshold is not None else ""
    return (
        f"{spec.title}. {'; '.join(parts) or 'nothing to show'}.{limit} The table below holds every number."
    )


def reach(spec: FigureSpec, lanes: Sequence[Lane]) -> list[float]:
    """Everything that the axis of the measure must hold."""
    limits = [lane.series.threshold for lane in lanes] + [spec.threshold]
    ends = [end for lane in lanes if lane.bounds for end in lane.bounds]
    return ends + [limit for limit in limits if limit is not None and math.isfinite(limit)]


def tip(lane: Lane, mark: Mark, across: str = "at") -> str:
    """What a mark says when pointed at."""
    e, place = mark.estimate, mark.place
    if place and not place.startswith(f"{across} "):  # 'head 2' says itself what it is
        place = f"{across} {place}"
    value = f"{number(e.value)} {interval(e.low, e.high)}".rstrip()
    if not known(e.value):
        value += f": {why_unknown(e)}"
    counted = (f" n = {e.n}" if e.n else "") + (f", {e.missing} of them missing" if e.missing else "")
    named = ", ".join(part for part in (lane.label, lane.series.stage, place) if part)
    return f"{named}, seed {mark.seed}: {value}{counted}"


def peaks(lane: Lane) -> str:
    """'peak 1.51–1.83', 'peak 1.51 (2 of 3 show none)' or 'no peak is shown'."""
    where = [mark.at for mark, _ in lane.fits if mark.at is not None]
    if not where:
        return "no peak is shown"
    ends = dict.fromkeys(f"{value:.2f}" for value in (min(where), max(where)))
    lost = len(lane.fits) - len(where)
    return f"peak {'–'.join(ends)}" + (f" ({lost} of {len(lane.fits)} show none)" if lost else "")


def within(lane: Lane) -> str:
    """How far a lane of 'budget' came: '0.950 within 18 queries', over records '0.910–0.950 within 18–20'."""
    values = [steps.value[-1] for steps in lane.steps]
    costs = [steps.costs[-1] for steps in lane.steps]
    shares = dict.fromkeys(number(value) for value in (min(values), max(values)))
    spent = dict.fromkeys(exact(cost) for cost in (min(costs), max(costs)))
    return f"{'–'.join(shares)} within {'–'.join(spent)} queries"


def table(lanes: Sequence[Lane]) -> list[tuple[Lane, Mark | None, str]]:
    """The numbers behind a figure, a row each: lane, mark (None without a record), reason if unknown."""
    rows: list[tuple[Lane, Mark | None, str]] = []
    for lane in lanes:
        if not lane.marks:
            rows.append((lane, None, f"no record of job '{lane.series.job_id}'"))
        for mark in lane.marks:
            rows.append((lane, mark, "" if known(mark.estimate.value) else why_unknown(mark.estimate)))
    return rows


def legend(spec: FigureSpec, order: Sequence[str]) -> list[tuple[str, int, str]]:
    """(text, colour index, dashes) of each entry; a lens with several labels names them as well.

    A matrix or a graph has its key inside, and lines of 'budget' are named where they end.
    """
    if spec.kind in ("matrix", "budget", "graph"):
        return []
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
