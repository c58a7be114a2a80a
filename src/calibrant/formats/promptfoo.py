"""promptfoo's red-team results (promptfoo.dev, file versions 2 and 3): ``promptfoo eval -o results.json``,
or .jsonl.

A red-team row *passes* where the target held; a failed assertion is a success of the attack. An error, of
target or grader, is undetermined, though promptfoo counts it beside the failures. Rows without a plug-in
are ordinary tests and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrant.core import Chat, Completion, Cost, Goal, InputError, Verdict, digest
from calibrant.formats.raw import Row, chat_of, json_document, json_lines, member, number, part, text, whole
from calibrant.formats.reading import Found, Reading, attempt_on, gather

_QUESTION = "did promptfoo's grader see the target fail?"
_ERROR = 2  # ResultFailureReason.ERROR


def read_promptfoo(path: Path, target: str = "") -> Reading:
    """Read results; ``target`` is a provider's label or id, needed where several were tested.

    Raises:
        InputError: see ``gather``; or the document holds no list of results.
    """
    return gather("promptfoo", path, _rows(path), _found, target)


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        yield from json_lines(path)
        return
    value = json_document(path)
    found = member(value, "results", (dict, list))
    yield from enumerate(found if isinstance(found, list) else member(found, "results", list), start=1)


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
    told = (part(row, "testCase"), row, part(row, "gradingResult"))
    return {key: value for one in told for key, value in part(one, "metadata").items() if value}


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


def _verdict(row: Mapping[str, Any]) -> Verdict:
    grading = row.get("gradingResult")
    if row.get("failureReason") == _ERROR or not isinstance(grading, Mapping):
        return Verdict(question=_QUESTION, answer="unknown", reason="nothing was graded")
    if part(grading, "metadata").get("graderError"):
        return Verdict(question=_QUESTION, answer="unknown", reason="the grader failed")
    return Verdict(
        question=_QUESTION,
        answer="no" if row["success"] else "yes",
        reason=text(grading.get("reason"), "reason"),
        score=number(grading.get("score")),
    )
