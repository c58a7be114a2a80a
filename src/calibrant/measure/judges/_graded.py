"""Judge labelled replies, in chunks that survive a kill."""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import Completion, Frozen, Goal, InputError, Judge, Run, Verdict
from calibrant.core.digest import canonical
from calibrant.data.rows import Graded
from calibrant.evals.judging import verdicts
from calibrant.ledger.lines import Lines, replay

CHUNK = 64
"""Replies between two looks at budget, progress and disk."""
_FIRST = 4  # a first chunk that shows what an answer costs


class _Told(Frozen):
    """A line of the file that a killed job goes on from."""

    id: str
    """Row."""
    verdict: Verdict
    """What the judge said of it."""


def judge_rows(judge: Judge, rows: Sequence[Graded], run: Run) -> list[Verdict]:
    """One verdict a row, in order. Verdicts in ``run.work`` are reused and charged again.

    The cost of an answer is known only afterwards, so each chunk first reserves the maximum so far.

    Raises:
        BudgetError: the next chunk could exceed the limit on tokens; the verdicts so far are kept.
        CapabilityError: the judge gave another number of answers than it was asked for.
        EvidenceError: the file in ``run.work`` is damaged.
    """
    with Lines(run.work / "verdicts.jsonl") as log:
        stored = {line.id: line.verdict for line in replay(log, _Told.model_validate_json, "a verdict")}
        done = {row.id: stored[row.id] for row in rows if row.id in stored}
        run.spend(tokens=sum(verdict.tokens for verdict in done.values()))
        waiting = [row for row in rows if row.id not in done]
        while waiting:
            size = CHUNK if done else _FIRST
            chunk, waiting = waiting[:size], waiting[size:]
            most = len(chunk) * max((verdict.tokens for verdict in done.values()), default=0)
            run.spend(tokens=most)
            fresh = dict(zip([row.id for row in chunk], _ask(judge, chunk), strict=True))
            log.add(canonical(_Told(id=name, verdict=verdict)) for name, verdict in fresh.items())
            done |= fresh
            run.spend(tokens=sum(verdict.tokens for verdict in fresh.values()) - most)
            run.progress(len(done), len(rows), f"judging with {judge.identity.name}")
    return [done[row.id] for row in rows]


def answer_of(verdict: Verdict) -> bool | None:
    """A verdict as a data point; None = missing."""
    return {"yes": True, "no": False, "unknown": None}[verdict.answer]


def check_rows(rows: Sequence[Graded], source: str) -> None:
    """Refuse unusable labels.

    Raises:
        InputError: no rows, or two with one id.
    """
    if not rows:
        raise InputError(f"{source or 'the input'}: there are no labelled replies", hint="give at least one")
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{source}: two rows share the id '{twice}'", hint="give each row an id of its own")


def _ask(judge: Judge, rows: Sequence[Graded]) -> list[Verdict]:
    goals = [Goal(id=row.id, text=row.prompt.last_user or row.id) for row in rows]
    replies = [Completion.read(row.completion) for row in rows]
    return verdicts(judge, goals, [row.prompt for row in rows], replies)
