"""What every reader of another tool's file shares: rows are taken, or refused with their line and the
reason.

A reader is a shape: a function from one row to the attempts in it. ``gather`` runs it over a file and keeps
the account. What a tool does not say stays unknown: nothing here turns an error or a missing label into a
failure of the attack.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pydantic import ValidationError

from calibrant.core import (
    Attempt,
    Chat,
    Completion,
    Cost,
    Frozen,
    Goal,
    InputError,
    Message,
    Verdict,
    attempt_id,
    outcome_of,
)
from calibrant.core.attempt import Access, Outcome
from calibrant.core.errors import nearest

_RECODE = "save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8"
_SAFE = 2**53
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class Refused(Frozen):
    """A row that was not taken, or one whose account does not add up, and why."""

    line: int
    """Line number in the file (1 = first), or row number where a file has no lines."""
    reason: str
    """In words."""


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


Row: TypeAlias = tuple[int, Any]
"""Line and value; the value is ``Refused`` where the line could not be read."""


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
    lines: dict[str, int] = {}
    for line, row in rows:
        try:
            if isinstance(row, Refused):
                raise InputError(row.reason)
            for found in list(shape(row)):  # a row is taken as a whole
                if found.attempt.id in lines:
                    raise InputError(f"duplicate: the same attempt as in line {lines[found.attempt.id]}")
                lines[found.attempt.id] = line
                taken.append(found)
        except InputError as error:
            refused.append(Refused(line=line, reason=error.message))
        except ValidationError as error:
            refused.append(Refused(line=line, reason=_first(error)))
    if not taken:
        raise _useless(tool, path, refused)
    chosen = _one_target(tool, path, taken, target)
    return Reading(
        tool=tool,
        source=str(path),
        target=chosen[0].target,
        attempts=tuple(found.attempt for found in chosen),
        goals=tuple({found.goal.id: found.goal for found in chosen}.values()),
        refused=tuple(refused),
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


def read_bytes(path: Path) -> bytes:
    """The file without a byte order mark.

    Raises:
        InputError: missing, a folder, unreadable, empty, or in UTF-16 or UTF-32.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {(error.strerror or type(error).__name__).lower()}",
            hint="check its name and permissions",
        ) from error
    if not data.strip():
        raise InputError(f"{path} is empty", hint="was it written to the end? Fetch or make it again")
    if data.startswith(_OTHER_MARKS):
        raise InputError(f"{path} is UTF-16 or UTF-32 text, not UTF-8", hint=_RECODE)
    return data.removeprefix(codecs.BOM_UTF8)


def json_lines(path: Path) -> Iterator[Row]:
    """Each object of a file of JSON lines; a line that is none comes as ``Refused``."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield number, Refused(line=number, reason=f"not UTF-8: byte {error.start + 1} of the line")
        except (ValueError, RecursionError) as error:
            yield number, Refused(line=number, reason=f"malformed JSON: {error}")
        else:
            object_of_it = isinstance(value, dict)
            yield number, value if object_of_it else Refused(line=number, reason="not an object")


def json_document(path: Path) -> Any:
    """The value of a file that is one JSON document.

    Raises:
        InputError: not UTF-8, or malformed (cut short, say); the message names the place.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start + 1}", hint=_RECODE) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: malformed JSON: {error}", hint="was it written to the end? Fetch or make it again"
        ) from error


def text(value: Any, name: str) -> str:
    """A text that UTF-8 can hold; None is "".

    Raises:
        InputError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"wrong type: '{name}' must be text, got {type(value).__name__}")
    return value.encode("utf-8", "replace").decode()  # a reply may hold half of a surrogate pair


def member(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """The member ``name`` of an object, which must be there and of this kind."""
    if not isinstance(row, Mapping):
        raise InputError(f"wrong type: expected an object, got {type(row).__name__}")
    if name not in row:
        raise InputError(f"missing: no '{name}'{nearest(name, map(str, row))}")
    if not isinstance(row[name], kind):
        raise InputError(f"wrong type: '{name}' is {type(row[name]).__name__}")
    return row[name]


def part(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside a row that may be absent or null: then it is empty."""
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"wrong type: '{name}' is {type(value).__name__}, not an object")
    return value


def number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def whole(row: Mapping[str, Any], name: str) -> int:
    """A count that may be absent or null: then it is 0."""
    given = row.get(name)
    found = 0.0 if given is None else number(given)
    if found is None or not 0 <= found < _SAFE:
        raise InputError(f"wrong type: '{name}' is no count: {str(given)[:20]!r}")
    return int(found)


def chat_of(turns: Iterable[tuple[Any, Any]]) -> Chat:
    """A chat from (role, content) pairs; 'developer' is a system turn, an unknown role is refused."""
    roles = {"developer": "system", "simulated_assistant": "assistant"}
    messages = []
    for role, content in turns:
        name = roles.get(str(role), str(role))
        messages.append(Message.model_validate({"role": name, "content": text(content, "content")}))
    return Chat(messages=tuple(messages))


def _one_target(tool: str, path: Path, taken: list[Found], wanted: str) -> list[Found]:
    """The attempts on one target: rates over several models would be about none of them."""
    names = list(dict.fromkeys(found.target for found in taken))
    if not wanted and len(names) == 1:
        return taken
    if wanted in names:
        return [found for found in taken if found.target == wanted]
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
