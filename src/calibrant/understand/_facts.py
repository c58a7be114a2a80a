"""Facts as token ids: where the subject stands, and another subject of as many tokens to put there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from calibrant.core import Chat, InputError, OpenLM
from calibrant.data.rows import Fact, Facts
from calibrant.understand._contrasts import first_token


class Asked(NamedTuple):
    """One fact."""

    row: Fact
    ids: tuple[int, ...]
    """Of the prompt."""
    subject: tuple[int, int]
    """First token of the subject, and the one after its last."""
    answer: int
    """First token of the answer."""
    foil: int
    """First token of the foil; the answer's where no row has one."""
    swapped: tuple[int, ...] = ()
    """Ids with another subject; () where none was asked for or none fits."""


def ask(model: OpenLM, facts: Facts, limit: int | None, *, swap: bool, seed: int) -> list[Asked]:
    """Tokenise the facts; at most ``limit`` of them, evenly spread.

    Raises:
        InputError: fewer than two facts, an id twice, some foils only, a prompt that is too long or whose
            last turn does not name its subject once, an answer or foil without a token, or two alike.
    """
    rows = facts.rows
    if limit is not None and len(rows) > limit:
        rows = tuple(rows[i * len(rows) // limit] for i in range(limit))
    if len(rows) < 2:
        raise InputError(f"an interval needs two facts, got {len(rows)}", hint="20 or more say something")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(f"two facts are called '{row.id}'", hint="give each an id of its own")
        seen.add(row.id)
    if 0 < (bare := sum(not row.foil for row in rows)) < len(rows):
        raise InputError(f"{bare} of {len(rows)} facts have no foil", hint="give all of them one, or none")
    asked = [_ask(model, row) for row in rows]
    return [_swapped(model, one, asked, seed) for one in asked] if swap else asked


def _ask(model: OpenLM, row: Fact) -> Asked:
    whose = f"fact '{row.id}'"
    times = row.prompt.last_user.count(row.subject) if row.subject.strip() else 0
    if times != 1:
        raise InputError(
            f"{whose}: the last user turn names {row.subject!r} {times} times",
            hint="write the subject as it stands in the prompt, where it must stand once",
        )
    ids = tuple(model.prompt_ids(row.prompt))
    if model.max_length is not None and len(ids) > model.max_length:
        raise InputError(
            f"{whose} has {len(ids)} tokens, but the model's context holds {model.max_length}",
            hint="shorten the prompt; nothing is cut silently",
        )
    answer = first_token(model, whose, row.answer)
    foil = first_token(model, whose, row.foil) if row.foil else answer
    if row.foil and foil == answer:
        raise InputError(
            f"{whose}: answer and foil begin with the same token, {model.tokenizer.decode([answer])!r}",
            hint="choose a foil that differs in its first token",
        )
    return Asked(row, ids, _span(model, ids, row, whose), answer, foil)


def _span(model: OpenLM, ids: Sequence[int], row: Fact, whose: str) -> tuple[int, int]:
    """Tokens that hold the subject in the last turn, found by decoding ever longer beginnings."""
    ends = [len(_decoded(model, ids[:count])) for count in range(len(ids) + 1)]
    wanted = row.subject.strip()
    start = _place(_decoded(model, ids), row.prompt.last_user, wanted)
    held = [at for at in range(len(ids)) if ends[at] < start + len(wanted) and ends[at + 1] > start]
    if start < 0 or not held:
        raise InputError(
            f"{whose}: {row.subject!r} is not in what the tokenizer makes of the prompt",
            hint="it changes unknown words: take another subject",
        )
    return held[0], held[-1] + 1


def _place(text: str, turn: str, wanted: str) -> int:
    """Where ``wanted`` stands in the last mention of ``turn``, or by itself where that was rewritten; or -1.

    A chat template may hold the same letters.
    """
    cases = [(text, turn, wanted), (text.lower(), turn.lower(), wanted.lower())]
    for whole, inside, part in cases:
        if inside in whole:
            return whole.rfind(inside) + inside.find(part)
    return next((at for whole, _, part in cases if (at := whole.rfind(part)) >= 0), -1)


def _decoded(model: OpenLM, ids: Sequence[int]) -> str:
    text: str = model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text


def _swapped(model: OpenLM, one: Asked, all_: Sequence[Asked], seed: int) -> Asked:
    """With the ids of another subject that fits: its own, or one drawn from those of other answers."""
    others = [one.row.other] if one.row.other else []
    if not others:
        drawn = [
            it.row.subject for it in all_ if it.answer != one.answer and it.row.subject != one.row.subject
        ]
        others = list(dict.fromkeys(drawn))
        random.Random(f"{seed}/{one.row.id}").shuffle(others)
    start, stop = one.subject
    for other in others:
        *before, last = one.row.prompt.messages
        turn = last.model_copy(update={"content": last.content.replace(one.row.subject, other)})
        ids = tuple(model.prompt_ids(Chat(messages=(*before, turn))))
        beside = len(ids) == len(one.ids) and ids[:start] == one.ids[:start] and ids[stop:] == one.ids[stop:]
        if beside and ids != one.ids:
            return one._replace(swapped=ids)
    if one.row.other:
        raise InputError(
            f"fact '{one.row.id}': '{one.row.other}' does not take as many tokens as '{one.row.subject}'",
            hint="give another subject of equal length, or none, to have one drawn from the other rows",
        )
    return one
