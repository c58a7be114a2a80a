"""Human adjudication: people label every hit and a random sample of the rest (two-phase sampling).

Double sampling (Neyman 1938; Cochran 1977, ch. 12), see ``stats.two_phase``:

1. The queue (artefact 'queue.jsonl') holds every attempt that the judge called a success, every one that it
   could not decide, and a random sample of the failures; in random order, without verdict, attack or
   outcome. Label it with ``calibrant annotate queue.jsonl --votes labels.jsonl --rater NAME``.
2. Run again with ``labels``: the same attempts, seed and settings give the same queue. The rate is then
   people's, the judge only chose what they labelled; its sensitivity and specificity become a card (artefact
   'card.json').
3. A blocked request needs no label: it is a no. An attempt that ended in an error stays open at its worst.

    calibrant show measure.adjudication
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from calibrant.core import (
    Attempt,
    Estimate,
    Frozen,
    InputError,
    Quiet,
    Result,
    Run,
    digest,
    point,
    technique,
    unknown,
)
from calibrant.core.attempt import HIT
from calibrant.data.cards import CardRow, JudgeCard, write_card
from calibrant.data.human_labels import HumanLabels, Queued, consensus, queue_line
from calibrant.data.rows import Attempts, Goals
from calibrant.evals.judging import whole
from calibrant.measure._two_phase import Counts, equivalent, errors
from calibrant.measure.judges._graded import answer_of
from calibrant.stats import rate
from calibrant.stats.agreement import agreement, ratings
from calibrant.stats.two_phase import two_phase


class Adjudication(Frozen):
    """Settings of the queue."""

    sample: int = Field(default=100, ge=0)
    """Size of the random sample of failures; all where there are fewer. With 0 false negatives stay
    unknown."""
    judge: str = ""
    """Beginning of the judge's digest; "" where the attempts have one judge."""
    target: str = ""
    """Name of the target for the card, such as the model's family."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of every interval."""


class AdjudicationResult(Result):
    """``adjudicated_rate``, ``judge_rate``; the judge's ``sensitivity`` and ``specificity``."""

    queue: tuple[Queued, ...] = Field(exclude=True, repr=False)
    """The attempts to label; also the artefact 'queue.jsonl'."""
    card: JudgeCard = Field(exclude=True, repr=False)
    """The judge's card, without counts before labelling; also the artefact 'card.json'."""


class Case(NamedTuple):
    """One attempt in both phases."""

    attempt: Attempt
    judged: bool | None
    """The judge's verdict."""
    picked: bool
    """Whether it is in the queue."""
    human: bool | None
    """The human label."""


@technique(version=3)
def adjudication(
    attempts: Attempts,
    labels: HumanLabels | None = None,
    goals: Goals | None = None,
    config: Adjudication = Adjudication(),
    run: Run = Quiet(),
) -> AdjudicationResult:
    """Sample the queue; given labels, estimate the rate and the judge's errors from it.

    ``labels`` are human labels; an attempt's own ``human`` counts where they are missing. ``goals`` gives the
    queue the text of its goals.

    Raises:
        InputError: no attempts, attempts of several judges with none named, labels of another queue.
    """
    if not attempts.rows:
        raise InputError(
            f"{attempts.source or 'the input'}: there are no attempts", hint="run an attack first"
        )
    judge = _judge(attempts.rows, config.judge)
    judged = [_judged(attempt, judge) for attempt in attempts]
    picked = _picks(attempts.rows, judged, config.sample, run.seed)
    human = _labels(attempts, labels, picked)
    cases = [
        Case(a, j, p, human.get(a.id) if p else None)
        for a, j, p in zip(attempts, judged, picked, strict=True)
    ]
    queue = _queue(cases, goals, run.seed)
    run.artifact("queue.jsonl").write_bytes(b"".join(queue_line(queued) for queued in queue))
    card = _card(cases, judge, attempts, config)
    write_card(card, run.artifact("card.json"))
    metrics = _metrics(cases, config.level)
    metrics["queued"] = point(len(queue), unit="attempt", n=len(cases))
    metrics["human_agreement"] = _agreement(labels, config.level, len(queue))
    return AdjudicationResult(
        metrics=metrics, caveats=_caveats(cases, labels, config), queue=queue, card=card
    )


def _judge(attempts: Sequence[Attempt], prefix: str) -> str:
    """Digest of the chosen judge."""
    known = sorted({judge for attempt in attempts for judge in attempt.verdicts})
    matching = [judge for judge in known if judge.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    if not known:
        return ""  # attempts of other tools may bring an outcome and no verdict
    raise InputError(
        f"{len(matching) or 'none'} of the judges {', '.join(j[:12] for j in known)} is meant by '{prefix}'",
        hint="set 'judge' to the beginning of one digest",
    )


def _judged(attempt: Attempt, judge: str) -> bool | None:
    """The judge's verdict; the stored outcome where there is none."""
    verdict = attempt.verdicts.get(judge)
    if verdict is None or attempt.completion.stop in ("blocked", "error"):
        return HIT[attempt.outcome]
    return answer_of(verdict)


def _picks(attempts: Sequence[Attempt], judged: Sequence[bool | None], sample: int, seed: int) -> list[bool]:
    """Hits and undecided ones, and a random ``sample`` of the failures, which depends on ids, not on
    order."""
    failures = sorted(
        (digest(["sample", seed, a.id]), place)
        for place, (a, answer) in enumerate(zip(attempts, judged, strict=True))
        if answer is False
    )
    drawn = {place for _, place in failures[:sample]}
    return [answer is not False or place in drawn for place, answer in enumerate(judged)]


def _labels(attempts: Attempts, labels: HumanLabels | None, picked: Sequence[bool]) -> dict[str, bool | None]:
    """Human labels by attempt; blocked attempts are a no.

    Raises:
        InputError: most labels are on attempts that are not in the queue.
    """
    human = {a.id: False if a.completion.stop == "blocked" else a.human for a in attempts}
    if labels is None:
        return human
    answers = consensus(labels)
    queue = {a.id for a, p in zip(attempts, picked, strict=True) if p}
    strays = [name for name in answers if name not in queue]
    if strays:
        raise InputError(
            f"{len(strays)} of {len(answers)} labels are on replies that this queue does not hold, "
            f"the first is '{strays[0][:12]}'",
            hint="give the attempts, seed and settings that the queue was sampled with",
        )
    return human | answers


def _queue(cases: Sequence[Case], goals: Goals | None, seed: int) -> tuple[Queued, ...]:
    """Blind and in random order; missing replies cannot be labelled."""
    words = {goal.id: goal.text for goal in goals} if goals is not None else {}
    attempts = [
        c.attempt for c in cases if c.picked and c.attempt.completion.stop not in ("blocked", "error")
    ]
    attempts.sort(key=lambda attempt: digest(["order", seed, attempt.id]))
    return tuple(_queued(attempt, words) for attempt in attempts)


def _queued(attempt: Attempt, words: Mapping[str, str]) -> Queued:
    chat, reply = whole(attempt.chat, attempt.completion)  # what the attack began, people see, too
    return Queued(id=attempt.id, goal=words.get(attempt.goal_id, ""), chat=chat, reply=reply.text)


def _metrics(cases: Sequence[Case], level: float) -> dict[str, Estimate]:
    goals = [case.attempt.goal_id for case in cases]
    adjudicated = two_phase(
        [case.judged for case in cases],
        [case.human for case in cases],
        [case.picked for case in cases],
        clusters=goals,
        level=level,
    )
    by_judge = rate(
        [case.judged for case in cases], clusters=goals, level=level, better="lower", unit="attempt"
    )
    rates = errors(_counts(cases), level)
    open_ones = [case.human is None for case in cases if case.picked]
    return {
        "adjudicated_rate": adjudicated,
        "judge_rate": by_judge,
        "sensitivity": rates.sensitivity,
        "specificity": rates.specificity,
        "unlabelled_share": rate(open_ones, level=level, better="lower", unit="attempt")
        if open_ones
        else unknown("the queue is empty", n=len(cases), unit="attempt"),
    }


def _counts(cases: Sequence[Case]) -> Counts:
    """Human labels of the judge's yes and no; its unknowns do not enter its errors."""
    hits = [case.human for case in cases if case.judged is True]
    rest = [case for case in cases if case.judged is False]
    labels = [case.human for case in rest if case.picked]
    return Counts(
        hits=len(hits),
        hits_yes=sum(one is True for one in hits),
        hits_no=sum(one is False for one in hits),
        rest=len(rest),
        rest_yes=sum(one is True for one in labels),
        rest_no=sum(one is False for one in labels),
        rest_open=sum(one is None for one in labels),
    )


def _card(cases: Sequence[Case], judge: str, attempts: Attempts, config: Adjudication) -> JudgeCard:
    rows = []
    for family in sorted({case.attempt.family for case in cases}):
        part = [case for case in cases if case.attempt.family == family]
        counts = _counts(part)
        found, positives, cleared, negatives = equivalent(errors(counts, config.level), counts)
        rows.append(
            CardRow(
                target=config.target,
                family=family,
                found=found,
                positives=positives,
                cleared=cleared,
                negatives=negatives,
                undetermined=sum(case.judged is None for case in part),
            )
        )
    open_ones = sum(case.human is None for case in cases if case.picked)
    whole = any(row.positives for row in rows) and any(row.negatives for row in rows)
    reason = (
        f"{open_ones} of the picked attempts have no label"
        if open_ones
        else "every picked attempt is labelled"
    )
    return JudgeCard(
        judge=judge,
        name="the judge of these attempts",
        labels=digest([[case.attempt.id, case.human] for case in cases if case.picked]),
        source=attempts.source,
        rows=tuple(rows),
        integrity="yes" if whole else "unknown",
        integrity_reason=reason if whole else f"people's labels do not yet show both errors; {reason}",
    )


def _agreement(labels: HumanLabels | None, level: float, n: int) -> Estimate:
    triples = [(x.id, x.rater, "yes" if x.human else "no") for x in labels or () if x.human is not None]
    if len({rater for _, rater, _ in triples}) < 2:
        return unknown("fewer than two people have labelled", n=max(n, 1), unit="reply")
    return agreement(ratings(triples, ("yes", "no")), level=level)


def _caveats(cases: Sequence[Case], labels: HumanLabels | None, config: Adjudication) -> tuple[str, ...]:
    caveats = []
    if labels is not None and labels.simulated:
        caveats.append("the labels are simulated: they say nothing about people")
    helped = sum(label.condition == "assisted" for label in labels or ())
    if helped:
        caveats.append(f"{helped} labels were given with advice, and may repeat its errors")
    if not any(case.human is not None for case in cases if case.judged is not True):
        caveats.append("there are no labels of the judge's negatives, which may hide anything")
    if not config.target:
        caveats.append("the card names no target: set 'target' before you use it elsewhere")
    return (
        *caveats,
        "people see what the judge saw, and can share errors on hard cases",
        "the card's counts are those whose exact intervals are at least as wide as the two-phase ones",
    )
