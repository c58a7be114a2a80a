"""What every reader of another tool's file shares: rows are taken, or refused with their line and the
reason.

A reader is a shape: a function from one row to the attempts in it. ``gather`` runs it over a file and keeps
the account. What a tool does not say stays unknown: nothing here turns an error or a missing label into a
failure of the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from calibrant.core import (
    Attempt,
    Chat,
    Completion,
    Cost,
    Frozen,
    Goal,
    InputError,
    Verdict,
    attempt_id,
    digest,
    outcome_of,
)
from calibrant.core.attempt import Access, Outcome
from calibrant.core.errors import nearest
from calibrant.formats.raw import Refused, Row, number

_ALIKE = 100
"""Attempts under one id that a further one is compared with."""


class Reading(Frozen):
    """What a file of another tool holds."""

    tool: str
    """'garak', 'pyrit', ..."""
    source: str
    """Where it was read from."""
    target: str = ""
    """Whom the attempts were made on, in the tool's words; "" where the file does not say."""
    attempts: tuple[Attempt, ...] = ()
    """In the order of the file."""
    goals: tuple[Goal, ...] = ()
    """What they were after, each once: the goal of an attempt is found by its ``goal_id``."""
    refused: tuple[Refused, ...] = ()
    """Every row that was not taken."""


class Found(NamedTuple):
    """One attempt of a row, with what an ``Attempt`` has no place for."""

    target: str
    goal: Goal
    attempt: Attempt


def gather(
    tool: str, path: Path, rows: Iterable[Row], shape: Callable[[Any], Iterable[Found]], target: str = ""
) -> Reading:
    """Shape every row of a file of one target.

    Args:
        target: take only the attempts on this one; needed where a file holds those on several.

    Raises:
        InputError: nothing can be taken, or the attempts are on several targets and none was named.
    """
    taken: list[Found] = []
    refused: list[Refused] = []
    held: dict[str, list[tuple[int, Attempt]]] = {}
    for line, row in rows:
        try:
            if isinstance(row, Refused):
                raise InputError(row.reason)
            for attempt in list(shape(row)):  # a row is taken as a whole
                taken.append(_told_apart(attempt, line, held))
        except InputError as error:
            refused.append(Refused(line=line, reason=error.message))
        except ValidationError as error:
            refused.append(Refused(line=line, reason=_first(error)))
        except RecursionError:
            refused.append(Refused(line=line, reason="nested too deeply: lists or objects without end"))
    if not taken:
        raise _useless(tool, path, refused)
    chosen = _one_target(tool, path, taken, target)
    return Reading(
        tool=tool,
        source=str(path),
        target=chosen[0].target,
        attempts=tuple(attempt.attempt for attempt in chosen),
        goals=tuple({attempt.goal.id: attempt.goal for attempt in chosen}.values()),
        refused=tuple(refused),
    )


def _told_apart(one: Found, line: int, held: dict[str, list[tuple[int, Attempt]]]) -> Found:
    """The attempt under an id of its own: another tool's ids may be the same for all rows, or missing.

    Raises:
        InputError: an earlier row holds the very same attempt.
    """
    own = one.attempt
    alike = held.setdefault(own.id, [])
    for before, other in alike[:_ALIKE]:
        if (other.chat, other.completion, other.verdicts) == (own.chat, own.completion, own.verdicts):
            raise InputError(f"duplicate: the same attempt as in line {before}")
    alike.append((line, own))
    if len(alike) == 1:
        return one
    again = digest({"attempt": own.id, "again": len(alike)})
    return one._replace(attempt=own.model_copy(update={"id": again}))


def counts_differ(line: int, totals: Mapping[str, tuple[Any, float]]) -> Iterator[Refused]:
    """What a file's own totals say otherwise than its rows: name -> (the total as written, that of the rows).

    A total that is absent or no number says nothing.
    """
    for name, (written, counted) in totals.items():
        total = number(written)
        if total is not None and abs(total - counted) > 1e-9 * max(1.0, abs(counted)):
            yield Refused(
                line=line,
                reason=f"counts differ: '{name}' is {total:,.10g} in the file, {counted:,.10g} in its rows",
            )


def attempt_on(
    target: str,
    goal: Goal,
    *,
    attack: str,
    chat: Chat,
    completion: Completion,
    verdicts: Mapping[str, Verdict],
    seed: int = 0,
    made: object = None,
    access: Access = "black box",
    human: bool | None = None,
    cost: Cost = Cost(queries=1),
) -> Found:
    """An attempt in our words. ``made`` is what tells it from others with the same goal, attack and seed."""
    return Found(
        target,
        goal,
        Attempt(
            id=attempt_id(goal.id, attack, made, target, seed),
            goal_id=goal.id,
            category=goal.category,
            attack=attack,
            family=FAMILIES.get(attack.partition(".")[0].lower(), ""),
            access=access,
            seed=seed,
            chat=chat,
            completion=completion,
            verdicts=dict(verdicts),
            outcome=outcome(completion, verdicts),
            human=human,
            cost=cost,
        ),
    )


def outcome(completion: Completion, verdicts: Mapping[str, Verdict]) -> Outcome:
    """Success where any judge says yes; failure where all say no; else undetermined (C6)."""
    answers = {verdict.answer for verdict in verdicts.values()} or {"unknown"}
    answer = next(word for word in ("yes", "unknown", "no") if word in answers)
    return outcome_of(completion, Verdict.model_validate({"question": "any judge", "answer": answer}))


def _one_target(tool: str, path: Path, taken: list[Found], wanted: str) -> list[Found]:
    """The attempts on one target: rates over several models would be about none of them."""
    names = list(dict.fromkeys(one.target for one in taken))
    if not wanted and len(names) == 1:
        return taken
    if wanted in names:
        return [one for one in taken if one.target == wanted]
    shown = ", ".join(names[:10])
    if wanted:
        raise InputError(
            f"{path}: no attempt on '{wanted}'{nearest(wanted, names)}", hint=f"targets: {shown}"
        )
    raise InputError(
        f"{path} holds attempts on {len(names)} targets: {shown}",
        hint=f"name one: {tool}:{path}#{names[0]}",
    )


def _useless(tool: str, path: Path, refused: list[Refused]) -> InputError:
    if not refused:
        return InputError(f"{path} holds no attempts of {tool}", hint="is it that tool's file of results?")
    first = refused[0]
    return InputError(
        f"{path}: none of {len(refused)} rows is an attempt of {tool}; line {first.line}: {first.reason}",
        hint=f"is it {tool}'s file of results? docs/formats.md says what is read",
    )


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"no attempt: '{where}': {problem['msg'].lower()}"


FAMILIES: dict[str, str] = {
    "plain": "plain", "basic": "plain", "directrequest": "plain", "promptsendingattack": "plain",
    "lmrc": "plain", "donotanswer": "plain",
    "base64": "transform", "rot13": "transform", "leetspeak": "transform", "hex": "transform",
    "homoglyph": "transform", "morse": "transform", "encoding": "transform", "smuggling": "transform",
    "badchars": "transform", "flipattack": "transform",
    "dan": "persona", "grandma": "persona", "jbc": "persona", "humanjailbreaks": "persona",
    "jailbreak": "persona", "roleplayattack": "persona", "jailbreak-templates": "persona",
    "manyshotjailbreakattack": "many-shot",
    "best-of-n": "search", "prompt_with_random_search": "search", "autodan": "search",
    "pair": "LM-made", "tap": "LM-made", "treeofattackswithpruningattack": "LM-made", "pairattack": "LM-made",
    "atkgen": "LM-made", "zeroshot": "LM-made", "jailbreak:tree": "LM-made", "jailbreak:composite": "LM-made",
    "crescendo": "multi-turn", "crescendoattack": "multi-turn", "redteamingattack": "multi-turn",
    "goat": "multi-turn", "fitd": "multi-turn",
    "gcg": "gradient", "suffix": "gradient", "autoprompt": "gradient", "gbda": "gradient",
}  # fmt: skip
"""Other tools' names of an attack, in lower case -> technique family. What is not here has none."""
