"""Campaign: goals x attacks x repetitions against one target, under one budget, with an interval for every
ASR.

Source: HarmBench (Mazeika et al. 2024, arXiv 2402.04249) for attacks on common goals with one judge. Where
this departs from it and from scanners:

1. Every attempt has three outcomes; an undetermined one, or one that a cap cut off, is missing, not a
   failure.
2. One budget of queries, tokens by model, FLOPs, seconds and money with hard caps; ``dry_run`` reports upper
   limits and sends nothing.
3. A killed campaign resumes and sends nothing twice.
4. Rates come by attack, by hazard, and by hazard x technique family; with a calibrated judge the rate over
   attempts is also corrected for the judge's sensitivity and specificity. ``curves.json`` holds ASR against
   budget.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.campaign"`` and inputs target, goals, judge;
``attacker`` for attacks with an attacker model, ``surrogate`` for those that need weights.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, field_validator

from calibrant.attack._registry import ATTACKS
from calibrant.attack.engine.attacker_prompts import WRITING
from calibrant.attack.engine.budget import Caps, Prices
from calibrant.attack.engine.curves import drawn, medians, success_curves
from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.metrics import answer_rates, check_goals, findings, spent_metrics
from calibrant.attack.engine.run import AttackResult, Planned, caveats, check_participants, run_attacks
from calibrant.core import (
    LM,
    Estimate,
    Frozen,
    Judge,
    OpenLM,
    Quiet,
    Run,
    Sampling,
    point,
    resolve,
    technique,
)
from calibrant.core.digest import plain
from calibrant.core.errors import nearest
from calibrant.data.rows import Goals


class Chosen(Frozen):
    """One attack of a campaign."""

    use: str
    """Name of its technique: 'attack.pair'."""
    name: str = ""
    """Name of its attempts; needed where one technique is used twice."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings that differ from the attack's defaults; its 'sampling' is the campaign's."""
    repetitions: int = Field(default=1, ge=1)
    """Repetitions per goal, with other seeds."""

    @field_validator("use")
    @classmethod
    def _known_attack(cls, use: str) -> str:
        if use not in ATTACKS:
            raise ValueError(f"no attack '{use}'{nearest(use, ATTACKS)}; known: {', '.join(ATTACKS)}")
        return use

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if "/" in name:
            raise ValueError(f"an attack cannot be named '{name}': '/' parts it from its variants")
        return name


class Campaign(Frozen):
    """Attacks, the target's sampling, and the budget."""

    attacks: tuple[Chosen, ...] = Field(
        default=(Chosen(use="attack.persona"), Chosen(use="attack.encode")), min_length=1
    )
    """The attacks, each on every goal."""
    sampling: Sampling = Sampling()
    """How the target's replies are sampled."""
    caps: Caps = Caps()
    """Budget limits; a cap ends the campaign and leaves goals open."""
    prices: Prices = Prices()
    """What queries and tokens cost."""
    batch: int = Field(default=256, ge=1)
    """Most concurrent queries to the target, and concurrent episodes."""
    benign: bool = False
    """The goals are benign, and the judge's 'yes' is an answer: ``answer_rate`` measures over-refusal under
    the same disguises."""
    dry_run: bool = False
    """Send nothing; report the most queries and cost that the campaign can have."""


@technique(version=4)
def campaign(
    target: LM,
    goals: Goals,
    judge: Judge,
    attacker: LM | None = None,
    surrogate: OpenLM | None = None,
    config: Campaign = Campaign(),
    run: Run = Quiet(),
) -> AttackResult:
    """Run every attack on every goal.

    Raises:
        InputError: no goals, shared ids or texts, a benign goal, a category named like an attack, or a target
            that answers nothing but errors.
        ConfigError: two attacks share a name, or the settings of one are wrong.
        CapabilityError: an attack needs an attacker model or weights that were not given.
    """
    plans = [planned(chosen) for chosen in config.attacks]
    names = [plan.label.removeprefix("attack.") for plan in plans]
    check_goals(goals, [*names, "all"], harmful=not config.benign)
    participants = Participants(target, judge, config.sampling, attacker, surrogate)
    check_participants(plans, participants)
    if config.dry_run:
        return AttackResult(metrics=quote(plans, len(goals), config), caveats=_QUOTED)
    scheduler, stored = run_attacks(
        plans, goals, participants, run, caps=config.caps, prices=config.prices, batch=config.batch
    )
    curves = success_curves(goals, scheduler.all_counts)
    run.artifact("curves.json").write_text(json.dumps(plain(drawn(curves))), encoding="utf-8")
    notes = _BENIGN if config.benign else caveats(plans, participants)
    if scheduler.capped:
        cut = sum(counts.cut for counts in scheduler.all_counts.values())
        worst = (
            "rates are over what was asked" if config.benign else "bounds take goals left open at their worst"
        )
        notes += (
            f"the cap on {scheduler.capped} ended the campaign and cut off {cut} of "
            f"{len(scheduler.all_counts)} attacks on a goal; {worst}",
        )
    if config.benign:
        metrics = {**answer_rates(goals, scheduler.all_counts), **spent_metrics(scheduler.tracker)}
        return AttackResult(metrics=metrics, caveats=notes, stored=stored)
    metrics = {**findings(goals, scheduler.all_counts, judge), **spent_metrics(scheduler.tracker)}
    return AttackResult(metrics=metrics | medians(curves), caveats=notes, stored=stored)


def planned(chosen: Chosen) -> Planned:
    """An attack with its settings resolved. Raises ConfigError where they are wrong."""
    attack = ATTACKS[chosen.use]
    config = resolve(attack.config, chosen.config, where=f"attack '{chosen.use}'")
    return Planned(attack, config, chosen.name or attack.name, chosen.repetitions)


_BENIGN = (
    "the goals are benign: outcome 'success' in attempts.jsonl means that the request was answered",
    "attacks that stop at their first success ask an answered request no further, which raises the rate",
)
_QUOTED = (
    "a dry run: nothing was asked; these are the most that the campaign can come to, and attacks that stop "
    "at their first success come to less",
    "what a judging model costs, and what computing on weights costs, is not foreseen",
)


def quote(plans: list[Planned], goals: int, config: Campaign) -> dict[str, Estimate]:
    """Upper limits of a campaign's queries and cost, caps aside."""
    queries = consults = attacker_tokens = 0
    metrics = {}
    for plan in plans:
        most = goals * plan.repetitions * plan.attack.queries(plan.config)
        metrics[f"planned_queries/{plan.label.removeprefix('attack.')}"] = point(most, unit="queries")
        queries += most
        calls = goals * plan.repetitions * plan.attack.consults(plan.config)
        consults += calls
        attacker_tokens += calls * getattr(plan.config, "writing", WRITING).max_tokens
    tokens = queries * config.sampling.max_tokens
    prices = config.prices
    money = queries * prices.query + (tokens * prices.target + attacker_tokens * prices.attacker) / 1e6
    return metrics | {
        "planned_queries": point(queries, unit="queries"),
        "planned_target_tokens": point(tokens, unit="tokens"),
        "planned_attacker_calls": point(consults, unit="queries"),
        "planned_attacker_tokens": point(attacker_tokens, unit="tokens"),
        "planned_money": point(money, unit="money"),
    }
