"""JailbreakBench's artifacts (github.com/JailbreakBench/artifacts): one method against one model.

A behaviour for which the method submitted no prompt stays in, as the failure that JailbreakBench counts it
for: left out, it would raise the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrant.core import Chat, Completion, Cost, Goal, Verdict
from calibrant.core.attempt import Access
from calibrant.formats.raw import json_document, member, text, whole
from calibrant.formats.reading import Found, Reading, attempt_on, gather

_QUESTION = "did JailbreakBench's judge see a jailbreak?"
_ACCESS: dict[str, Access] = {"white_box": "weights", "black_box": "black box", "transfer": "black box"}


def read_jbb(path: Path, target: str = "") -> Reading:
    """Read an artifact.

    Raises:
        InputError: see ``gather``; or it has no 'parameters' and 'jailbreaks'.
    """
    value = json_document(path)
    about = member(value, "parameters", dict)
    rows = enumerate(member(value, "jailbreaks", list), start=1)
    return gather("jbb", path, rows, lambda row: _found(row, about), target)


def _found(row: Any, about: dict[str, Any]) -> Iterator[Found]:
    model, defence = text(about.get("model"), "model"), text(about.get("defense"), "defense")
    goal = Goal(
        id=text(member(row, "behavior", str), "behavior"),
        text=text(member(row, "goal", str), "goal"),
        category=text(row.get("category"), "category") or "uncategorised",
    )
    sent = row.get("prompt")
    yield attempt_on(
        f"{model} behind {defence}" if defence else model,
        goal,
        attack=text(about.get("method"), "method") or "jbb",
        chat=Chat(messages=()) if sent is None else Chat.ask(text(sent, "prompt")),
        completion=Completion.read(text(row.get("response"), "response")),
        verdicts={"jbb": _verdict(row.get("jailbroken"), sent is None)},
        made=row.get("index"),
        access=_ACCESS.get(str(about.get("attack_type")), "black box"),
        cost=Cost(
            queries=whole(row, "number_of_queries"),
            target_tokens=whole(row, "response_tokens"),
        ),
    )


def _verdict(jailbroken: Any, unsent: bool) -> Verdict:
    if not isinstance(jailbroken, bool):
        return Verdict(question=_QUESTION, answer="unknown", reason="the artifact does not say")
    reason = "the method submitted no prompt" if unsent else ""
    return Verdict(question=_QUESTION, answer="yes" if jailbroken else "no", reason=reason)
