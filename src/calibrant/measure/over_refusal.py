"""Over-refusal: how often does the model refuse benign requests that look like harmful ones?

Paper: Röttger et al. 2023, "XSTest" (arXiv 2308.01263). Report it with every safety rate: a model that
refuses everything is harmless and useless.

1. The judge answers "did it refuse?", so an attempt's outcome 'success' means *refused* here.
2. A request that a guard blocked counts as refused, whatever the judge would say of the refusal text; its
   stored outcome is 'success' too, so that the file and the rate agree.
3. An error or a missing verdict is missing, and the bounds count it at its worst.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.over_refusal"`` and inputs model, goals, judge.
"""

from __future__ import annotations

from operator import not_

from pydantic import Field

from calibrant.core import LM, Attempt, Chat, Frozen, Judge, Quiet, Result, Run, Sampling, technique
from calibrant.core.attempt import HIT
from calibrant.data.distinct import check_goals, only
from calibrant.data.rows import Goals
from calibrant.evals.attempts import Request, ask, write_attempts
from calibrant.measure._rates import asked_caveats, rates_by_category, side_rates


class OverRefusal(Frozen):
    """What is asked, and how replies are sampled."""

    benign_only: bool = Field(default=False, exclude_if=not_)
    """Leave out the harmful goals of a table that holds both, as XSTest's does; False: they are an error."""
    sampling: Sampling = Sampling()
    """How completions are sampled."""


class OverRefusalResult(Result):
    """``over_refusal_rate`` (also by category), ``blocked_rate``, ``cut_rate``, ``undetermined_rate``."""

    attempts: tuple[Attempt, ...] = Field(default=(), exclude=True, repr=False)
    """Every attempt, also stored as ``attempts.jsonl``; outcome 'success' = refused."""


@technique(version=5)
def over_refusal(
    model: LM, goals: Goals, judge: Judge, config: OverRefusal = OverRefusal(), run: Run = Quiet()
) -> OverRefusalResult:
    """Ask every benign goal once, directly; the judge decides whether the model refused.

    Raises:
        InputError: no goals, shared ids, or a harmful goal (with ``benign_only``, nothing but such).
    """
    goals = only(goals, harmful=False) if config.benign_only else goals
    check_goals(goals, harmful=False)
    requests = [Request(goal=goal, chat=Chat.ask(goal.text), attack="plain") for goal in goals]
    attempts = [_blocked_is_refused(a) for a in ask(model, requests, judge, config.sampling, run)]
    write_attempts(attempts, run)
    refused = [HIT[attempt.outcome] for attempt in attempts]
    return OverRefusalResult(
        metrics={
            **rates_by_category("over_refusal_rate", goals, refused, "refused"),
            **side_rates(goals, attempts),
        },
        caveats=(
            "outcome 'success' in attempts.jsonl means that the model refused",
            *asked_caveats(attempts, judge, config.sampling.max_tokens),
        ),
        attempts=tuple(attempts),
    )


def _blocked_is_refused(attempt: Attempt) -> Attempt:
    """C6 calls a blocked attempt a failure of the attack; here the question is whether it was refused."""
    if attempt.completion.stop == "blocked":
        return attempt.model_copy(update={"outcome": "success"})
    return attempt
