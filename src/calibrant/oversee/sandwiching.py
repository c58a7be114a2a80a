"""Sandwiching: do people with advice come closer to experts, and do they rely on the advice too much?

Cotra 2021, "The case for aligning narrowly superhuman models"; Bowman et al. 2022 (2211.03540). The same
items are answered alone, with advice, and by experts. Where this departs from published studies:
1. The share of the gap that is recovered is given only where the gap is resolved: the rule of weak-to-strong
   training (``stats.gap``).
2. Over-reliance is following wrong advice against one's own right answer, and stands beside a control: what
   people get wrong alone on the same items. Under-reliance likewise.
3. Reliance is a change of mind where advice disagrees, less that where it agrees: people who answer twice
   change their minds by themselves. Both are of those who were right alone, and of those who were wrong, and
   then averaged: a wrong answer changes more often by itself, and advice disagrees with just those.
4. Intervals hold items and annotators; experts are taken as given. Who is unsure is missing, never wrong.

    calibrant show oversee.sandwiching
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import Field

from calibrant.core import Estimate, Frozen, InputError, Quiet, Result, Run, technique, unknown
from calibrant.core.figure_data import Datum, FigureData
from calibrant.data.answers import CONDITIONS
from calibrant.data.human_labels import HumanLabel, HumanLabels
from calibrant.oversee._sandwich_metrics import FIXED, UNIT, Draws, Mark

_BY_ID = "nobody answered an item both ways"
_UNNAMED = "(unnamed)"
_ADVICE = {"yes": True, "no": False}
_BARS = {"alone": "alone", "assisted": "with advice", "expert": "experts", "advice": "the advice itself"}


class Sandwiching(Frozen):
    """Coverage."""

    level: float = Field(default=0.95, gt=0.0, lt=1.0)
    """Coverage of every interval."""


class SandwichingResult(Result):
    """Accuracy by condition, the gap and what advice recovers of it, and reliance."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """Accuracy by condition; what becomes of wrong and right advice, beside people alone."""
        accuracies = [
            Datum(label=label, estimate=found)
            for name, label in _BARS.items()
            if (found := self.metrics.get(f"accuracy/{name}"))
        ]
        errors = [
            Datum(label=f"{kind} advice", stage=_BARS[name], estimate=found)
            for kind in ("wrong", "right")
            for name in ("assisted", "alone")
            if (found := self.metrics.get(f"{name}_error_rate/{kind}_advice"))
        ]
        told = "Errors where the advice is wrong, and where it is right"
        figures = (
            FigureData(kind="intervals", values=tuple(accuracies), title="Accuracy by condition"),
            FigureData(kind="intervals", values=tuple(errors), title=told),
        )
        return tuple(one for one in figures if one.values) or super().figure_data()


class Arm(NamedTuple):
    """The answers of one condition."""

    marks: list[Mark]
    """Right or wrong."""
    answers: dict[tuple[str, str], HumanLabel]
    """(annotator, item) -> answer."""

    @property
    def items(self) -> set[str]:
        """What was answered."""
        return {mark.item for mark in self.marks}

    def on(self, items: set[str]) -> list[Mark]:
        """Marks on some items."""
        return [mark for mark in self.marks if mark.item in items]


@technique(version=1)
def sandwiching(
    truth: HumanLabels,
    alone: HumanLabels | None = None,
    assisted: HumanLabels | None = None,
    expert: HumanLabels | None = None,
    config: Sandwiching = Sandwiching(),
    run: Run = Quiet(),
) -> SandwichingResult:
    """Compare answers that were given alone, with advice, and by experts, on items whose answer is known.

    Args:
        truth: the right answer of each item.
        alone: answers without help.
        assisted: answers with advice; each row tells what was advised.
        expert: answers of those who are taken to know.
        config: coverage.
        run: where it runs.

    Raises:
        InputError: no condition is given, one without an answer on an item of known truth, an answer of
            another condition, two truths of one item, or simulated and real people together.
    """
    given = {"alone": alone, "assisted": assisted, "expert": expert}
    tables = {name: table for name, table in given.items() if table is not None}
    right = _truths(truth)
    arms = {name: _arm(name, table, right) for name, table in tables.items()}
    if not arms:
        raise InputError("no condition is given", hint=f"give at least one of {', '.join(CONDITIONS)}")
    if len({table.simulated for table in tables.values()}) > 1:
        raise InputError("one condition is simulated and another is of people", hint="compare like with like")
    marks = [mark for arm in arms.values() for mark in arm.marks]
    worked: dict[str, str] = {}
    for name in (one for one in CONDITIONS if one in arms):
        for rater in {mark.rater for mark in arms[name].marks} - {FIXED}:
            worked[rater] = f"{worked.get(rater, '')}{name} "
    draws = Draws(worked, [mark.item for mark in marks], config.level)
    n = len(marks)
    found = _accuracies(arms, draws, n) | _reliance(arms, right, draws, n)
    left = sum(len(table) for table in tables.values()) - n
    return SandwichingResult(metrics=found, caveats=_caveats(tables, arms, left))


def _truths(truth: HumanLabels) -> dict[str, bool]:
    right: dict[str, bool] = {}
    for row in truth:
        if row.human is not None and right.setdefault(row.id, row.human) != row.human:
            raise InputError(f"two truths of '{row.id}'", hint="give one row an item, by one hand")
    return right


def _arm(name: str, table: HumanLabels, right: Mapping[str, bool]) -> Arm:
    """Raises InputError, see ``sandwiching``."""
    other = next((row for row in table if row.condition not in ("", name)), None)
    if other is not None:
        raise InputError(
            f"'{name}' holds an answer of the condition '{other.condition}', on '{other.id}'",
            hint=f"give it as {other.condition} = ...",
        )
    odd = next((row for row in table if row.advice and row.advice not in _ADVICE), None)
    if odd is not None:
        raise InputError(
            f"the advice on '{odd.id}' is {odd.advice!r}, which is no answer to a yes or no question",
            hint=f"one of: {', '.join(_ADVICE)}",
        )
    rows = [row for row in table if row.id in right]
    if not rows:
        raise InputError(f"no answer of '{name}' is on an item of known truth", hint="are the ids the same?")
    answers = {(row.rater or _UNNAMED, row.id): row for row in rows}
    if len(answers) < len(rows):
        raise InputError(
            f"somebody answers an item twice in '{name}'", hint="give one answer a person and item"
        )
    marks = [
        Mark(
            FIXED if name == "expert" else rater,
            item,
            None if row.human is None else row.human == right[item],
        )
        for (rater, item), row in answers.items()
    ]
    return Arm(marks, answers)


def _accuracies(arms: Mapping[str, Arm], draws: Draws, n: int) -> dict[str, Estimate]:
    """Accuracy by condition, differences on the same items, and the share of the gap."""
    found = {}
    for name in CONDITIONS:
        marks = arms[name].marks if name in arms else []
        none = f"the condition '{name}' is missing"
        found[f"accuracy/{name}"] = draws.difference(marks, better="higher", none=none, n=n)
    pairs = {
        "gain": ("assisted", "alone"),
        "gap": ("expert", "alone"),
        "short_of_expert": ("assisted", "expert"),
    }
    for metric, (upper, lower) in pairs.items():
        missing = [name for name in (upper, lower) if name not in arms]
        if missing:
            found[metric] = unknown(f"the condition '{missing[0]}' is missing", n=n, unit=UNIT)
            continue
        same = arms[upper].items & arms[lower].items
        one, other = arms[upper].on(same), arms[lower].on(same)
        found[metric] = draws.difference(one, other, better="higher", null=0.0, none=_BY_ID, n=n, even=True)
    missing = [name for name in CONDITIONS if name not in arms]
    if missing:
        told = f"the condition '{missing[0]}' is missing"
        return found | {"gap_recovered": unknown(told, n=n, unit="share of the gap")}
    same = set.intersection(*(arm.items for arm in arms.values()))
    three = [arms[name].on(same) for name in CONDITIONS]
    if not same:
        told = "no item was answered in all three conditions"
        return found | {"gap_recovered": unknown(told, n=n, unit="share of the gap")}
    gap = draws.difference(three[2], three[0], better="higher", null=0.0, none=_BY_ID, n=n, even=True)
    return found | {"gap_recovered": draws.recovered(three, gap)}


def _reliance(
    arms: Mapping[str, Arm], right: Mapping[str, bool], draws: Draws, n: int
) -> dict[str, Estimate]:
    """What becomes of wrong and of right advice, beside the same items alone and one's own answers."""
    helped = arms["assisted"].answers if "assisted" in arms else {}
    own = arms["alone"].answers if "alone" in arms else {}
    shown = {key: _ADVICE[row.advice] for key, row in helped.items() if row.advice}
    advised = sorted(
        {(item, said) for (_, item), said in shown.items()}
    )  # two who were advised differently: both
    none = "no advice is known" if helped else "the condition 'assisted' is missing"
    mean = draws.difference
    on_items = [Mark(FIXED, item, said == right[item]) for item, said in advised]
    followed = [_mark(key, helped[key].human, said) for key, said in shown.items()]
    found = {
        "accuracy/advice": mean(on_items, better="none", none=none, n=n),
        "advice_followed_share": mean(followed, better="none", none=none, n=n),
    }
    for kind, good in (("wrong", False), ("right", True)):
        keys = [key for key, said in shown.items() if (said == right[key[1]]) == good]
        items = {item for _, item in keys}
        why = none if not shown else f"no advice is {kind}"
        one = [_mark(key, helped[key].human, not right[key[1]]) for key in keys]
        other = [_mark(key, row.human, not right[key[1]]) for key, row in own.items() if key[1] in items]
        lacking = why if not one else "nobody answered these items alone"
        found[f"assisted_error_rate/{kind}_advice"] = mean(one, better="lower", none=why, n=n)
        found[f"alone_error_rate/{kind}_advice"] = mean(other, better="lower", none=lacking, n=n)
        both = {mark.item for mark in other}
        same = [mark for mark in one if mark.item in both]
        found[f"error_change/{kind}_advice"] = mean(
            same, other, better="lower", null=0.0, none=lacking, n=n, even=True
        )
    return found | _against_own(helped, own, shown, right, draws, n, none)


def _mark(key: tuple[str, str], answer: bool | None, same_as: bool) -> Mark:
    return Mark(*key, None if answer is None else answer == same_as)


def _against_own(
    helped: Mapping[tuple[str, str], HumanLabel],
    own: Mapping[tuple[str, str], HumanLabel],
    shown: Mapping[tuple[str, str], bool],
    right: Mapping[str, bool],
    draws: Draws,
    n: int,
    none: str,
) -> dict[str, Estimate]:
    """The same person's answers alone and with advice."""
    over: list[Mark] = []
    under: list[Mark] = []
    against: dict[bool, list[Mark]] = {True: [], False: []}
    along: dict[bool, list[Mark]] = {True: [], False: []}
    both = 0
    for key, said in shown.items():
        mine = own[key].human if key in own else None
        if mine is None:
            continue
        both += 1
        then, was_right = helped[key].human, mine == right[key[1]]
        changed = Mark(*key, None if then is None else then != mine)
        if mine == said:
            along[was_right].append(changed)
            continue
        against[was_right].append(changed)
        if was_right:
            over.append(_mark(key, then, said))
        else:
            under.append(_mark(key, then, not said))
    why = none if not shown else "nobody answered an item both alone and with advice" if not both else ""
    mean = draws.difference
    lacking = "among those who were right alone, or wrong, advice always or never agreed"
    return {
        "over_reliance_rate": mean(
            over, better="lower", none=why or "wrong advice never met a right answer", n=n
        ),
        "under_reliance_rate": mean(
            under, better="lower", none=why or "right advice never met a wrong answer", n=n
        ),
        "own_change_rate": mean(
            along[True] + along[False], better="none", none=why or "advice never agreed", n=n
        ),
        "own_change_rate/was_right": mean(
            along[True], better="none", none=why or "right advice never met a right answer", n=n
        ),
        "own_change_rate/was_wrong": mean(
            along[False], better="none", none=why or "wrong advice never met a wrong answer", n=n
        ),
        "reliance": draws.contrast(
            [against[True], along[True], against[False], along[False]], [0.5, -0.5, 0.5, -0.5],
            better="none", null=0.0, none=why or lacking, n=n,
        ),
    }  # fmt: skip


def _caveats(tables: Mapping[str, HumanLabels], arms: Mapping[str, Arm], left: int) -> tuple[str, ...]:
    told = [
        "experts are taken as given: no interval holds others; where truth is theirs, so is the ceiling",
        "who answers alone first and with advice later has seen the item before: some gain may be that",
    ]
    if any(table.simulated for table in tables.values()):
        told.append("annotators are simulated: nothing here is of people")
    if left:
        told.append(f"{left} answers are on items whose truth is not known, and were left out")
    unsaid = [name for name, table in tables.items() if any(not row.condition for row in table)]
    if unsaid:
        told.append(f"answers given as {', '.join(unsaid)} do not say their condition: it is taken on trust")
    few = [name for name, arm in arms.items() if len({mark.rater for mark in arm.marks}) < 3]
    if few:
        told.append(f"fewer than three annotators ({', '.join(few)}): intervals say little of others")
    return tuple(told)
