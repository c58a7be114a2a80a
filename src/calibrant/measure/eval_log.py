"""An Inspect log as evidence: each score's mean over every planned sample, lost ones at their worst.

Source: Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), for clusters; the intervals are ours.

1. The denominator is what the run set out to do. A sample that ended in an error, was declared invalid, was
   never run, or has no number for a score is missing, and the bounds count it at its worst; no value is given
   where such samples could move it more than chance. Inspect's own metrics leave them out.
2. Epochs of one sample are not independent: without ``cluster`` each sample is a cluster. With it, every
   sample must name its cluster; samples of our own tasks do. One cluster shows no spread, so it gives no
   interval, and not a width of 0.
3. A score has no direction of its own: ``better`` says what is good.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.eval_log"`` and input log = "inspect:PATH".
"""

from __future__ import annotations

import json
import math
from typing import Literal

from pydantic import Field

from calibrant.core import ConfigError, Estimate, Frozen, InputError, Quiet, Result, Run, technique
from calibrant.core.errors import nearest
from calibrant.formats.evidence import ABSENT, CLUSTER, EvalEvidence, ScoredSample
from calibrant.stats import mean_so_far, rate

Direction = Literal["higher", "lower", "none"]


class EvalLog(Frozen):
    """Which scores are read, and how."""

    better: dict[str, Direction] = Field(default_factory=dict)
    """Score -> which direction is good: {"includes" = "higher"}. Empty reads every score, without one."""
    cluster: str = ""
    """Field of the samples' metadata that names their cluster; "" is 'cluster' in logs of our own tasks, else
    each sample is one (with its epochs)."""
    lowest: float = Field(default=0.0, allow_inf_nan=False)
    """Least value that a score can take: where a missing one may lie."""
    highest: float = Field(default=1.0, allow_inf_nan=False)
    """Largest value that a score can take."""


class EvalLogResult(Result):
    """``mean_score/SCORE`` of each score, ``unscored_rate/SCORE``, ``lost_rate`` and ``limit_rate``."""


@technique(version=2)
def eval_log(log: EvalEvidence, config: EvalLog = EvalLog(), run: Run = Quiet()) -> EvalLogResult:
    """Read each score's mean off a finished evaluation.

    Raises:
        ConfigError: the range is empty.
        InputError: no such score, one that is no number or outside the range, or a sample without its
            cluster.
    """
    if config.lowest >= config.highest:
        raise ConfigError("'lowest' must be below 'highest'", hint="give the range that a score can take")
    names = _names(log, config)
    field = config.cluster or _own(log)
    clusters = [_cluster(sample, field) for sample in log.samples]
    metrics: dict[str, Estimate] = {}
    for name in names:
        values = [_value(sample, name, config) for sample in log.samples]
        metrics[f"mean_score/{name}"] = mean_so_far(
            values,
            clusters=clusters,
            bounds=(config.lowest, config.highest),
            better=config.better.get(name, "none"),
            unit="sample",
        )
        gaps = [value is None for value in values]
        metrics[f"unscored_rate/{name}"] = rate(gaps, clusters=clusters, better="lower", unit="sample")
    lost = [bool(sample.lost) for sample in log.samples]
    metrics["lost_rate"] = rate(lost, clusters=clusters, better="lower", unit="sample")
    halted = [bool(sample.limit) for sample in log.samples]
    metrics["limit_rate"] = rate(halted, clusters=clusters, better="lower", unit="sample")
    _write(log, names, clusters, run)
    return EvalLogResult(metrics=metrics, caveats=(*log.caveats, *_caveats(log, names)))


def _names(log: EvalEvidence, config: EvalLog) -> tuple[str, ...]:
    known = log.scores
    for name in config.better:
        if name not in known:
            raise InputError(
                f"{log.source} has no score '{name}'{nearest(name, known)}",
                hint=f"it has: {', '.join(known)}",
            )
    return tuple(sorted(config.better)) or known


def _value(sample: ScoredSample, name: str, config: EvalLog) -> float | None:
    """The score, or None where there is none that counts."""
    if sample.lost:
        return None
    if name in sample.odd:
        raise InputError(
            f"score '{name}' of sample '{sample.id}' is {sample.odd[name]!r}, which is no number",
            hint="name the scores to read in 'better', without this one",
        )
    value = sample.values.get(name)
    if value is not None and not config.lowest <= value <= config.highest:
        raise InputError(
            f"score '{name}' of sample '{sample.id}' is {value:g}, outside {config.lowest:g} to "
            f"{config.highest:g}",
            hint="set 'lowest' and 'highest' to the range of the score; a missing one may lie anywhere in it",
        )
    return value


def _own(log: EvalEvidence) -> str:
    """The field that samples of our own tasks name their cluster in; "" in other logs."""
    held = [one.metadata for one in log.samples if one.error != ABSENT]
    ours = log.task.startswith("calibrant/") and all(CLUSTER in one for one in held)
    return CLUSTER if ours else ""


def _cluster(sample: ScoredSample, field: str) -> str:
    if not field or sample.error == ABSENT:
        return sample.id
    named = sample.metadata.get(field)
    if named is None or named == "" or (isinstance(named, float) and math.isnan(named)):
        raise InputError(
            f"sample '{sample.id}' names no cluster: its metadata have no '{field}'",
            hint=f"it has: {', '.join(sorted(sample.metadata)) or 'nothing'}. Name one that all have, "
            "or leave 'cluster' out: then each sample is its own",
        )
    return f"{type(named).__name__} {named}"


def _write(log: EvalEvidence, names: tuple[str, ...], clusters: list[str], run: Run) -> None:
    """``origin.json``: where the scores come from; ``samples.jsonl``: what each sample counted as."""
    origin = log.model_dump(mode="json", exclude={"samples", "caveats", "source"})
    run.artifact("origin.json").write_text(json.dumps(origin, sort_keys=True, indent=1), encoding="utf-8")
    rows = [
        {
            "id": one.id,
            "epoch": one.epoch,
            "cluster": cluster,
            "scores": {name: None if one.lost else one.values.get(name) for name in names},
            "why": {name: one.lost or one.unscored.get(name, "not scored") for name in names
                    if one.lost or name not in one.values},
            "edited": list(one.edited),
            "limit": one.limit,
        }
        for one, cluster in zip(log.samples, clusters, strict=True)
    ]  # fmt: skip
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    run.artifact("samples.jsonl").write_text(lines, encoding="utf-8")


def _caveats(log: EvalEvidence, names: tuple[str, ...]) -> list[str]:
    told = [
        f"scores of '{log.model}' on task '{log.task}', version {log.task_version}, as Inspect's log says; "
        "nothing was asked again"
    ]
    for name in names:
        why = [one.unscored.get(name, "not scored") for one in log.samples
               if not one.lost and name not in one.values]  # fmt: skip
        if why:
            kinds = ", ".join(f"{kind} {why.count(kind)}" for kind in sorted(set(why)))
            told.append(f"{len(why)} samples have no '{name}' ({kinds}): each is missing")
    return told
