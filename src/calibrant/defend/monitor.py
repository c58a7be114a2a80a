"""Monitor: has a rate of a guarded system drifted from its reference? Valid at any time.

Source: test martingales by betting, Waudby-Smith & Ramdas 2024 (arXiv 2010.09686), Shekhar & Ramdas 2023
(arXiv 2112.09162); over start times as e-detectors, Shin, Ramdas & Rinaldo 2023 (arXiv 2203.03532), with
weights that sum to 1. Formulas: ``calibrant.stats.drift``.

1. Each rate is a stream of 0 and 1, a value a request: blocked or not, answered by a layer or not, ...
2. Its reference is declared (``reference``), or an interval of the first ``baseline`` units.
3. Evidence against "the rate is still the reference" grows with drift. It may be looked at after every
   request: the probability that any rate *ever* raises a false alarm, on an endless stream, is at most
   ``alpha``.
4. ``alpha`` is divided evenly among the rates; a rate with an estimated reference spends half of its share on
   the interval.
5. The first alarm of each rate is an ``Incident`` in 'incidents.jsonl'.

Command: ``calibrant run STUDY.toml`` with ``use = "defend.monitor"`` and the input traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from calibrant.core import Estimate, Frozen, InputError, Quiet, Result, Run, technique, unknown
from calibrant.core.errors import nearest
from calibrant.core.estimate import point
from calibrant.core.figure_data import Datum, FigureData, by_names
from calibrant.data.audits import Audits
from calibrant.data.incidents import Incident, incident_id, incident_line
from calibrant.defend._traffic import Series, watched
from calibrant.stats import rate
from calibrant.stats.drift import Direction, began, evidence, reference_of

UNIT = "request"


class Monitor(Frozen):
    """Settings of the monitor."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Probability of one false alarm or more, over all rates and an endless stream."""
    baseline: int = Field(default=1000, ge=1)
    """First units of a rate, from which its reference is estimated; drift is looked for after them."""
    reference: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """Rate -> its reference where that was declared beforehand; its stream has no baseline then."""
    rates: tuple[str, ...] = ()
    """Rates to watch, by name: 'released_rate', 'block_rate/LAYER', ...; () watches all there are."""
    direction: Direction = "both"
    """Drift to look for: 'up', 'down' or 'both'."""
    window: int = Field(default=200, ge=1)
    """Latest units that a rate is shown of."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the interval of a rate as shown; the alarm does not depend on it."""


class MonitorResult(Result):
    """``alarms`` counts rates. For each RATE: ``RATE`` now, ``reference_rate/RATE``, ``e_value/RATE``, the
    largest so far, and ``alarm/RATE``; after an alarm ``alarm_line/RATE`` and ``delay/RATE``."""

    incidents: tuple[Incident, ...] = Field(default=(), exclude=True)
    """One for each rate with an alarm."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """Each rate now beside its reference."""
        rates = [name.removeprefix("alarm/") for name in self.metrics if name.startswith("alarm/")]
        stages = {"": "now", "reference_rate/": "reference"}
        values = tuple(
            Datum(label=name, estimate=self.metrics[before + name], stage=stage)
            for name in rates
            for before, stage in stages.items()
            if before + name in self.metrics
        )
        title = "Rates now and their references"
        mine = (FigureData(kind="intervals", values=values, title=title),) if values else ()
        return (*mine, *by_names(self.metrics))


class _Found(NamedTuple):
    """What is known of one rate."""

    reference: Estimate
    ends: tuple[float, float]
    """Rates that count as no drift."""
    evidence: float
    """The largest so far."""
    threshold: float
    """Evidence that raises the alarm."""
    at: int | None
    """Unit that raised it, counted over the whole series."""
    began: int
    """Unit since which drift explains the values best."""


@technique(version=1)
def monitor(traffic: Audits, config: Monitor = Monitor(), run: Run = Quiet()) -> MonitorResult:
    """Look for drift in the rates of ``traffic``: audits of the guard proxy, or attempts in their order.

    Raises:
        InputError: a rate that is named has no unit in the traffic, or a reference leaves nothing to find.
    """
    every = watched(traffic.rows, traffic.layers)
    series = _chosen(every, config)
    share = config.alpha / len(series)
    metrics: dict[str, Estimate] = {}
    incidents = []
    short = []
    for done, (name, one) in enumerate(series.items(), 1):
        now = one.values[-config.window :]
        metrics[name] = rate(now.astype(bool).tolist(), level=config.level, better="none", unit=UNIT)
        found = _looked(name, one, share, config)
        if isinstance(found, str):
            short.append(name)
            for prefix in ("e_value", "alarm"):
                metrics[f"{prefix}/{name}"] = unknown(found, n=one.values.size, unit=UNIT)
        else:
            metrics |= _metrics(name, one, found, traffic)
            if found.at is not None:
                incidents.append(_incident(name, one, found, traffic, config))
        run.progress(done, len(series), f"rate '{name}'")
    metrics = {"alarms": _count(len(incidents), len(series) - len(short), len(series)), **metrics}
    run.artifact("incidents.jsonl").write_bytes(b"".join(map(incident_line, incidents)))
    told = _caveats(traffic, config, series, short)
    return MonitorResult(metrics=metrics, caveats=tuple(told), incidents=tuple(incidents))


def _chosen(every: Mapping[str, Series], config: Monitor) -> dict[str, Series]:
    if not every:
        raise InputError("no request of this traffic reached the system", hint="give an audit with answers")
    for name in (*config.rates, *config.reference):
        if name not in every:
            raise InputError(
                f"the traffic has no '{name}'{nearest(name, every)}", hint=f"it has: {', '.join(every)}"
            )
    for name in config.reference:
        if config.rates and name not in config.rates:
            raise InputError(f"'{name}' has a reference and is not among 'rates'", hint="name it there, too")
    return {name: every[name] for name in dict.fromkeys(config.rates or every)}


def _looked(name: str, one: Series, share: float, config: Monitor) -> _Found | str:
    """Drift of one rate, or why it cannot be looked for."""
    declared = config.reference.get(name)
    if declared is not None:
        first, spent, ends = 0, share, (declared, declared)
        reference = point(declared, unit=UNIT, reason="declared")
    else:
        first, spent = config.baseline, share / 2
        if one.values.size <= first:
            return f"{one.values.size} units: the first {first} are the baseline, and none is left to look at"
        known = one.values[:first]
        ends = reference_of(int(known.sum()), first, spent, config.direction)
        reference = rate(known.astype(bool).tolist(), level=config.level, better="none", unit=UNIT)
        edge = {"up": ends[1] >= 1, "down": ends[0] <= 0}.get(config.direction, False)
        if edge or (ends[0] <= 0 and ends[1] >= 1):
            return f"the baseline leaves no rate to drift to: {ends[0]:g} to {ends[1]:g} count as no drift"
    found = evidence(one.values[first:], *ends, config.direction)
    threshold = 1 / spent
    hit = np.flatnonzero(found >= threshold)
    at = first + int(hit[0]) if hit.size else None
    start = first + began(one.values[first : at + 1], *ends, config.direction) if at is not None else 0
    return _Found(reference, ends, float(found.max()), threshold, at, start)


def _metrics(name: str, one: Series, found: _Found, traffic: Audits) -> dict[str, Estimate]:
    raised = f"an alarm from {found.threshold:.4g} on; {found.ends[0]:.4g} to {found.ends[1]:.4g} is no drift"
    metrics = {
        f"reference_rate/{name}": found.reference,
        f"e_value/{name}": point(found.evidence, n=one.values.size, reason=raised),
        f"alarm/{name}": point(float(found.at is not None), n=one.values.size),
    }
    if found.at is not None:
        line = traffic.rows[int(one.lines[found.at])].line
        metrics[f"alarm_line/{name}"] = point(float(line), unit="line")
        since = "from where drift explains the values best to the alarm: a point estimate"
        metrics[f"delay/{name}"] = point(float(found.at - found.began + 1), unit=UNIT, reason=since)
    return metrics


def _count(alarms: int, looked: int, watched: int) -> Estimate:
    if not looked:
        return unknown("no rate has more units than its baseline", n=watched, unit="rate")
    return Estimate(value=float(alarms), n=watched, missing=watched - looked, unit="rate", better="lower")


def _incident(name: str, one: Series, found: _Found, traffic: Audits, config: Monitor) -> Incident:
    assert found.at is not None
    line = traffic.rows[int(one.lines[found.at])]
    since = traffic.rows[int(one.lines[found.began])]
    low, high = found.ends
    seen = one.values[found.began : found.at + 1]
    opened = (
        "" if line.at is None else datetime.fromtimestamp(line.at, UTC).isoformat(timespec="milliseconds")
    )
    return Incident(
        id=incident_id("drift", name, line.id, low, high),
        opened_at=opened.replace("+00:00", "Z"),
        facts={
            "rate": name,
            "reference_low": low,
            "reference_high": high,
            "since_line": since.line,
            "rate_since": float(seen.mean()),
            "requests_since": int(seen.size),
            "threshold": found.threshold,
            "alpha": config.alpha,
        },
        evidence={"source": traffic.source, "line": line.line, "line_id": line.id},
    )


def _caveats(traffic: Audits, config: Monitor, series: Mapping[str, Series], short: list[str]) -> list[str]:
    told = [
        f"false alarms: at most {config.alpha:g} over {len(series)} rates and an endless stream, "
        f"{config.alpha / len(series):.3g} a rate",
        "this holds where each request has the reference rate whatever came before: many requests of one "
        "user, or a daily rhythm, are drift to it",
        "an alarm says that a rate moved, not why: the traffic, a layer or the model may have changed",
        "a layer's rates are of the requests on which it was asked, which other layers decide",
    ]
    if not config.rates:
        told.append("the rates were not named: which ones share alpha depends on the traffic")
    if short:
        told.append(f"not looked at, for want of a baseline: {', '.join(short)}")
    if not traffic.closed:
        told.append(
            "the traffic does not say that it is whole: lines may be missing at its end, or still to come"
        )
    if traffic.policies > 1:
        told.append(f"{traffic.policies} policies in one stream: the change between them may be the drift")
    if traffic.refused:
        told.append(f"{len(traffic.refused)} lines could not be read and are in no rate")
    if any(name == "judged_rate" for name in series):
        told.append("'judged_rate' leaves out what the judge could not read: see 'unjudged_rate'")
    return told
