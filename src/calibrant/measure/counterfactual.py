"""Counterfactual fairness: does the refusal rate change when a request names another group?

Source: counterfactual fairness by substitution (Garg et al. 2019, arXiv 1809.10610; for language models Huang
et al. 2020, arXiv 1911.03064). McNemar 1947 for the p-value of a pair, Tango 1998 for its interval, Holm 1979
over pairs.

1. Every goal that names one of the groups is asked once for each group, with that word and no other changed.
   Two goals that give the same requests are asked once; a goal that names two groups is left out.
2. Groups are compared goal by goal, which is much more powerful than comparing two rates: pairing removes a
   request's difficulty.
3. A pair that an error or a missing verdict leaves open counts at its worst case, in intervals and p-values.
4. ``largest_gap`` comes with an interval that holds over all pairs at once (Bonferroni), because the largest
   of several differences is large by chance.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.counterfactual"`` and inputs model, goals, judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from calibrant.core import (
    LM,
    Attempt,
    Chat,
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
from calibrant.core.attempt import HIT
from calibrant.data.rows import Goals
from calibrant.evals.attempts import Request, ask, write_attempts
from calibrant.measure._rates import judge_caveats
from calibrant.stats import difference, holm, mcnemar, rate

LEVEL = 0.95


class Counterfactual(Frozen):
    """Which groups are swapped, what the judge's 'yes' means, and how the model is asked."""

    groups: tuple[str, ...] = ("women", "men")
    """Words that name groups, in a form that fits in each other's place."""
    against: Literal["first", "each other"] = "first"
    """Compare every group with the first, or all groups with each other."""
    behaviour: Literal["refused", "complied"] = "refused"
    """What the judge's 'yes' means; a request that a guard blocked counts as refused."""
    sampling: Sampling = Sampling()
    """How completions are sampled."""

    @field_validator("groups")
    @classmethod
    def _distinct(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        if len(groups) < 2 or len({group.casefold() for group in groups}) < len(groups):
            raise ValueError("at least two groups are needed, and each only once")
        for group in groups:
            if not re.fullmatch(r"\w(?:.*\w)?", group) or "~" in group or "/" in group:
                raise ValueError(
                    f"'{group}' is no group: it must begin and end with a letter, without '~' or '/'"
                )
        return groups


class CounterfactualResult(Result):
    """``rate/<group>``, ``difference/<a>~<b>`` (b - a), ``holm_p/<a>~<b>`` and ``largest_gap``."""

    attempts: tuple[Attempt, ...] = Field(default=(), exclude=True, repr=False)
    """Every attempt, also stored as ``attempts.jsonl``; outcome 'success' = the judge's 'yes'."""


@technique(version=2)
def counterfactual(
    model: LM, goals: Goals, judge: Judge, config: Counterfactual = Counterfactual(), run: Run = Quiet()
) -> CounterfactualResult:
    """Ask every goal that names a group once for each group, and compare the judge's verdicts.

    Harmful and benign goals may be mixed.

    Raises:
        InputError: shared ids, or no goal names exactly one of the groups.
    """
    swapped = counterfactuals(goals, config.groups)
    requests = [
        Request(goal=goal, chat=Chat.ask(goal.text), attack=f"counterfactual/{group}")
        for group in config.groups
        for goal in swapped.goals[group]
    ]
    attempts = [_blocked(a, config.behaviour) for a in ask(model, requests, judge, config.sampling, run)]
    write_attempts(attempts, run)
    size = len(attempts) // len(config.groups)
    answers = {
        group: [HIT[a.outcome] for a in attempts[place * size : (place + 1) * size]]
        for place, group in enumerate(config.groups)
    }
    clusters = [goal.cluster for goal in swapped.goals[config.groups[0]]]
    return CounterfactualResult(
        metrics={
            **{
                f"rate/{group}": rate(side, clusters=clusters, better="none", unit="goal")
                for group, side in answers.items()
            },
            **gaps(answers, _pairs(config), clusters),
        },
        caveats=(*_caveats(swapped, len(goals), config), *judge_caveats(judge)),
        attempts=tuple(attempts),
    )


class Swapped(NamedTuple):
    """The goals with groups swapped."""

    goals: dict[str, list[Goal]]
    """Group -> the goals about it, in one order for all groups; ids are those of the table."""
    mixed: int
    """Goals left out because they name more than one of the groups."""
    same: int
    """Goals left out because another one comes to the same requests."""


def counterfactuals(goals: Goals, groups: Sequence[str]) -> Swapped:
    """Every goal that names exactly one of ``groups``, once for each of them.

    Words match whole and case-insensitively; an initial capital is kept. Raises InputError as above.
    """
    ids = [goal.id for goal in goals]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"two goals share the id '{twice}'", hint="give each goal an id of its own")
    either = "|".join(re.escape(group) for group in sorted(groups, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
    by_group: dict[str, list[Goal]] = {group: [] for group in groups}
    seen: set[str] = set()
    mixed = same = 0
    for goal in goals:
        named = {word.casefold() for word in pattern.findall(goal.text)}
        template = pattern.sub("\0", goal.text).casefold()
        if len(named) != 1:
            mixed += len(named) > 1
        elif template in seen:
            same += 1
        else:
            seen.add(template)
            for group in groups:
                by_group[group].append(_about(goal, group, pattern))
    if not seen:
        raise InputError(
            f"none of {len(ids)} goals names exactly one of the groups {', '.join(groups)}",
            hint="set config.groups to words of the goals, spelt as there",
        )
    return Swapped(by_group, mixed, same)


def gaps(
    answers: dict[str, list[bool | None]], pairs: Sequence[tuple[str, str]], clusters: Sequence[str]
) -> dict[str, Estimate]:
    """``difference/<a>~<b>`` and ``holm_p/<a>~<b>`` of each pair, and ``largest_gap`` over them. Pure."""
    raw = [mcnemar(answers[a], answers[b]) for a, b in pairs]
    metrics: dict[str, Estimate] = {}
    wide: list[Estimate] = []
    for (a, b), p, adjusted in zip(pairs, raw, holm(raw), strict=True):
        sides = answers[a], answers[b]
        name = f"{a}~{b}"
        note = f"McNemar p = {p:.3g}, Holm over {len(pairs)}: {adjusted:.3g} (clusters not used)"
        gap = difference(*sides, clusters=clusters, better="none", unit="goal")
        reason = f"{gap.reason}; {note}" if gap.reason else note
        metrics[f"difference/{name}"] = gap.model_copy(update={"reason": reason})
        metrics[f"holm_p/{name}"] = point(adjusted, n=gap.n, reason=note)
        level = 1 - (1 - LEVEL) / len(pairs)
        wide.append(difference(*sides, clusters=clusters, level=level, better="none", unit="goal"))
    return metrics | {"largest_gap": _largest(wide, pairs)}


def _largest(estimates: Sequence[Estimate], pairs: Sequence[tuple[str, str]]) -> Estimate:
    """Largest absolute difference, between bounds that hold for all pairs together.

    Where every true difference lies in its interval, the largest is at least the largest distance of an
    interval from 0, and at most the farthest end of any.
    """
    ends = [(one.low, one.high) for one in estimates if one.low is not None and one.high is not None]
    nearest = [max(low, -high, 0.0) for low, high in ends]
    farthest = [max(high, -low) for low, high in ends]
    known = [
        (abs(one.value), pair) for one, pair in zip(estimates, pairs, strict=True) if one.value is not None
    ]
    value, (a, b) = max(known) if known else (None, ("", ""))
    return Estimate(
        value=value,
        low=max(nearest),
        high=max(farthest),
        n=estimates[0].n,
        clusters=estimates[0].clusters,
        missing=max(one.missing for one in estimates),
        reason=f"between {a} and {b}" if known else "no pair was answered on both sides",
        method=f"{estimates[0].method}, bonferroni over {len(pairs)}",
        unit="goal",
        better="lower",
        null_value=0.0,
    )


def _about(goal: Goal, group: str, pattern: re.Pattern[str]) -> Goal:
    """The same goal about ``group``."""

    def put(match: re.Match[str]) -> str:
        return group[:1].upper() + group[1:] if match.group()[:1].isupper() else group

    spans = tuple(pattern.sub(put, span) for span in goal.spans)
    return goal.model_copy(update={"text": pattern.sub(put, goal.text), "spans": spans})


def _pairs(config: Counterfactual) -> list[tuple[str, str]]:
    if config.against == "each other":
        return list(combinations(config.groups, 2))
    return [(config.groups[0], group) for group in config.groups[1:]]


def _blocked(attempt: Attempt, behaviour: str) -> Attempt:
    """C6 calls a blocked attempt a failure of the attack; where 'yes' means refused it is a refusal."""
    if behaviour == "refused" and attempt.completion.stop == "blocked":
        return attempt.model_copy(update={"outcome": "success"})
    return attempt


def _caveats(swapped: Swapped, total: int, config: Counterfactual) -> tuple[str, ...]:
    n = len(swapped.goals[config.groups[0]])
    caveats = [
        f"{n} of {total} goals name one of the groups and were asked; the others say nothing about bias",
        "a difference shows that the word matters to the model, not why, and only in these requests",
        f"outcome 'success' in attempts.jsonl means that the judge says {config.behaviour}",
    ]
    if swapped.mixed:
        caveats.append(f"{swapped.mixed} goals name more than one of the groups and were left out")
    if swapped.same:
        caveats.append(f"{swapped.same} goals come to the same requests as another and were left out")
    return tuple(caveats)
