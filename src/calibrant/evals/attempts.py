"""The loop of measurements and of replay: query a target, judge the replies, store every attempt.

Attacks run on ``calibrant.attack.engine``.

``ask`` works in chunks. Each is charged before it is sent, and on disk before the next one starts, so a
killed job resumes and pays for nothing twice. Identical chats always share a chunk: sampling is seeded by
hash(seed, chat, occurrence), and occurrences are counted within one call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from calibrant.core.attempt import Attempt, Cost, attempt_id, outcome_of
from calibrant.core.behaviours import Goal, Judge, same_number
from calibrant.core.config import Frozen
from calibrant.core.digest import canonical, digest, plain
from calibrant.core.errors import InputError
from calibrant.core.lm import LM, Chat, Completion, Sampling
from calibrant.core.run import Run
from calibrant.core.verdict import LayerVerdict
from calibrant.evals.judging import tokens, verdicts
from calibrant.ledger.lines import Lines, replay

CHUNK = 256
"""Requests between two checks of budget, progress and disk."""


class Request(Frozen):
    """One request: a goal, and the chat in which it is sent."""

    goal: Goal
    """The goal of the attempt."""
    chat: Chat
    """The chat that is sent."""
    attack: str
    """Technique and variant: 'attack.encode/rot13', or 'plain'."""
    config: dict[str, Any] = Field(default_factory=dict)
    """What distinguishes this attempt from others on the same goal: the attack's settings, the try's
    number."""
    access: Literal["black box", "log-probs", "weights"] = "black box"
    """What the attacker could see."""


def ask(target: LM, requests: Sequence[Request], judge: Judge, sampling: Sampling, run: Run) -> list[Attempt]:
    """Send every request to ``target`` and judge the replies. One attempt per request, in order.

    Samples, and the ids, use ``sampling.seed + run.seed``, so that runs of several seeds differ.

    An attempt that ``run.work`` already holds without an error (same id, chat and
    judge) is taken from there and charged to the budget as it was the first time. ``cost.seconds`` is an
    equal share of the chunk's time at the target. A reply without ids or log-probs counts as
    ``sampling.max_tokens`` tokens, the maximum.

    Raises:
        InputError: two requests have the same attempt id.
        BudgetError: the next chunk could exceed a limit; the attempts so far are kept in ``run.work``.
        CapabilityError: target or judge returned the wrong number of answers.
        InputError: every single request failed: nothing was measured.
        InputError: another process writes to the attempts in ``run.work``, or the disk refuses.
        EvidenceError: they are damaged (a cut last line is not: it is asked again).
    """
    whom, by = target.identity, judge.identity.digest
    sampling = sampling.model_copy(update={"seed": sampling.seed + run.seed})
    drawn = plain(sampling.model_copy(update={"seed": 0}))  # the seed has a place of its own
    ids = [
        attempt_id(r.goal.id, r.attack, {**r.config, "sampling": drawn}, whom.digest, sampling.seed)
        for r in requests
    ]
    _refuse_repeats(ids)
    with Lines(run.work / "attempts.jsonl") as log:
        done = _resume(log, dict(zip(ids, requests, strict=True)), by)
        run.spend(
            queries=sum(a.cost.queries for a in done.values()),
            tokens=sum(a.cost.target_tokens for a in done.values()),
        )
        run.progress(len(done), len(requests), f"asking {whom.name}")
        for chunk in _chunks(requests, ids, done):
            most = len(chunk) * sampling.max_tokens
            run.spend(queries=len(chunk), tokens=most)
            fresh = _attempts(target, {ids[i]: requests[i] for i in chunk}, judge, sampling)
            log.add(map(canonical, fresh))
            done |= {a.id: a for a in fresh}
            run.spend(tokens=sum(a.cost.target_tokens for a in fresh) - most)  # what was not generated
            run.progress(len(done), len(requests), f"asking {whom.name}")
    _refuse_silence([done[i].completion for i in ids])
    return [done[i] for i in ids]


def write_attempts(attempts: Sequence[Attempt], run: Run) -> Path:
    """Store ``attempts.jsonl`` without times, so that equal results have equal bytes, and ``timing.jsonl``.

    A line of the latter is ``{"id": ..., "seconds": ..., "ms": {layer: milliseconds}}``. Returns the path
    of the former.

    Raises:
        InputError: two attempts have the same id.
    """
    _refuse_repeats([a.id for a in attempts])
    path = run.artifact("attempts.jsonl")
    path.write_bytes(b"".join(canonical(_timeless(a)) + b"\n" for a in attempts))
    times = [
        {"id": a.id, "seconds": a.cost.seconds, "ms": {layer.layer: layer.ms for layer in a.layers}}
        for a in attempts
    ]
    run.artifact("timing.jsonl").write_bytes(b"".join(canonical(row) + b"\n" for row in times))
    return path


def read_attempts(path: Path) -> list[Attempt]:
    """Read what ``write_attempts`` (or a chunk of ``ask``) wrote.

    Raises:
        InputError: there is no such file.
        EvidenceError: a line is not an attempt; says which.
    """
    if not path.is_file():
        raise InputError(f"there are no attempts at {path}", hint="run the attack or measurement first")
    return list(replay(path, Attempt.model_validate_json, "an attempt"))


def _refuse_repeats(ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for place, one in enumerate(ids):
        if one in first:
            raise InputError(
                f"attempts {first[one] + 1} and {place + 1} have the same id {one[:12]}",
                hint="distinguish them in Request.config, for example {'try': 2}",
            )
        first[one] = place


def _refuse_silence(replies: Sequence[Completion]) -> None:
    """Where every reply is an error there is no result to keep, and a rerun must ask again."""
    if replies and all(reply.stop == "error" for reply in replies):
        raise InputError(
            f"none of {len(replies)} requests got a reply; the first: {replies[0].error}",
            hint="fix the cause and run the same command again",
        )


def _resume(log: Lines, wanted: dict[str, Request], by: str) -> dict[str, Attempt]:
    """The attempts that ``log`` already holds, by id."""
    return {
        a.id: a
        for a in replay(log, Attempt.model_validate_json, "an attempt")
        if a.id in wanted
        and a.chat == wanted[a.id].chat
        and by in a.verdicts
        and a.completion.stop != "error"  # what failed is asked again
    }


def _chunks(requests: Sequence[Request], ids: Sequence[str], done: dict[str, Attempt]) -> Iterator[list[int]]:
    """Places still to ask, about ``CHUNK`` at a time, identical chats together."""
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(digest(request.chat), []).append(place)
    chunk: list[int] = []
    # A group with a hole is asked again as a whole: its later occurrences would else draw as earlier ones.
    for group in [g for g in groups.values() if any(ids[i] not in done for i in g)]:
        chunk += group
        if len(chunk) >= CHUNK:
            yield sorted(chunk)
            chunk = []
    if chunk:
        yield sorted(chunk)


def _attempts(target: LM, asked: dict[str, Request], judge: Judge, sampling: Sampling) -> list[Attempt]:
    """Ask, judge and write down one chunk, given by attempt id."""
    started = time.perf_counter()
    completions = target.generate([r.chat for r in asked.values()], sampling)
    seconds = (time.perf_counter() - started) / len(asked)
    same_number(f"model '{target.identity.name}'", len(completions), len(asked))
    goals, chats = [r.goal for r in asked.values()], [r.chat for r in asked.values()]
    by = judge.identity.digest
    return [
        Attempt(
            id=one,
            goal_id=request.goal.id,
            category=request.goal.category,
            attack=request.attack,
            access=request.access,
            chat=request.chat,
            completion=completion,
            layers=completion.layers,
            verdicts={by: verdict},
            outcome=outcome_of(completion, verdict),
            degraded=any(layer.verdict.answer == "unknown" for layer in completion.layers),
            cost=Cost(queries=1, target_tokens=tokens(completion, sampling.max_tokens), seconds=seconds),
        )
        for (one, request), completion, verdict in zip(
            asked.items(), completions, verdicts(judge, goals, chats, completions), strict=True
        )
    ]


def _timeless(attempt: Attempt) -> Attempt:
    def still(layers: tuple[LayerVerdict, ...]) -> tuple[LayerVerdict, ...]:
        return tuple(layer.model_copy(update={"ms": None}) for layer in layers)

    return attempt.model_copy(
        update={
            "layers": still(attempt.layers),
            "completion": attempt.completion.model_copy(update={"layers": still(attempt.completion.layers)}),
            "cost": attempt.cost.model_copy(update={"seconds": None}),
        }
    )
