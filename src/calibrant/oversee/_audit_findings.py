"""What a constitution's readings show: conflict, ambiguity, coverage, redundancy, influence, failed tests.

Every kind compares two *readers* by the disagreement beyond their own noise (``stats.excess``), but coverage,
which holds a reader against people's choice. A finding is 'yes' where the excess differs from 0 at 5 % after
Holm over its kind, 'no' where even the upper end of its interval is below the margin, else 'undecided'; so a
clean constitution gets a false 'yes' of any one kind in at most 5 % of audits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from calibrant.core import Estimate, Frozen, unknown
from calibrant.data.constitution import Constitution, Principle
from calibrant.oversee._audit_reading import Look, Readings
from calibrant.stats import holm, mean, rate
from calibrant.stats.excess import excess, excess_p, excesses, opposed, unequal

Kind = Literal["conflict", "ambiguity", "coverage", "redundancy", "influence", "tests", "loophole"]
Answer = Literal["yes", "no", "undecided"]
_ALPHA = 0.05


class Finding(Frozen):
    """One question of the audit, and its answer."""

    kind: Kind
    """What was looked for; with 'coverage' a gap, with 'influence' a principle without any."""
    where: tuple[str, ...]
    """Ids of the principles, or the category."""
    answer: Answer
    """'yes': the defect was found. 'no': it was not, and would have been if it were larger than the
    margin."""
    estimate: Estimate
    """The figure behind it."""
    p: float | None = None
    """That it is 0, after Holm over the kind; None where it was not tested."""
    note: str = ""
    """What else to know."""


class Cases(NamedTuple):
    """The pairs, as far as figures need them."""

    clusters: Sequence[str]
    """One name a prompt."""
    categories: Sequence[str]


class _Measured(NamedTuple):
    where: tuple[str, ...]
    values: list[float | None]
    clusters: list[str]
    note: str = ""


def conflicts(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """Two principles name opposite sides of one pair more often than each contradicts itself."""
    measured = []
    for one, two in _together(constitution):
        there = sorted(readings.plain[one.id].keys() & readings.plain[two.id].keys())
        values = excesses(_at(readings.plain[one.id], there), _at(readings.plain[two.id], there), opposed)
        note = (
            ""
            if one.priority == two.priority
            else f"'{max((one, two), key=lambda p: p.priority).id}' prevails"
        )
        measured.append(_Measured((one.id, two.id), values, [cases.clusters[at] for at in there], note))
    return _found("conflict", measured, margin, "yes")


def ambiguities(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """A principle is read in another way in other words, or by another reader."""
    found: list[Finding] = []
    tests = sum(len(tables) for tables in readings.others.values())
    pending = []
    for principle in constitution.principles:
        name, tables = principle.id, readings.others[principle.id]
        there = sorted(readings.plain[name])
        if not tables:
            why = "no other wording: give 'reworded', forms or a second reader"
            nothing = unknown(why, n=max(1, len(there)), unit="pair")
            found.append(
                Finding(kind="ambiguity", where=(name,), answer="undecided", estimate=nothing, note=why)
            )
            continue
        clusters = [cases.clusters[at] for at in there]
        plain = _at(readings.plain[name], there)
        each = [excesses(plain, _at(table, there), unequal) for table in tables]
        above = [excess_p(one, clusters=clusters, tests=tests) if _sum(one) > 0 else 1.0 for one in each]
        mixed = [_averaged(row) for row in zip(*each, strict=True)]
        pending.append((_Measured((name,), mixed, clusters), min(1.0, len(each) * min(above))))
    return found + _joined("ambiguity", pending, margin, "yes")


def coverage(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """For each category: does some principle make the reader take people's side?

    The figure is the agreement of the best principle: +1 where both orders name ``chosen``, -1 where both
    name ``rejected``, 0 for neither or for a contradiction. Its interval allows for choosing the best.
    """
    rows: list[tuple[str, str, list[float | None], list[str]]] = []
    for category in dict.fromkeys(cases.categories):
        for principle in constitution.for_category(category):
            table = readings.plain[principle.id]
            there = [at for at in sorted(table) if cases.categories[at] == category]
            values = [_average(table[at]) for at in there]
            rows.append((category, principle.id, values, [cases.clusters[at] for at in there]))
    ps = holm([excess_p(v, clusters=c, tests=len(rows)) if _sum(v) > 0 else 1.0 for _, _, v, c in rows])
    found = []
    for category in dict.fromkeys(cases.categories):
        own = [(row, p) for row, p in zip(rows, ps, strict=True) if row[0] == category]
        if not own:
            why = "no principle speaks to it"
            n = sum(one == category for one in cases.categories)
            nothing = Estimate(
                value=0.0, low=0.0, high=0.0, n=n, unit="pair", reason=why, method="by its scopes"
            )
            found.append(
                Finding(kind="coverage", where=(category,), answer="yes", estimate=nothing, note=why)
            )
            continue
        level = 1 - _ALPHA / len(own)
        each = [(_agreement(v, c, level), name, p) for (_, name, v, c), p in own]
        best = max(each, key=lambda one: -1.0 if one[0].value is None else one[0].value)
        top = max(one.high if one.high is not None else 1.0 for one, _, _ in each)
        covered = any(p < _ALPHA for _, _, p in each)
        answer: Answer = "no" if covered else "yes" if top < margin else "undecided"
        found.append(
            Finding(
                kind="coverage",
                where=(category,),
                answer=answer,
                p=min(p for _, _, p in each),
                estimate=best[0].model_copy(update={"high": top}),
                note=f"best: '{best[1]}'",
            )
        )
    return found


def redundancies(
    constitution: Constitution, readings: Readings, cases: Cases, margin: float
) -> list[Finding]:
    """Two principles that decide, and decide alike wherever either does."""
    decide = {p.id: _decides(readings.plain[p.id], cases) for p in constitution.principles}
    measured: list[_Measured] = []
    idle: list[_Measured] = []
    for one, two in _together(constitution):
        a, b = readings.plain[one.id], readings.plain[two.id]
        there = [at for at in sorted(a.keys() & b.keys()) if any((*a[at], *b[at]))]
        values = excesses(_at(a, there), _at(b, there), unequal)
        one_of = _Measured((one.id, two.id), values, [cases.clusters[at] for at in there])
        (measured if decide[one.id] and decide[two.id] else idle).append(one_of)
    found = _found("redundancy", measured, margin, "no")
    note = "one of the two decides no pair, beyond its noise"
    return found + [
        one.model_copy(update={"answer": "no", "note": note})
        for one in _found("redundancy", idle, margin, "no")
    ]


def influences(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """How many labels change when a principle is left out: the label is the side that most of them name."""
    measured = []
    for principle in constitution.principles:
        there = sorted(readings.plain[principle.id])
        names = {at: [p.id for p in constitution.principles if at in readings.plain[p.id]] for at in there}
        whole = [_majority(readings, at, names[at]) for at in there]
        less = [_majority(readings, at, [n for n in names[at] if n != principle.id]) for at in there]
        values = excesses(whole, less, unequal)
        measured.append(_Measured((principle.id,), values, [cases.clusters[at] for at in there]))
    return _found("influence", measured, margin, "no")


def failed_tests(constitution: Constitution, readings: Readings) -> list[Finding]:
    """Tests of a principle that the reader decides otherwise in either order."""
    found = []
    for principle in constitution.principles:
        looks = readings.tests[principle.id]
        if not looks:
            continue
        right = [None if None in look else look == (1.0, 1.0) for look in looks]
        passed = rate(right, better="higher", unit="test")
        failed = sum(one is False for one in right)
        answer: Answer = "yes" if failed else "undecided" if None in right else "no"
        note = f"{failed} of {len(right)} are decided otherwise" if failed else ""
        found.append(Finding(kind="tests", where=(principle.id,), answer=answer, estimate=passed, note=note))
    return found


def _found(kind: Kind, measured: Sequence[_Measured], margin: float, defect: Answer) -> list[Finding]:
    """A finding each; ``defect``: whether an excess is the defect ('yes'), or its absence is ('no')."""
    return _joined(
        kind,
        [
            (
                one,
                excess_p(one.values, clusters=one.clusters, tests=len(measured))
                if _sum(one.values) > 0
                else 1.0,
            )
            for one in measured
        ],
        margin,
        defect,
    )


def _joined(
    kind: Kind, measured: Sequence[tuple[_Measured, float]], margin: float, defect: Answer
) -> list[Finding]:
    ps = holm([p for _, p in measured])
    found = []
    for (one, _), p in zip(measured, ps, strict=True):
        if not one.values:
            why = "no pair on which it could show"
            nothing = unknown(why, n=1, unit="pair")
            found.append(Finding(kind=kind, where=one.where, answer="undecided", estimate=nothing, note=why))
            continue
        estimate = excess(one.values, clusters=one.clusters, unit="pair")
        there = p < _ALPHA
        gone = estimate.high is not None and estimate.high < margin
        answer: Answer = defect if there else ("no" if defect == "yes" else "yes") if gone else "undecided"
        found.append(
            Finding(kind=kind, where=one.where, answer=answer, estimate=estimate, p=p, note=one.note)
        )
    return found


def _together(constitution: Constitution) -> list[tuple[Principle, Principle]]:
    """Each two principles whose scopes meet."""
    pairs = combinations(constitution.principles, 2)
    return [(a, b) for a, b in pairs if not (a.scope and b.scope) or set(a.scope) & set(b.scope)]


def _at(table: Mapping[int, Look], there: Iterable[int]) -> list[Look]:
    return [table[at] for at in there]


def _sum(values: Sequence[float | None]) -> float:
    return sum(value for value in values if value is not None)


def _averaged(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _average(look: Look) -> float | None:
    one, two = look
    return None if one is None or two is None else (one + two) / 2


def _agreement(values: Sequence[float | None], clusters: Sequence[str], level: float) -> Estimate:
    return mean(
        values,
        clusters=clusters,
        level=level,
        bounds=(-1.0, 1.0),
        better="higher",
        unit="pair",
        null_value=0.0,
    )


def _decides(table: Mapping[int, Look], cases: Cases) -> bool:
    """Whether the reader names the same side in both orders more often than it contradicts itself."""
    there = sorted(table)
    values = [None if None in table[at] else table[at][0] * table[at][1] for at in there]  # type: ignore[operator]
    clusters = [cases.clusters[at] for at in there]
    return bool(there) and _sum(values) > 0 and excess_p(values, clusters=clusters) < _ALPHA


def _majority(readings: Readings, at: int, names: Sequence[str]) -> Look:
    """The side that most principles name, in either order; 0 where they are even."""
    looks = [readings.plain[name][at] for name in names]
    if any(None in look for look in looks):
        return None, None
    first, second = (sum(look[order] or 0.0 for look in looks) for order in (0, 1))
    return _sign(first), _sign(second)


def _sign(value: float) -> float:
    return float((value > 0) - (value < 0))


KINDS: Mapping[str, Callable[[Constitution, Readings, Cases, float], list[Finding]]] = {
    "conflict": conflicts,
    "ambiguity": ambiguities,
    "coverage": coverage,
    "redundancy": redundancies,
    "influence": influences,
}
"""Kind of finding -> what looks for it."""
