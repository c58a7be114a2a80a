"""JailbreakBench's artifacts (github.com/JailbreakBench/artifacts): one method against one model.

A behaviour for which the method submitted no prompt stays in, as the failure that JailbreakBench counts it
for: left out, it would raise the rate. The head of an artifact has totals: where they are not those of the
rows, that is refused aloud. Some artifacts write the limit of queries into every row; where the total is
that of ``queries_to_jailbreak`` instead, those are the cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrant.core import Chat, Completion, Cost, Goal, Verdict
from calibrant.core.attempt import Access
from calibrant.formats.raw import Refused, json_document, member, number, text, whole
from calibrant.formats.reading import Found, Reading, attempt_on, counts_differ, gather

_QUESTION = "did JailbreakBench's judge see a jailbreak?"
_QUERIES = "number_of_queries"
_ROUNDED = 0.0051
"""A rate may be written with two decimals."""
_ACCESS: dict[str, Access] = {"white_box": "weights", "black_box": "black box", "transfer": "black box"}


def read_jbb(path: Path, target: str = "") -> Reading:
    """Read an artifact.

    Raises:
        InputError: see ``gather``; or it has no 'parameters' and 'jailbreaks'.
    """
    value = json_document(path)
    about = member(value, "parameters", dict)
    rows = member(value, "jailbreaks", list)
    cost = _cost(about, rows)
    reading = gather("jbb", path, enumerate(rows, start=1), lambda row: _found(row, about, cost), target)
    odd = tuple(_disagreements(about, rows))
    return reading.model_copy(update={"refused": reading.refused + odd})


def _sum(rows: list[Any], name: str) -> float | None:
    """The sum of a column; None where a row has no number there."""
    numbers = [number(row.get(name)) if isinstance(row, Mapping) else None for row in rows]
    return None if None in numbers else sum(one for one in numbers if one is not None)


def _cost(about: Mapping[str, Any], rows: list[Any]) -> str:
    """The column that adds up to the head's total of queries: what was asked, not what might have been."""
    total, other = number(about.get("total_number_of_queries")), _sum(rows, "queries_to_jailbreak")
    fits = total is not None and total != _sum(rows, _QUERIES) and total == other
    return "queries_to_jailbreak" if fits else _QUERIES


def _disagreements(about: Mapping[str, Any], rows: list[Any]) -> Iterator[Refused]:
    """Where the head's totals are not those of the rows."""
    own = [row for row in rows if isinstance(row, Mapping)]
    reached = sum(row.get("jailbroken") is True for row in own)
    totals: dict[str, tuple[Any, float]] = {
        "total_number_of_jailbreaks": (about.get("total_number_of_jailbreaks"), reached),
        "number_of_submitted_prompts": (
            about.get("number_of_submitted_prompts"),
            sum(row.get("prompt") is not None for row in own),
        ),
    }
    sums = {
        "total_number_of_queries": _QUERIES,
        "total_prompt_tokens": "prompt_tokens",
        "total_response_tokens": "response_tokens",
    }
    for total, column in sums.items():
        counted = _sum(rows, column)
        if counted is not None:
            totals[total] = about.get(total), counted
    rate = number(about.get("attack_success_rate"))
    if rate is not None and rows and abs(rate - reached / len(rows)) > _ROUNDED:
        totals["attack_success_rate"] = rate, round(reached / len(rows), 4)
    yield from counts_differ(1, totals)


def _found(row: Any, about: dict[str, Any], cost: str) -> Iterator[Found]:
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
            queries=whole(row, cost),
            target_tokens=whole(row, "response_tokens"),
        ),
    )


def _verdict(jailbroken: Any, unsent: bool) -> Verdict:
    if not isinstance(jailbroken, bool):
        return Verdict(question=_QUESTION, answer="unknown", reason="the artifact does not say")
    reason = "the method submitted no prompt" if unsent else ""
    return Verdict(question=_QUESTION, answer="yes" if jailbroken else "no", reason=reason)
