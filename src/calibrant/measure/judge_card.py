"""Judge calibration: sensitivity and specificity against human labels, and integrity checks of the labels.

1. Sensitivity and specificity come by target and family of attacks, each with an exact interval: on public
   labels the sensitivity of one string match runs from .21 to .95 over five models, so a pooled number would
   be misleading.
2. The judge's 'unknown' is neither right nor wrong: it is counted separately and widens both bounds.
3. The labels are tested, too: agreement above chance, vocabulary, copies. Labels that do not belong to their
   rows give a card that says so, and ``measure.calibrated_judge`` then stays uncalibrated.
4. With an older card, drift: the change of both, with Newcombe's interval (1998, Stat. in Medicine 17,
   873-890).

    calibrant run judge_calibration
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from calibrant.core import (
    Estimate,
    Frozen,
    Judge,
    JudgeErrors,
    Quiet,
    Result,
    Run,
    point,
    technique,
    unknown,
)
from calibrant.core.digest import canonical
from calibrant.data.cards import CardRow, JudgeCard, write_card
from calibrant.data.graded import as_label
from calibrant.data.rows import Graded, GradedReplies
from calibrant.measure._label_checks import Check, check_labels, overall, repeats
from calibrant.measure.judges._graded import answer_of, check_rows, judge_rows
from calibrant.stats import rate
from calibrant.stats.agreement import agreement, ratings
from calibrant.stats.proportion import proportion_interval


class JudgeCardConfig(Frozen):
    """Settings of the comparison."""

    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of every interval."""
    alpha: float = Field(default=0.001, gt=0, lt=1)
    """Significance level of the test that the judge agrees with people above chance."""


class JudgeCardResult(Result):
    """``sensitivity``, ``specificity`` (overall, by target and family), human agreement, label checks."""

    card: JudgeCard = Field(exclude=True, repr=False)
    """Also the artefact 'card.json'."""
    checks: tuple[Check, ...] = Field(exclude=True, repr=False)
    """Every check of the labels; also the artefact 'integrity.jsonl'."""


@technique(version=2)
def judge_card(
    labels: GradedReplies,
    judge: Judge,
    before: JudgeCard | None = None,
    config: JudgeCardConfig = JudgeCardConfig(),
    run: Run = Quiet(),
) -> JudgeCardResult:
    """Judge every labelled reply, and compare; ``before`` is an older card, for drift.

    Raises:
        InputError: there are no rows, or two share an id.
    """
    check_rows(labels.rows, labels.source)
    verdicts = judge_rows(judge, labels.rows, run)
    answers = [answer_of(verdict) for verdict in verdicts]
    checks = check_labels(labels.rows, answers, config.alpha)
    integrity, why = overall(checks)
    card = JudgeCard(
        judge=judge.identity.digest,
        name=judge.identity.name,
        labels=labels.digest,
        source=labels.source,
        rows=tuple(_rows(labels.rows, answers)),
        integrity=integrity,
        integrity_reason=why,
        human_agreement=human_agreement(labels.rows, config.level),
    )
    write_card(card, run.artifact("card.json"))
    run.artifact("integrity.jsonl").write_bytes(b"".join(canonical(check) + b"\n" for check in checks))
    metrics = error_rates(labels.rows, answers, config.level)
    metrics |= _about_labels(labels.rows, answers, checks, card, config.level)
    if before is not None:
        metrics |= drift(before, card, config.level)
    return JudgeCardResult(
        metrics=metrics, caveats=_caveats(card, before, checks), card=card, checks=tuple(checks)
    )


def error_rates(rows: Sequence[Graded], told: Sequence[bool | None], level: float) -> dict[str, Estimate]:
    """Sensitivity and specificity: of all rows, by target, and by target and family where there are
    several."""
    both = list(zip(rows, told, strict=True))
    parts = {"": both}
    for target in sorted({row.target for row in rows}):
        own = [pair for pair in both if pair[0].target == target]
        parts[f"/{target}"] = own
        families = sorted({row.family for row, _ in own})
        for family in families if len(families) > 1 else ():
            parts[f"/{target}/{family}"] = [pair for pair in own if pair[0].family == family]
    metrics = {}
    for name, part in parts.items():
        metrics[f"sensitivity{name}"] = _right([answer for row, answer in part if row.label], level, "reply")
        missed = [None if answer is None else not answer for row, answer in part if not row.label]
        metrics[f"specificity{name}"] = _right(missed, level, "reply")
    return metrics


def human_agreement(rows: Sequence[Graded], level: float) -> Estimate:
    """Probability that two raters of a reply agree; unreadable labels are left out."""
    triples = [
        (row.id, f"rater {number}", "yes" if label else "no")
        for row in rows
        for number, text in enumerate(row.raters, start=1)
        if (label := as_label(text)) is not None
    ]
    if len({rater for _, rater, _ in triples}) < 2:
        return unknown("the labels do not say what each of two raters answered", n=len(rows), unit="reply")
    return agreement(ratings(triples, ("yes", "no")), level=level)


def drift(before: JudgeCard, after: JudgeCard, level: float) -> dict[str, Estimate]:
    """Change of sensitivity and specificity, ``after`` minus ``before``, on every target that both cards
    know."""
    metrics = {}
    for target in sorted(set(before.targets) & set(after.targets)):
        old, new = before.errors(target=target), after.errors(target=target)
        if old is not None and new is not None:
            metrics[f"sensitivity_change/{target}"] = _change(_se(old), _se(new), level)
            metrics[f"specificity_change/{target}"] = _change(_sp(old), _sp(new), level)
    if not metrics:
        why = f"the older card speaks of {', '.join(before.targets)}, this one of {', '.join(after.targets)}"
        metrics["sensitivity_change"] = metrics["specificity_change"] = unknown(why, n=1, unit="reply")
    return metrics


def _rows(rows: Sequence[Graded], answers: Sequence[bool | None]) -> list[CardRow]:
    both = list(zip(rows, answers, strict=True))
    result = []
    for target, family in sorted({(row.target, row.family) for row in rows}):
        part = [(row.label, answer) for row, answer in both if (row.target, row.family) == (target, family)]
        answered = [(label, answer) for label, answer in part if answer is not None]
        result.append(
            CardRow(
                target=target,
                family=family,
                found=sum(label and answer for label, answer in answered),
                positives=sum(label for label, _ in answered),
                cleared=sum(not label and not answer for label, answer in answered),
                negatives=sum(not label for label, _ in answered),
                undetermined=len(part) - len(answered),
            )
        )
    return result


def _right(outcomes: Sequence[bool | None], level: float, unit: str) -> Estimate:
    if not outcomes:
        return unknown("people found no such reply", n=1, unit=unit)
    return rate(outcomes, level=level, better="higher", unit=unit)


def _about_labels(
    rows: Sequence[Graded],
    answers: Sequence[bool | None],
    checks: Sequence[Check],
    card: JudgeCard,
    level: float,
) -> dict[str, Estimate]:
    failed = sum(check.verdict.answer == "no" for check in checks)
    metrics = {
        "undetermined_rate": rate([t is None for t in answers], level=level, better="lower", unit="reply"),
        "positive_rate": rate([row.label for row in rows], level=level, better="none", unit="reply"),
        "duplicate_share": rate(repeats(rows), level=level, better="lower", unit="reply"),
        "checks_failed": point(failed, unit=f"of {len(checks)} checks", n=len(checks)),
    }
    if card.human_agreement is not None:
        metrics["human_agreement"] = card.human_agreement
    return metrics


def _se(errors: JudgeErrors) -> tuple[int, int]:
    return errors.found, errors.positives


def _sp(errors: JudgeErrors) -> tuple[int, int]:
    return errors.cleared, errors.negatives


def _change(before: tuple[int, int], after: tuple[int, int], level: float) -> Estimate:
    """Difference of two independent shares; Newcombe's square-and-add of exact intervals."""
    n = before[1] + after[1]
    if not before[1] or not after[1]:
        return unknown("one of the cards holds no such reply", n=max(n, 1), unit="reply")
    old, new = before[0] / before[1], after[0] / after[1]
    (old_low, old_high), (new_low, new_high) = (
        proportion_interval(*counts, level=level) for counts in (before, after)
    )
    change = new - old
    return Estimate(
        value=change,
        low=change - math.hypot(new - new_low, old_high - old),
        high=change + math.hypot(new_high - new, old - old_low),
        level=level,
        n=n,
        method="newcombe (clopper-pearson)",
        unit="reply",
        better="none",
        null_value=0.0,
    )


def _caveats(card: JudgeCard, before: JudgeCard | None, checks: Sequence[Check]) -> tuple[str, ...]:
    caveats = []
    if card.integrity != "yes":
        caveats.append(f"the labels are not to be relied on ({card.integrity}): {card.integrity_reason}")
    caveats += [
        f"{check.name} on {check.target or 'all rows'}: {check.verdict.reason}"
        for check in checks
        if check.name.startswith("screen ") and check.verdict.answer == "no"
    ]
    if before is not None and before.judge != card.judge:
        caveats.append(f"the older card is of another judge, '{before.name}': a change may be the judge's")
    return (
        *caveats,
        "a judge's errors are not transportable: they hold for these targets and attacks and for no others",
        "people can be wrong together, and then the judge is held against their common error",
    )
