"""promptfoo's red-team results (promptfoo.dev, file versions 2 and 3): ``promptfoo eval -o results.json``,
or .jsonl.

A red-team row *passes* where the target held; a failed assertion is a success of the attack. An error, of
target or grader, wherever in the row it stands, is undetermined, though promptfoo counts it beside the
failures. Rows without a plug-in are ordinary tests and are refused. Where promptfoo's own totals count
otherwise, that is refused aloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrant.core import Chat, Completion, Cost, Goal, InputError, Verdict, digest
from calibrant.formats.raw import (
    Refused,
    chat_of,
    json_document,
    json_lines,
    member,
    number,
    part,
    text,
    whole,
)
from calibrant.formats.reading import Found, Reading, attempt_on, counts_differ, gather

_QUESTION = "did promptfoo's grader see the target fail?"
_ERROR = 2  # ResultFailureReason.ERROR


def read_promptfoo(path: Path, target: str = "") -> Reading:
    """Read results; ``target`` is a provider's label or id, needed where several were tested.

    Raises:
        InputError: see ``gather``; or the document holds no list of results.
    """
    if path.suffix == ".jsonl":
        return gather("promptfoo", path, json_lines(path), _found, target)
    results = member(json_document(path), "results", (dict, list))
    rows = results if isinstance(results, list) else member(results, "results", list)
    reading = gather("promptfoo", path, enumerate(rows, start=1), _found, target)
    odd = () if isinstance(results, list) else tuple(_disagreements(results, rows))
    return reading.model_copy(update={"refused": reading.refused + odd})


def _disagreements(results: Mapping[str, Any], rows: list[Any]) -> Iterator[Refused]:
    """Where promptfoo's totals, of the run and of its prompts, are not those of the rows."""
    own = [row for row in rows if isinstance(row, Mapping)]
    errors = sum(row.get("failureReason") == _ERROR for row in own)
    passed = sum(row.get("success") is True for row in own)
    counts = (passed, len(own) - passed - errors, errors)
    stats = results.get("stats")
    if isinstance(stats, Mapping):
        names = ("successes", "failures", "errors")
        differing = {f"stats.{name}": (stats.get(name), n) for name, n in zip(names, counts, strict=True)}
        yield from counts_differ(1, differing)
    metrics = [one.get("metrics") for one in _objects(results.get("prompts"))]
    for name, n in zip(("testPassCount", "testFailCount", "testErrorCount"), counts, strict=True):
        totals = [number(one.get(name)) if isinstance(one, Mapping) else None for one in metrics]
        if totals and None not in totals:
            yield from counts_differ(1, {name: (sum(t for t in totals if t is not None), n)})


def _found(row: Any) -> Iterator[Found]:
    member(row, "success", bool)
    about = _metadata(row)
    plugin = text(about.get("pluginId"), "pluginId")
    if not plugin:
        raise InputError("no red-team row: it names no plug-in")
    sent = _chat(row)
    wanted = about.get("goal") or about.get("originalText") or sent.last_user
    response = part(row, "response")
    strategy = text(about.get("strategyId"), "strategyId")
    usage = part(row, "tokenUsage")
    yield attempt_on(
        _provider(row.get("provider")),
        Goal(id=f"{plugin}#{digest(wanted)[:12]}", text=text(wanted, "goal"), category=plugin),
        attack="plain" if strategy in ("", "basic") else strategy,
        chat=sent,
        completion=_completion(row, response),
        verdicts={"promptfoo": _verdict(row)},
        made=[row.get("id"), row.get("testIdx"), row.get("promptIdx")],
        cost=Cost(
            queries=whole(usage, "numRequests") or 1,
            target_tokens=whole(usage, "completion"),
            seconds=whole(row, "latencyMs") / 1000,
        ),
    )


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the row: from the grader, else the result, else the test case."""
    parts = (part(row, "testCase"), row, part(row, "gradingResult"))
    return {key: value for one in parts for key, value in part(one, "metadata").items() if value}


def _provider(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("label") or value.get("id")
    return text(value, "provider")


def _chat(row: Mapping[str, Any]) -> Chat:
    """What was sent: a multi-turn history, what the provider says that it sent, or the rendered prompt."""
    response = part(row, "response")
    about = {**part(response, "metadata"), **_metadata(row)}
    history = _objects(about.get("redteamHistory"))
    if history:
        turns = [(who, turn.get(key)) for turn in history for who, key in _SIDES]
        return chat_of(turns[:-1])
    prompt = row.get("prompt")
    raw = prompt.get("raw") if isinstance(prompt, Mapping) else prompt
    sent = response.get("prompt") or about.get("redteamFinalPrompt") or raw
    messages = _objects(_parsed(sent) if isinstance(sent, str) else sent)
    if messages and all("role" in turn for turn in messages):
        return chat_of((turn["role"], _plain(turn.get("content"))) for turn in messages)
    return Chat.ask(text(sent, "prompt"))


_SIDES = (("user", "prompt"), ("assistant", "output"))


def _parsed(sent: str) -> Any:
    """A prompt that is a list of messages in JSON, as promptfoo renders chats; None for any other text."""
    try:
        return json.loads(sent) if sent.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """A list of objects as it is; anything else as none."""
    return value if isinstance(value, list) and all(isinstance(one, Mapping) for one in value) else []


def _plain(value: Any) -> str:
    """A text, or what is none as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _completion(row: Mapping[str, Any], response: Mapping[str, Any]) -> Completion:
    error = response.get("error") or (row.get("error") if row.get("failureReason") == _ERROR else None)
    output = response.get("output")
    if error or output is None:
        return Completion(text="", stop="error", error=text(str(error or "no output"), "error"))
    return Completion.read(text(_plain(output), "output"))


def _grader_failed(results: list[Any]) -> bool:
    """Whether an error of a grader stands anywhere in what was told: an assertion has results of its own."""
    waiting = [*results]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            if one.get("graderError") or (one.get("error") and "pass" in one):
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


def _verdict(row: Mapping[str, Any]) -> Verdict:
    grading = row.get("gradingResult")
    if row.get("failureReason") == _ERROR or not isinstance(grading, Mapping):
        return Verdict(question=_QUESTION, answer="unknown", reason="nothing was graded")
    about = [part(row, "metadata"), part(part(row, "response"), "metadata")]
    if _grader_failed([grading, *about]):
        return Verdict(question=_QUESTION, answer="unknown", reason="a grader failed")
    if not isinstance(grading.get("pass"), bool) or grading["pass"] != row["success"]:
        reason = f"graded {grading.get('pass')!r:.20}, but the row's success is {row['success']}"
        return Verdict(question=_QUESTION, answer="unknown", reason=reason)
    return Verdict(
        question=_QUESTION,
        answer="no" if row["success"] else "yes",
        reason=text(grading.get("reason"), "reason"),
        score=number(grading.get("score")),
    )
