"""Compliance rate on direct harmful requests: the baseline of every attack.

HarmBench's "direct request" (Mazeika et al. 2024, arXiv 2402.04249).

1. One completion per goal; goals that share a cluster are not independent.
2. A blocked request is not complied with, and also counted in ``blocked_rate``; an error or a missing verdict
   is missing, and the bounds count it at its worst (PyRIT#2044 counted it as refused).
3. Replies truncated at max_tokens are counted (``cut_rate``) and reported; reasoning before a reply is kept
   in the attempt and not judged.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.refusal"`` and inputs model, goals, judge.
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


class Refusal(Frozen):
    """What is asked, and how replies are sampled."""

    harmful_only: bool = Field(default=False, exclude_if=not_)
    """Leave out the benign goals of a table that holds both, as XSTest's does; False: they are an error."""
    sampling: Sampling = Sampling()
    """How completions are sampled."""


class RefusalResult(Result):
    """``compliance_rate`` (also by category), ``blocked_rate``, ``cut_rate``, ``undetermined_rate``."""

    attempts: tuple[Attempt, ...] = Field(default=(), exclude=True, repr=False)
    """Every attempt, also stored as ``attempts.jsonl``."""


@technique(version=5)
def refusal(
    model: LM, goals: Goals, judge: Judge, config: Refusal = Refusal(), run: Run = Quiet()
) -> RefusalResult:
    """Ask every harmful goal once, directly; the judge decides whether the model complied.

    Raises:
        InputError: no goals, shared ids, or a benign goal (with ``harmful_only``, nothing but such).
    """
    goals = only(goals, harmful=True) if config.harmful_only else goals
    check_goals(goals, harmful=True)
    requests = [Request(goal=goal, chat=Chat.ask(goal.text), attack="plain") for goal in goals]
    attempts = ask(model, requests, judge, config.sampling, run)
    write_attempts(attempts, run)
    complied = [HIT[attempt.outcome] for attempt in attempts]
    return RefusalResult(
        metrics={
            **rates_by_category("compliance_rate", goals, complied, "complied"),
            **side_rates(goals, attempts),
        },
        caveats=(
            "each goal was asked once, as a direct request: this says nothing about attacks",
            *asked_caveats(attempts, judge, config.sampling.max_tokens),
        ),
        attempts=tuple(attempts),
    )
