"""Replay earlier successes word for word, to confirm them or as a regression suite.

Source: the regression suites of software testing; garak's hit log and promptfoo's retries are of this kind.

1. The chats are sent as recorded; nothing is re-optimised. That a hit fails now shows that these prompts no
   longer work, not that their attack does not.
2. ``attack_success_rate`` is over goals, ``reproduction_rate`` over recorded attempts (goals as clusters).
3. Attempts of other tools and people can be replayed, too, if their goal ids are known.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.replay"``; inputs target, attempts, goals, judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from calibrant.attack.engine.metrics import reach_rate
from calibrant.core import (
    LM,
    Attempt,
    Estimate,
    Frozen,
    Goal,
    InputError,
    Judge,
    Quiet,
    Result,
    Run,
    Sampling,
    point,
    technique,
)
from calibrant.core.attempt import HIT, reached
from calibrant.data.rows import Attempts, Goals
from calibrant.evals.attempts import Request, ask, write_attempts
from calibrant.stats import rate_so_far


class Replay(Frozen):
    """Which attempts are replayed, and the target's sampling."""

    only: Literal["hits", "all"] = "hits"
    """The recorded successes (by human label where there is one, else by the judge), or every attempt."""
    sampling: Sampling = Sampling()
    """How the target's completions are sampled."""


class ReplayResult(Result):
    """``reproduction_rate``, also by family; ``attack_success_rate`` over the replayed goals;
    ``goals_reached``, a count."""

    attempts: tuple[Attempt, ...] = Field(default=(), exclude=True, repr=False)
    """Every new attempt, also stored as ``attempts.jsonl``."""


@technique(version=3)
def replay(
    target: LM, attempts: Attempts, goals: Goals, judge: Judge, config: Replay = Replay(), run: Run = Quiet()
) -> ReplayResult:
    """Ask the recorded chats again.

    Raises:
        InputError: an attempt's goal is not among the goals.
    """
    by_id = {goal.id: goal for goal in goals}
    past = [a for a in attempts if config.only == "all" or hit(a)]
    lost = [a.goal_id for a in past if a.goal_id not in by_id]
    if lost:
        raise InputError(
            f"{len(lost)} of {len(past)} attempts are after goals that were not given, such as '{lost[0]}'",
            hint="give the goals that the attempts were made for",
        )
    caveats = [
        "the words are those of the record: an attacker who adapts to this target may still get through"
    ]
    if not past:
        return ReplayResult(
            metrics={"reproduction_rate": _reproduced([], []), "goals_reached": point(0, unit="goals")},
            caveats=(*caveats, "there was no recorded success to replay"),
        )
    requests = [
        Request(
            goal=by_id[a.goal_id], chat=a.chat, attack=a.attack, config={"replayed": a.id}, access=a.access
        )
        for a in past
    ]
    again = [
        new.model_copy(update={"family": old.family, "parent": old.id})
        for new, old in zip(ask(target, requests, judge, config.sampling, run), past, strict=True)
    ]
    write_attempts(again, run)
    if judge.calibration != "exact":
        caveats.append(f"judged by '{judge.identity.name}', which is {judge.calibration}")
    return ReplayResult(metrics=_metrics(again, by_id), caveats=tuple(caveats), attempts=tuple(again))


def hit(attempt: Attempt) -> bool:
    """Whether a recorded attempt is a success: by the human label, else by the judge."""
    return attempt.outcome == "success" if attempt.human is None else attempt.human


def _metrics(again: list[Attempt], by_id: dict[str, Goal]) -> dict[str, Estimate]:
    cluster = {name: goal.cluster or f"goal {name}" for name, goal in by_id.items()}

    def over(part: list[Attempt]) -> Estimate:
        groups = [cluster[a.goal_id] for a in part]
        return _reproduced([HIT[a.outcome] for a in part], groups)

    metrics = {"reproduction_rate": over(again)}
    for family in dict.fromkeys(a.family for a in again if a.family):
        metrics[f"reproduction_rate/{family}"] = over([a for a in again if a.family == family])
    by_goal: dict[str, list[Attempt]] = {}
    for attempt in again:
        by_goal.setdefault(attempt.goal_id, []).append(attempt)
    hits = [reached(of) for of in by_goal.values()]
    metrics["attack_success_rate"] = reach_rate(hits, [by_id[goal].cluster for goal in by_goal])
    metrics["goals_reached"] = point(hits.count(True), unit="goals", n=len(hits))
    return metrics


def _reproduced(hits: Sequence[bool | None], groups: Sequence[str]) -> Estimate:
    return rate_so_far(hits, clusters=groups, done="reproduced", better="lower", unit="attempt")
