"""What a constitution's audit asks: every pair under every principle, in both orders, in every wording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from calibrant.core import LM, Run
from calibrant.data.constitution import Constitution, Principle
from calibrant.data.rows import Pair
from calibrant.oversee._comparing import Asked, Comparing, comparison, question_of, readings, side

Look = tuple[float | None, float | None]
"""1 where ``chosen`` is named, -1 for ``rejected``, 0 for neither: in the plain order, and swapped."""
_BATCH = 512


class Wording(NamedTuple):
    """One way to ask under one principle."""

    principle: str
    """Id."""
    text: str
    """The principle as it is shown."""
    template: str = ""
    """In place of ``compare``; "" for that."""
    second: bool = False
    """Whether the second reader is asked."""


@dataclass(frozen=True)
class Readings:
    """The looks of every wording at the pairs that its principle speaks to."""

    plain: Mapping[str, Mapping[int, Look]]
    """Principle -> place of the pair -> look, in the constitution's own words."""
    others: Mapping[str, Sequence[Mapping[int, Look]]]
    """Principle -> one table for each other wording, template or reader."""
    tests: Mapping[str, Sequence[Look]]
    """Principle -> a look at each of its own tests, 'better' as chosen."""


def read_all(
    model: LM,
    second: LM | None,
    constitution: Constitution,
    rows: Sequence[Pair],
    config: Comparing,
    forms: Sequence[str],
    run: Run,
) -> Readings:
    """Ask everything, a wording at a time."""
    differing = [form for form in forms if form != config.compare]  # the same words are no other way to ask
    wordings = [one for p in constitution.principles for one in wordings_of(p, differing, second is not None)]
    plain: dict[str, dict[int, Look]] = {}
    others: dict[str, list[dict[int, Look]]] = {p.id: [] for p in constitution.principles}
    for done, wording in enumerate(wordings, 1):
        principle = next(p for p in constitution.principles if p.id == wording.principle)
        there = [at for at, row in enumerate(rows) if principle.speaks_to(row.category)]
        reader = second if wording.second and second is not None else model
        looks = look(reader, [rows[at] for at in there], wording.text, config, run, wording.template)
        table = dict(zip(there, looks, strict=True))
        if wording.principle not in plain:
            plain[wording.principle] = table
        else:
            others[wording.principle].append(table)
        run.progress(done, len(wordings))
    tests = {p.id: look_at_tests(model, p, config, run) for p in constitution.principles}
    return Readings(plain, others, tests)


def wordings_of(principle: Principle, forms: Sequence[str], second: bool) -> Iterator[Wording]:
    """The plain one first, then what differs from it: rewordings, other templates, the second reader."""
    yield Wording(principle.id, principle.text)
    for text in dict.fromkeys(principle.reworded):
        if text.split() == principle.text.split():
            continue
        yield Wording(principle.id, text)
    for template in forms:
        yield Wording(principle.id, principle.text, template)
    if second:
        yield Wording(principle.id, principle.text, second=True)


def look(
    model: LM, rows: Sequence[Pair], principle: str, config: Comparing, run: Run, template: str = ""
) -> list[Look]:
    """One look a pair: what ``model`` names in both orders."""
    asked = [Asked(question_of(row.prompt), row.chosen, row.rejected, principle) for row in rows]
    return look_at(model, asked, config, run, template)


def look_at(model: LM, asked: Sequence[Asked], config: Comparing, run: Run, template: str = "") -> list[Look]:
    """The same, of comparisons: 1 for ``first`` as it is given."""
    found: list[Look] = []
    for at in range(0, len(asked), _BATCH):
        part = asked[at : at + _BATCH]
        chats = [comparison(config, one, template) for one in part]
        turned = [one._replace(first=one.second, second=one.first) for one in part]
        chats += [comparison(config, one, template) for one in turned]
        read = readings(model, chats, config, run, run.seed)
        plain, swapped = read[: len(part)], read[len(part) :]
        found += [
            (side(one, swapped=False), side(two, swapped=True))
            for one, two in zip(plain, swapped, strict=True)
        ]
    return found


def look_at_tests(model: LM, principle: Principle, config: Comparing, run: Run) -> list[Look]:
    """A look at each of a principle's own tests."""
    asked = [Asked(t.question, t.better, t.worse, principle.text) for t in principle.tests]
    return look_at(model, asked, config, run) if asked else []
