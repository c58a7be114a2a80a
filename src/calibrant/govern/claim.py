"""Pre-registered claims: hypotheses of an experiment, fixed in advance and tested on its runs.

    [[job]]
    id = "claim"
    use = "govern.claim"
    config = { study = "goodhart", claims = [
      { says = "best-of-n loses gold in the end", job = "bon", metric = "gold_slope_end", op = "<" },
      { says = "an ensemble keeps more", job = "many", against = "one", metric = "gold_at_n", op = ">" },
    ] }

A claim reads one number of each seed's run (minus that of ``against`` at the same seed; or the slope of that
number along a dial, over the jobs of ``along``) and holds when the interval of their mean is beyond
``value``; it fails when the interval is on the other side; else it is
unknown. A missing run or number makes it unknown, whatever the others are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy import stats

from calibrant.core import Estimate, Evidence, Frozen, Quiet, Record, Result, Run, Verdict, point, technique
from calibrant.core import unknown as not_known


class Claim(Frozen):
    """One hypothesis."""

    says: str
    """The claim in words."""
    job: str
    """Id of the job whose runs (one a seed) are read."""
    metric: str
    """Which of their numbers."""
    op: Literal[">", "<"] = ">"
    """On which side of ``value`` it should be."""
    value: float = 0.0
    """What it is compared with."""
    against: str = ""
    """Id of a job whose number at the same seed is subtracted first; "" subtracts nothing."""
    minus: str = ""
    """Name of the other job's number; "" is the same ``metric``."""
    along: dict[str, float] = Field(default_factory=dict)
    """Ids of jobs, ``job`` among them, and where each stands on a dial: the number is then the least-squares
    slope of the metric per unit of the dial, over these jobs at one seed. {}: no slope."""
    seeds: int = Field(default=3, ge=2)
    """Runs that must be there: with fewer the claim is unknown."""

    @model_validator(mode="after")
    def _slopes(self) -> Claim:
        if not self.along:
            return self
        if self.against or self.minus:
            raise ValueError("a slope along a dial is of one metric: leave out against and minus")
        if self.job not in self.along:
            raise ValueError(f"along must name '{self.job}', too")
        if not all(map(math.isfinite, self.along.values())):
            raise ValueError("every place along the dial must be a finite number")
        if len(set(self.along.values())) < 3:
            raise ValueError("along needs three jobs at different places of the dial")
        return self


class Claims(Frozen):
    """The claims of a study."""

    study: str = ""
    """Name of the study whose runs count; "": runs of any study."""
    claims: tuple[Claim, ...] = ()
    """The claims."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of each claim's interval."""


class ClaimResult(Result):
    """Each claim's number with its interval, and how many hold."""

    verdicts: tuple[Verdict, ...] = Field(default=(), exclude=True)
    """One a claim: yes, no or unknown, with the reason."""


@technique(version=3)
def claim(evidence: Evidence, config: Claims = Claims(), run: Run = Quiet()) -> ClaimResult:
    """Test every claim on the study's runs; the latest of a job and seed counts, one that failed as none."""
    runs = evidence.finished(config.study)
    metrics: dict[str, Estimate] = {}
    verdicts = []
    for number, one in enumerate(config.claims, start=1):
        estimate = _number(one, runs, config.level)
        verdicts.append(_verdict(one, estimate))
        metrics[f"{number} {verdicts[-1].answer}: {one.says}"] = estimate
    held = sum(verdict.answer == "yes" for verdict in verdicts)
    metrics["claims_held"] = point(held, unit=f"of {len(config.claims)} claims", n=len(config.claims))
    unheld = [f"not shown ({v.answer}): {v.question}: {v.reason}" for v in verdicts if v.answer != "yes"]
    return ClaimResult(
        verdicts=tuple(verdicts),
        metrics=metrics,
        caveats=(
            "a claim that holds here holds for these seeds, sizes and data, and may not elsewhere",
            "intervals are over seeds: what all runs share (data, world, recipe) does not widen them",
            *unheld,
        ),
    )


def _number(one: Claim, runs: Mapping[str, Mapping[int, Record]], level: float) -> Estimate:
    """Mean over seeds with Student's interval, or why there is none."""
    if one.along:
        return _slope(one, runs, level)
    mine, theirs = runs.get(one.job, {}), runs.get(one.against, {})
    seeds = sorted(mine.keys() & theirs.keys()) if one.against else sorted(mine)
    if len(seeds) < one.seeds:
        pair = f"'{one.job}' and '{one.against}'" if one.against else f"'{one.job}'"
        return not_known(f"{len(seeds)} finished runs of {pair}; {one.seeds} are needed", n=len(seeds))
    values, sides = [], list[list[Estimate]]()
    for seed in seeds:
        found = [mine[seed].metrics.get(one.metric)]
        if one.against:
            found.append(theirs[seed].metrics.get(one.minus or one.metric))
        known = [each for each in found if each is not None and each.value is not None]
        if len(known) < len(found):
            return not_known(f"seed {seed} has no number for '{one.metric}'", n=len(seeds))
        first, *rest = (float(each.value or 0.0) for each in known)
        values.append(first - sum(rest))
        sides.append(known)
    if all(len({each.value for each in side}) == 1 for side in zip(*sides, strict=True)):
        return _unmoved(values[0], sides, level)
    return _student(values, level)


def _unmoved(value: float, sides: Sequence[Sequence[Estimate]], level: float) -> Estimate:
    """All seeds gave the same numbers, so nothing shows how seeds differ: what each run leaves open counts.

    The interval is that of a mean of independent estimates (MOVER, Zou & Donner 2008, eq. 5).
    """
    n, down, up = len(sides), 0.0, 0.0
    for run in sides:
        for sign, each in zip((1, -1), run, strict=False):
            if each.value is None or each.low is None or each.high is None or each.level < level:
                return not_known(f"all {n} seeds gave {value:.6g}, and a run has no interval of its own", n=n)
            below, above = each.value - each.low, each.high - each.value
            down += (below if sign > 0 else above) ** 2
            up += (above if sign > 0 else below) ** 2
    return Estimate(
        value=value, low=value - math.sqrt(down) / n, high=value + math.sqrt(up) / n, level=level, n=n,
        method="mover over seeds", unit="mean over seeds",
        reason="all seeds gave the same numbers: the interval is that of what each run leaves open",
    )  # fmt: skip


def _slope(one: Claim, runs: Mapping[str, Mapping[int, Record]], level: float) -> Estimate:
    """The slope along the dial at each seed that all its jobs have; their mean, or why there is none."""
    places = np.array(list(one.along.values()))
    apart = places - places.mean()
    seeds = sorted(set.intersection(*(set(runs.get(job, {})) for job in one.along)))
    if len(seeds) < one.seeds:
        why = f"{len(seeds)} seeds with a finished run of each of {len(one.along)} jobs"
        return not_known(f"{why}; {one.seeds} are needed", n=len(seeds))
    slopes = []
    for seed in seeds:
        values = [_value(runs[job][seed], one.metric) for job in one.along]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return not_known(f"seed {seed} has no number for '{one.metric}' in each job", n=len(seeds))
        # Differences from the first value: a metric that never moves has a slope of exactly 0.
        slopes.append(float(apart @ (np.array(known) - known[0]) / (apart @ apart)))
    return _student(slopes, level)


def _value(record: Record, metric: str) -> float | None:
    estimate = record.metrics.get(metric)
    return None if estimate is None else estimate.value


def _student(values: Sequence[float], level: float) -> Estimate:
    """Mean of one number a seed; the seeds are the units."""
    n = len(values)
    centre = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread
    return Estimate(
        value=centre, low=centre - half, high=centre + half, level=level, n=n, method="student-t",
        unit="mean over seeds",
    )  # fmt: skip


def _verdict(one: Claim, estimate: Estimate) -> Verdict:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Verdict(question=one.says, answer="unknown", reason=estimate.reason)
    beyond = estimate.low > one.value if one.op == ">" else estimate.high < one.value
    against = estimate.high <= one.value if one.op == ">" else estimate.low >= one.value
    answer: Literal["yes", "no", "unknown"] = "yes" if beyond else "no" if against else "unknown"
    interval = f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
    reason = f"{interval} over {estimate.n} seeds, wanted {one.op} {one.value:g}"
    return Verdict(question=one.says, answer=answer, reason=reason)
