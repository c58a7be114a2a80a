"""Plant known flaws in right answers: data to train a critic on, and to measure it (CriticGPT; 2407.00215).

McAleese et al. 2024 let people insert bugs and describe them. Here a flaw is planted by rule, so that it is
known to the word: the answer of another question of the same kind, where the two differ in a few words.

1. Every question gives an untouched answer and a tampered one, so that length, style and subject tell
   nothing.
2. The flaw is the run of words that differs; where the answers have nothing in common the swap would be seen
   at a glance, and where they differ in two places it would have two names: such pairs are passed over.
3. Demonstrations of both come with it: a critic that only saw flaws would find one in everything.
4. Questions come in random order, both rows of one together, so that slices part them: train on
   ``record:JOB/critiques.jsonl[:400]``, measure on ``record:JOB/answers.jsonl[400:]``.

    calibrant show oversee.tamper
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field, field_validator

from calibrant.core import Frozen, InputError, Quiet, Result, Run, point, technique
from calibrant.core.digest import canonical
from calibrant.data.rows import CheckedAnswer, CheckedAnswers, Example, Examples, Item, Items
from calibrant.oversee._comparing import filled, question_of
from calibrant.oversee.critic import CRITIQUE

_STOPS = ".,;:!? "
_TRIED = 300
"""Most partners that are looked at for one question."""
NONE, FOUND = "NO FLAW", "FLAW:"


class Tamper(Frozen):
    """How critiques are asked for and written, and how much of an answer may change."""

    critique: str = CRITIQUE
    """Asks for a critique; {question} and {answer} are filled in. ``oversee.critic`` must ask the same."""
    flaw: str = FOUND + " {flaw}"
    """A demonstration's reply to a tampered answer; {flaw} is filled in."""
    none: str = NONE
    """A demonstration's reply to an untouched answer."""
    untouched: bool = True
    """Also demonstrate untouched answers. Without them a critic learns to object to everything."""
    most: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Largest share of an answer's words that may be the flaw."""

    @field_validator("critique")
    @classmethod
    def _asks(cls, template: str) -> str:
        return named(template, "question", "answer")

    @field_validator("flaw")
    @classmethod
    def _quotes(cls, template: str) -> str:
        return named(template, "flaw")


def named(template: str, *fields: str) -> str:
    """``template``, if each of ``fields`` stands in it. Raises ValueError."""
    for name in fields:
        if "{" + name + "}" not in template:
            raise ValueError(f"the template does not contain {{{name}}}")
    return template


class TamperResult(Result):
    """Answers with and without a flaw (artefact 'answers.jsonl'), and demonstrations ('critiques.jsonl')."""

    answers: CheckedAnswers = Field(exclude=True, repr=False)
    """Two rows a question: as it is, and tampered with."""
    critiques: Examples = Field(exclude=True, repr=False)
    """The critique that each should get."""


@technique(version=1)
def tamper(items: Items, config: Tamper = Tamper(), run: Run = Quiet()) -> TamperResult:
    """Swap a few words of each right answer for those of another question's.

    Raises:
        InputError: there are no items, or none has a partner of its kind whose answer differs in a few words.
    """
    if not items.rows:
        raise InputError("tampering needs items", hint="give questions with right answers")
    rows: list[CheckedAnswer] = []
    kinds: dict[str, list[Item]] = {}
    for item in items.rows:
        kinds.setdefault(item.kind, []).append(item)
    passed = 0
    order = random.Random(f"tamper/order/{run.seed}").sample(items.rows, len(items.rows))
    for item in order:
        swap = _swap(item, kinds[item.kind], config.most, run.seed)
        if swap is None:
            passed += 1
            continue
        answer, flaw = swap
        clean = CheckedAnswer(
            id=f"{item.id}/clean",
            prompt=item.chat,
            answer=" ".join(item.answer.split()),  # laid out as the tampered one
            kind=item.kind,
            cluster=item.id,
        )
        rows += [clean, clean.model_copy(update={"id": f"{item.id}/flawed", "answer": answer, "flaw": flaw})]
    if not rows:
        raise InputError(
            f"none of {len(items.rows)} items has a partner of its kind whose answer differs in a few words",
            hint="write answers as sentences of one form ('the fox eats corn.'), or raise most",
        )
    shown = [_demonstration(row, config) for row in rows if row.flaw or config.untouched]
    run.artifact("answers.jsonl").write_bytes(b"".join(canonical(row) + b"\n" for row in rows))
    run.artifact("critiques.jsonl").write_bytes(b"".join(canonical(row) + b"\n" for row in shown))
    told = f"{passed} of {len(items.rows)} have no partner" if passed else ""
    return TamperResult(
        metrics={"tampered": point(len(rows) / 2, unit="answers", n=len(items.rows), reason=told)},
        answers=CheckedAnswers(rows=tuple(rows), source="tamper"),
        critiques=Examples(rows=tuple(shown), source="tamper"),
        caveats=(
            "planted flaws are of one kind, wrong words in a right sentence: a critic may miss all others",
            "answers are taken to be right as they stand: a wrong one would teach the critic to pass it",
        ),
    )


def _swap(item: Item, others: Sequence[Item], most: float, seed: int) -> tuple[str, str] | None:
    """A wrong answer of the same form, and the words in which it is wrong; None: no item gives one.

    Of up to ``_TRIED`` answers to other questions, drawn by lot, those that change the fewest words; among
    equals by lot.
    """
    asked = question_of(item.chat)
    given = {_folded(word) for word in asked.split()}
    own = item.answer.split()
    lot = random.Random(f"tamper/{seed}/{item.id}")
    there = others if len(others) <= _TRIED else lot.sample(others, _TRIED)
    swaps: set[tuple[int, str, str]] = set()
    for other in there:
        found = differing(item.answer, other.answer) if question_of(other.chat) != asked else None
        if found is None:
            continue
        (start, end), words = found
        flaw = " ".join(words).strip(_STOPS)
        if not flaw or given & {_folded(word) for word in own[start:end]}:
            continue  # the question says these words: another subject would be another question's answer
        answer = own[:start] + words + own[end:]
        if len(words) <= most * len(answer):
            swaps.add((end - start + len(words), " ".join(answer), flaw))
    if not swaps:
        return None
    least = min(size for size, _, _ in swaps)
    _, text, flaw = lot.choice(sorted(one for one in swaps if one[0] == least))
    return text, flaw


def differing(one: str, other: str) -> tuple[tuple[int, int], list[str]] | None:
    """The run of words of ``one`` to replace, and the words of ``other`` in its place: the last that differs.

    Both answers begin alike but for their subject: of the places at which they differ only the last is
    swapped, so that the answer stays one to its own question. Words are compared without case and marks, and
    numbers by what they are. None where no word is shared, or none differs.
    """
    said, theirs_said = one.split(), other.split()
    mine, theirs = [_folded(word) for word in said], [_folded(word) for word in theirs_said]
    if not set(mine) & set(theirs):
        return None
    tail = 0
    while tail < min(len(mine), len(theirs)) and mine[-1 - tail] == theirs[-1 - tail]:
        tail += 1
    end, other_end = len(mine) - tail, len(theirs) - tail
    start, other_start = end, other_end
    while start and other_start and mine[start - 1] not in theirs and theirs[other_start - 1] not in mine:
        start, other_start = start - 1, other_start - 1
    if start == end or other_start == other_end:
        return None
    return (start, end), theirs_said[other_start:other_end]


def _folded(word: str) -> str:
    plain = word.strip(_STOPS).casefold()
    try:
        return f"{float(plain):g}"
    except ValueError:
        return plain


def _demonstration(row: CheckedAnswer, config: Tamper) -> Example:
    prompt = filled(config.critique, {"question": question_of(row.prompt), "answer": row.answer})
    reply = config.flaw.replace("{flaw}", row.flaw) if row.flaw else config.none
    return Example(id=row.id, prompt=prompt, completion=reply)
