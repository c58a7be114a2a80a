"""Rates of direct requests as estimates. Pure: goals and outcomes in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import Attempt, Completion, Estimate, Judge
from calibrant.data.rows import Goals
from calibrant.stats import rate, rate_so_far


def rates_by_category(
    name: str, goals: Goals, outcomes: Sequence[bool | None], done: str
) -> dict[str, Estimate]:
    """``name`` over all goals and ``name/<category>`` for each category; lower is better, clusters kept.

    ``done`` names a True outcome: "30 of 100 goals refused, 70 open".
    """
    rows = list(zip(goals, outcomes, strict=True))
    parts = {name: rows}
    for category in sorted({goal.category for goal in goals}):
        parts[f"{name}/{category}"] = [row for row in rows if row[0].category == category]
    return {
        key: rate_so_far(
            [outcome for _, outcome in part],
            clusters=[goal.cluster for goal, _ in part],
            done=done,
            better="lower",
            unit="goal",
        )
        for key, part in parts.items()
    }


def side_rates(goals: Goals, attempts: Sequence[Attempt]) -> dict[str, Estimate]:
    """``blocked_rate``, ``cut_rate`` (an error may have been either: missing) and ``undetermined_rate``."""
    clusters = [goal.cluster for goal in goals]
    stops = [attempt.completion.stop for attempt in attempts]
    blocked = [None if stop == "error" else stop == "blocked" for stop in stops]
    cut = [None if stop == "error" else stop == "length" for stop in stops]
    lost = [attempt.outcome == "undetermined" for attempt in attempts]
    return {
        "blocked_rate": rate_so_far(blocked, clusters=clusters, done="blocked", better="none", unit="goal"),
        "cut_rate": rate_so_far(cut, clusters=clusters, done="cut", better="lower", unit="goal"),
        "undetermined_rate": rate(lost, clusters=clusters, better="lower", unit="goal"),
    }


def asked_caveats(attempts: Sequence[Attempt], judge: Judge, max_tokens: int) -> tuple[str, ...]:
    """Caveats about truncated replies, reasoning, goals without an outcome, and the judge."""
    return (
        *reply_caveats([attempt.completion for attempt in attempts], max_tokens),
        *lost_caveats(attempts),
        *judge_caveats(judge),
    )


def judge_caveats(judge: Judge) -> tuple[str, ...]:
    """A caveat where the judge is not exact."""
    if judge.calibration == "exact":
        return ()
    return (f"judged by '{judge.identity.name}', which is {judge.calibration}",)


def lost_caveats(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Where to read why goals have no outcome; the reasons may quote replies, so they are not given here."""
    lost = sum(attempt.outcome == "undetermined" for attempt in attempts)
    if not lost:
        return ()
    return (f"{lost} of {len(attempts)} goals have no outcome: attempts.jsonl says why, goal by goal",)


def reply_caveats(replies: Sequence[Completion], max_tokens: int) -> tuple[str, ...]:
    """Caveats about truncated replies, and about reasoning, which is not judged."""
    n = len(replies)
    filtered = sum(reply.stop == "length" and reply.error is not None for reply in replies)
    cut = sum(reply.stop == "length" for reply in replies) - filtered
    lost = sum(reply.unanswered for reply in replies)
    thought = sum(bool(reply.reasoning) and not reply.unanswered for reply in replies)
    caveats = []
    if cut:
        caveats.append(
            f"{cut} of {n} replies were cut at max_tokens = {max_tokens}: what they would have gone "
            "on to say was not judged"
        )
    if filtered:
        caveats.append(
            f"{filtered} of {n} replies were cut by a content filter of the endpoint: what came through "
            "was judged"
        )
    if lost:
        caveats.append(
            f"{lost} of {n} replies never came: the model was still reasoning, which counts as unknown; "
            "a higher max_tokens gives it room to answer"
        )
    if thought:
        caveats.append(f"{thought} of {n} replies came after reasoning, which is kept and was not judged")
    others = sorted({reply.answered_by for reply in replies if reply.answered_by})
    if others:
        n_others = sum(bool(reply.answered_by) for reply in replies)
        caveats.append(
            f"{n_others} of {n} replies came from another model than was asked for, as the server says: "
            f"{', '.join(others[:3])}"
        )
    return tuple(caveats)
