"""What a constitution's readings show: conflict, ambiguity, gaps, redundancy, no influence, failing tests.

Every kind compares two ways of reading by the disagreement beyond their own noise (``stats.excess``), but
gaps, which hold a reader against people's choice, and tests, which are requirements.

'yes' to a conflict or an ambiguity: the excess differs from 0 at 5 % after Holm over its kind, and its whole
interval lies above the margin. Readers of one meaning whose noise differs by less than the root of the margin
do not reach that. 'no': its whole interval lies below the margin, and so does the share of pairs on which
both ways are firm and differ. Either needs principles that decide something beyond noise. Else 'undecided'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from calibrant.core import Estimate, Frozen, unknown
from calibrant.data.constitution import Constitution, Principle
from calibrant.oversee._audit_reading import Look, Readings
from calibrant.stats import holm, rate
from calibrant.stats.excess import excess, excess_p, excesses, firm, opposed, signed_mean, unequal

Kind = Literal["conflict", "ambiguity", "gap", "redundancy", "no_influence", "failing_test", "loophole"]
Answer = Literal["yes", "no", "undecided"]
_ALPHA = 0.05


class Finding(Frozen):
    """One question of the audit, and its answer."""

    kind: Kind
    """The defect that was looked for."""
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
    decides: Mapping[str, bool]
    """Principle -> whether it names the same side in both orders more often than it contradicts itself."""

    def silent(self, *names: str) -> str:
        """Those of ``names`` that decide nothing, in words; ""."""
        found = [f"'{name}'" for name in names if not self.decides[name]]
        return f"{' and '.join(found)} decide{'s' * (len(found) == 1)} no pair beyond noise" if found else ""


class _Measured(NamedTuple):
    where: tuple[str, ...]
    values: list[float | None]
    clusters: list[str]
    note: str = ""
    silent: str = ""
    """Who says nothing here: that two ways of reading do not differ then shows nothing."""
    firm: Sequence[bool | None] = ()
    """Whether both ways say the same in both orders, and differ from each other."""


def conflicts(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """Two principles name opposite sides of one pair more often than each contradicts itself."""
    measured = []
    for one, two in _together(constitution):
        a, b = readings.plain[one.id], readings.plain[two.id]
        there = sorted(a.keys() & b.keys())
        values = excesses(_at(a, there), _at(b, there), opposed)
        first = max((one, two), key=lambda principle: principle.priority)
        note = "" if one.priority == two.priority else f"'{first.id}' prevails"
        names, clusters = (one.id, two.id), [cases.clusters[at] for at in there]
        both = firm(_at(a, there), _at(b, there), opposed)
        measured.append(_Measured(names, values, clusters, note, cases.silent(*names), both))
    return _found("conflict", measured, margin, "yes")


def ambiguities(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """A principle is read in another way in other words, or by another reader."""
    found: list[Finding] = []
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
        above = [excess_p(one, clusters=clusters) for one in each]
        mixed = [_averaged(row) for row in zip(*each, strict=True)]
        firms = [firm(plain, _at(table, there), unequal) for table in tables]
        both = [None if None in row else any(row) for row in zip(*firms, strict=True)]
        one = _Measured((name,), mixed, clusters, silent=cases.silent(name), firm=both)
        pending.append((one, min(1.0, len(each) * min(above))))
    return found + _joined("ambiguity", pending, margin, "yes")


def gaps(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
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
    ps = holm([excess_p(v, clusters=c) for _, _, v, c in rows])
    found = []
    for category in dict.fromkeys(cases.categories):
        own = [(row, p) for row, p in zip(rows, ps, strict=True) if row[0] == category]
        if not own:
            why = "no principle speaks to it"
            n = sum(one == category for one in cases.categories)
            nothing = Estimate(
                value=0.0, low=0.0, high=0.0, n=n, unit="pair", reason=why, method="by its scopes"
            )
            found.append(Finding(kind="gap", where=(category,), answer="yes", estimate=nothing, note=why))
            continue
        level = 1 - _ALPHA / len(own)
        each = [(_agreement(v, c, level), name, p) for (_, name, v, c), p in own]
        best = max(each, key=lambda one: -1.0 if one[0].value is None else one[0].value)
        top = max(one.high if one.high is not None else 1.0 for one, _, _ in each)
        covered = any(
            p < _ALPHA and one.low is not None and one.low > margin and cases.decides[name]
            for one, name, p in each
        )
        heard = any(cases.decides[name] for _, name, _ in each)
        answer: Answer = "no" if covered else "yes" if top < margin and heard else "undecided"
        found.append(
            Finding(
                kind="gap",
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
    measured = []
    for one, two in _together(constitution):
        a, b = readings.plain[one.id], readings.plain[two.id]
        there = [at for at in sorted(a.keys() & b.keys()) if any((*a[at], *b[at]))]
        values = excesses(_at(a, there), _at(b, there), unequal)
        names, clusters = (one.id, two.id), [cases.clusters[at] for at in there]
        both = firm(_at(a, there), _at(b, there), unequal)
        measured.append(_Measured(names, values, clusters, silent=cases.silent(*names), firm=both))
    return _found("redundancy", measured, margin, "no")


def influences(constitution: Constitution, readings: Readings, cases: Cases, margin: float) -> list[Finding]:
    """How many labels change when a principle is left out: the label is the side that most of them name."""
    measured = []
    for principle in constitution.principles:
        there = sorted(readings.plain[principle.id])
        names = {at: [p.id for p in constitution.principles if at in readings.plain[p.id]] for at in there}
        whole = [_majority(readings, at, names[at]) for at in there]
        less = [_majority(readings, at, [n for n in names[at] if n != principle.id]) for at in there]
        clusters = [cases.clusters[at] for at in there]
        changed, both = excesses(whole, less, unequal), firm(whole, less, unequal)
        heard = any(cases.decides.values())
        if not heard:  # a reader that names no side shows nothing of any principle
            changed = [None] * len(changed)
        silent = cases.silent(principle.id) if heard else "no principle decides a pair beyond noise"
        measured.append(_Measured((principle.id,), changed, clusters, silent=silent, firm=both))
    return _found("no_influence", measured, margin, "no")


def failed_tests(constitution: Constitution, readings: Readings) -> list[Finding]:
    """Tests of a principle that the reader does not decide as said.

    One that fails in both orders is a finding; in one order alone it may be noise.
    """
    found = []
    for principle in constitution.principles:
        looks = readings.tests[principle.id]
        if not looks:
            continue
        right = [None if None in look else look == (1.0, 1.0) for look in looks]
        failed = sum(None not in look and 1.0 not in look for look in looks)
        half = sum(1.0 in look and look != (1.0, 1.0) for look in looks)
        answer: Answer = "yes" if failed else "undecided" if half or None in right else "no"
        told = [f"{failed} of {len(looks)} fail in both orders"] if failed else []
        told += [f"{half} of {len(looks)} are decided as said in one order alone"] if half else []
        found.append(
            Finding(
                kind="failing_test",
                where=(principle.id,),
                answer=answer,
                estimate=rate(right, better="higher", unit="test"),
                note="; ".join(told),
            )
        )
    return found


def _found(kind: Kind, measured: Sequence[_Measured], margin: float, defect: Answer) -> list[Finding]:
    """A finding each; ``defect``: whether an excess is the defect ('yes'), or its absence is ('no')."""
    return _joined(
        kind,
        [(one, excess_p(one.values, clusters=one.clusters)) for one in measured],
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
        answer: Answer = "undecided"
        if p < _ALPHA and estimate.low is not None and estimate.low > margin:
            answer = defect
        elif _below(estimate, margin) and _below(_firm(one), margin):
            answer = "no" if defect == "yes" else "yes"
        if one.silent and not (kind == "no_influence" and answer == "yes"):
            answer = "undecided"  # who names no side shows no conflict, clears nothing, and is like nobody
        note = one.note if answer != "undecided" else one.silent or "too few pairs to be sure of the margin"
        found.append(Finding(kind=kind, where=one.where, answer=answer, estimate=estimate, p=p, note=note))
    return found


def _together(constitution: Constitution) -> list[tuple[Principle, Principle]]:
    """Each two principles whose scopes meet."""
    pairs = combinations(constitution.principles, 2)
    return [(a, b) for a, b in pairs if not (a.scope and b.scope) or set(a.scope) & set(b.scope)]


def _firm(one: _Measured) -> Estimate:
    return rate(one.firm, clusters=one.clusters, better="none", unit="pair")


def _below(estimate: Estimate, margin: float) -> bool:
    return estimate.high is not None and estimate.high < margin


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
    return signed_mean(values, clusters=clusters, level=level, better="higher", unit="pair")


def decided(table: Mapping[int, Look], clusters: Sequence[str]) -> tuple[Estimate, bool]:
    """Share of pairs on which both orders name one side; and whether that is more than noise."""
    there = sorted(table)
    looks = [table[at] for at in there]
    names = [clusters[at] for at in there]
    same = [None if None in look else bool(look[0]) and look[0] == look[1] for look in looks]
    if not there:
        return unknown("no pair is within its scope", n=1, unit="pair"), False
    signs = [None if one is None or two is None else one * two for one, two in looks]
    sure = _sum(signs) > 0 and excess_p(signs, clusters=names) < _ALPHA
    return rate(same, clusters=names, better="none", unit="pair"), sure


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
    "gap": gaps,
    "redundancy": redundancies,
    "no_influence": influences,
}
"""Kind of finding -> what looks for it."""
