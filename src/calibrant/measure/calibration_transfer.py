"""Calibration transfer: does a judge's calibration hold on held-out replies, and on another target model's?

An experiment on human-labelled replies, such as XSTest's (Roettger et al. 2024, arXiv 2308.01263):

1. Own: calibrate on a random half of a target's replies, correct the judge's rate on the other half, and
   check whether the interval covers the human rate there. Many random halves.
2. Raw: the interval of the judge's own rate, as reports give it.
3. Borrowed: the same correction with the judge's errors on *another* target. It should fail.
4. Labels shuffled across the rows of a target: does the integrity check detect it?

The estimand is the rate of the behaviour over *all* prompts in the file. On XSTest that is refusal over 250
safe and 200 unsafe prompts together; over-refusal is the share on the safe ones alone, and a judge's errors
may differ there.

    calibrant run judge_calibration
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pydantic import Field

from calibrant.core import Estimate, Frozen, InputError, Judge, JudgeErrors, Quiet, Result, Run, technique
from calibrant.core.digest import canonical
from calibrant.data.rows import Graded, GradedReplies
from calibrant.measure._label_checks import agreement_p, agrees
from calibrant.measure.judge_card import error_rates, human_agreement
from calibrant.measure.judges._graded import answer_of, check_rows, judge_rows
from calibrant.stats import rate
from calibrant.stats.rogan_gladen import Counts, corrected_rate


class CalibrationTransfer(Frozen):
    """Number of random splits."""

    splits: int = Field(default=200, ge=1)
    """Random halves, and random shuffles of the labels, of each target."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Nominal coverage of every interval."""
    alpha: float = Field(default=0.001, gt=0, lt=1)
    """Significance level of the integrity check's test of agreement above chance."""


class CalibrationTransferResult(Result):
    """By target: errors, rates (human, judge, corrected), coverage of the three intervals, shuffles seen."""


class Case(NamedTuple):
    """One reply with both labels."""

    label: bool
    """The human label."""
    said: bool | None
    """The judge's verdict."""


class Split(NamedTuple):
    """One random half, corrected."""

    human: float
    """The human rate."""
    raw: Estimate
    """The judge's rate."""
    own: Estimate
    """Corrected with the other half of the same target."""
    borrowed: dict[str, Estimate]
    """Corrected with all replies of another target, by its name."""


@technique(version=1)
def calibration_transfer(
    labels: GradedReplies,
    judge: Judge,
    second: GradedReplies | None = None,
    third: GradedReplies | None = None,
    config: CalibrationTransfer = CalibrationTransfer(),
    run: Run = Quiet(),
) -> CalibrationTransferResult:
    """Split, calibrate, correct and compare. ``second`` and ``third`` are further files, of other targets.

    Raises:
        InputError: no rows, two tables with one target, or a target with fewer than four replies.
    """
    rows = _joined([table for table in (labels, second, third) if table is not None])
    answers = [answer_of(verdict) for verdict in judge_rows(judge, rows, run)]
    cases = {
        target: [Case(r.label, answer) for r, answer in zip(rows, answers, strict=True) if r.target == target]
        for target in sorted({row.target for row in rows})
    }
    metrics = error_rates(rows, answers, config.level)
    by_target: dict[str, list[Split]] = {}
    for place, (target, own) in enumerate(cases.items()):
        if len(own) < 4:
            raise InputError(f"target '{target}' has {len(own)} replies", hint="halves need four at least")
        others = {name: errors_of(part) for name, part in cases.items() if name != target}
        splits = []
        for number in range(config.splits):
            splits.append(_split(own, others, f"{run.seed}/{target}/{number}", config.level))
            run.progress(place * config.splits + number + 1, len(cases) * config.splits, target)
        metrics |= _about(target, own, splits, config, run.seed)
        by_target[target] = splits
    whole = [split for splits in by_target.values() for split in splits]
    metrics["raw_coverage"] = _coverage(whole, [split.raw for split in whole], config.level)
    metrics["own_coverage"] = _coverage(whole, [split.own for split in whole], config.level)
    metrics["human_agreement"] = human_agreement(rows, config.level)
    stored = {target: [_plain(split) for split in splits] for target, splits in by_target.items()}
    run.artifact("splits.json").write_bytes(canonical(stored) + b"\n")
    return CalibrationTransferResult(
        metrics=metrics,
        caveats=(
            "rates are over all prompts in the files: over-refusal on safe prompts is another estimand",
            "splits are of the same replies: their spread says nothing about other prompts or models",
            "people's labels count as the truth here, and people may be wrong together",
        ),
    )


def errors_of(cases: Sequence[Case]) -> JudgeErrors:
    """The judge's error counts, without its unknowns."""
    answered = [case for case in cases if case.said is not None]
    return JudgeErrors(
        found=sum(case.label and case.said is True for case in answered),
        positives=sum(case.label for case in answered),
        cleared=sum(not case.label and case.said is False for case in answered),
        negatives=sum(not case.label for case in answered),
    )


def _joined(tables: Sequence[GradedReplies]) -> list[Graded]:
    """All rows, each id with its target before it: files of several targets share their ids."""
    rows: list[Graded] = []
    for table in tables:
        check_rows(table.rows, table.source)
        twice = {row.target for row in rows} & {row.target for row in table}
        if twice:
            raise InputError(
                f"'{min(twice)}' is the target of two tables",
                hint="join them, or give the targets different names",
            )
        rows += [row.model_copy(update={"id": f"{row.target}/{row.id}"}) for row in table]
    return rows


def _split(cases: Sequence[Case], others: dict[str, JudgeErrors], seed: str, level: float) -> Split:
    shuffled = random.Random(seed).sample(list(cases), len(cases))
    half = len(shuffled) // 2
    calibrate, test = shuffled[:half], shuffled[half:]
    answers = [case.said for case in test]
    return Split(
        human=sum(case.label for case in test) / len(test),
        raw=rate(answers, level=level, better="none", unit="reply"),
        own=_corrected(answers, errors_of(calibrate), level),
        borrowed={name: _corrected(answers, errors, level) for name, errors in others.items()},
    )


def _corrected(answers: Sequence[bool | None], errors: JudgeErrors, level: float) -> Estimate:
    return _of_counts(Counts(answers.count(True), len(answers), answers.count(None)), errors, level)


@lru_cache(maxsize=4096)
def _of_counts(counts: Counts, errors: JudgeErrors, level: float) -> Estimate:
    """Borrowed errors are the same in every split, and counts come again."""
    return corrected_rate(counts, errors, level=level, better="none", unit="reply")


def _about(
    target: str, cases: Sequence[Case], splits: Sequence[Split], config: CalibrationTransfer, seed: int
) -> dict[str, Estimate]:
    """All metrics of one target."""
    labels, answers = [case.label for case in cases], [case.said for case in cases]
    metrics = {
        f"human_rate/{target}": rate(labels, level=config.level, better="none", unit="reply"),
        f"judge_rate/{target}": rate(answers, level=config.level, better="none", unit="reply"),
        f"own_rate/{target}": _middle([split.own for split in splits], len(cases)),
        f"raw_coverage/{target}": _coverage(splits, [split.raw for split in splits], config.level),
        f"own_coverage/{target}": _coverage(splits, [split.own for split in splits], config.level),
    }
    for name in splits[0].borrowed:
        borrowed = [split.borrowed[name] for split in splits]
        metrics[f"borrowed_rate/{target} from {name}"] = _middle(borrowed, len(cases))
        metrics[f"borrowed_coverage/{target} from {name}"] = _coverage(splits, borrowed, config.level)
    p, _ = agreement_p(answers, labels)
    metrics[f"agreement_p/{target}"] = Estimate(value=p, n=len(cases), unit="p-value", method="fisher exact")
    flagged = []
    for number in range(config.splits):
        moved = random.Random(f"{seed}/{target}/shuffle {number}").sample(labels, len(labels))
        flagged.append(agrees("judge", answers, moved, config.alpha).verdict.answer == "no")
    metrics[f"shuffled_flagged/{target}"] = rate(flagged, level=config.level, better="higher", unit="shuffle")
    return metrics


def _coverage(splits: Sequence[Split], intervals: Sequence[Estimate], level: float) -> Estimate:
    """Share of the splits whose interval covers the human rate."""
    covers = [
        one.low is not None and one.high is not None and one.low <= split.human <= one.high
        for split, one in zip(splits, intervals, strict=True)
    ]
    return rate(covers, level=level, better="higher", unit="split", null_value=level)


def _middle(estimates: Sequence[Estimate], n: int) -> Estimate:
    """Median over the splits of value, lower and upper bound; unknown values are left out of the first."""
    values = [one.value for one in estimates if one.value is not None]
    lost = len(estimates) - len(values)
    low = statistics.median(0.0 if one.low is None else one.low for one in estimates)
    high = statistics.median(1.0 if one.high is None else one.high for one in estimates)
    middle = statistics.median(values) if values else None
    return Estimate(
        value=None if middle is None else min(high, max(low, middle)),
        low=low,
        high=high,
        level=estimates[0].level,
        n=n,
        reason=f"unknown in {lost} of {len(estimates)} splits: {estimates[0].reason}" if lost else "",
        method=f"median over {len(estimates)} splits of {estimates[0].method}",
        unit="reply",
    )


def _plain(split: Split) -> dict[str, object]:
    """A split for the artefact: each interval as [low, value, high]."""

    def ends(one: Estimate) -> list[float | None]:
        return [one.low, one.value, one.high]

    return {
        "human": split.human,
        "raw": ends(split.raw),
        "own": ends(split.own),
        "borrowed": {name: ends(one) for name, one in split.borrowed.items()},
    }
