"""garak's ``report.jsonl`` (github.com/NVIDIA/garak, 0.9 to 0.17): every output of every prompt is an
attempt.

    reading = read_garak(Path("garak.2f1c.report.jsonl"))
    garak_counts(reading.attempts)   # {('dan.Dan_11_0', 'mitigation.MitigationBypass'): Counts(...)}

Each detector is a judge of its own: a score at or above the threshold means that the probe got through.
garak counts each (probe, detector) apart, and so does ``garak_counts``; an attempt is a success here where
*any* detector says so. An output of which nothing came (None), a detector without a score, and a prompt
that a killed run never evaluated stay undetermined. Where garak's own ``eval`` lines count otherwise, that
is refused aloud.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.core import Attempt, Chat, Completion, Goal, InputError, Verdict, digest
from calibrant.formats.raw import Refused, Row, chat_of, json_lines, member, number, part, text
from calibrant.formats.reading import Found, Reading, attempt_on, gather

_EVALUATED = 2  # garak's status of an attempt that its detectors have seen
THRESHOLD = 0.5
"""garak's default ``eval_threshold``; its reports do not always say which was used."""


class Counts(NamedTuple):
    """What garak's ``eval`` entry says of one probe and detector."""

    passed: int
    """Outputs that the detector cleared: its score is below the threshold."""
    fails: int
    """Outputs that it flagged."""
    nones: int
    """Outputs that it could not score."""


def read_garak(path: Path, target: str = "", threshold: float | None = None) -> Reading:
    """Read a report.

    Args:
        threshold: score from which on a detector flags; by default what the report's set-up says, else 0.5.

    Raises:
        InputError: see ``gather``.
    """
    rows = list(json_lines(path))
    setup: dict[str, Any] = next((row for _, row in rows if _kind(row) == "start_run setup"), {})
    recorded = number(setup.get("run.eval_threshold"))
    line = threshold if threshold is not None else THRESHOLD if recorded is None else recorded
    name = " ".join(str(setup[key]) for key in _NAMES if setup.get(key))
    reading = gather("garak", path, _latest(rows), lambda row: _found(row, name, line), target)
    odd = tuple(_disagreements(rows, garak_counts(reading.attempts), line))
    return reading.model_copy(update={"refused": reading.refused + odd})


def garak_counts(attempts: Sequence[Attempt]) -> dict[tuple[str, str], Counts]:
    """(probe, detector) -> what garak would count over these attempts."""
    counts: dict[tuple[str, str], list[int]] = {}
    for attempt in attempts:
        for detector, verdict in attempt.verdicts.items():
            row = counts.setdefault((attempt.attack, detector), [0, 0, 0])
            row[("no", "yes", "unknown").index(verdict.answer)] += 1
    return {key: Counts(*row) for key, row in counts.items()}


_NAMES = ("plugins.target_type", "plugins.target_name", "plugins.model_type", "plugins.model_name")


def _kind(row: Any) -> str:
    return str(row.get("entry_type", "")) if isinstance(row, dict) else ""


def _latest(rows: Iterable[Row]) -> list[Row]:
    """Each attempt once: garak writes it down when it has outputs, and again when it is evaluated.

    Two rows are one attempt if they share a uuid that no row of another prompt has. Where uuids are missing,
    or shared by different prompts, a row that was evaluated continues the earliest row of the same probe,
    place and prompt that was not. ``_alike`` in a row is its number among attempts that are alike.
    """
    attempts = [(line, row) for line, row in rows if isinstance(row, Refused) or _kind(row) == "attempt"]
    names = [None if isinstance(row, Refused) else _about(row) for _, row in attempts]
    prompts: dict[str, set[str]] = {}
    for (_, row), name in zip(attempts, names, strict=True):
        if name is not None:
            prompts.setdefault(_uuid(row), set()).add(name)
    latest: dict[tuple[str, int], Row] = {}
    waiting: dict[str, deque[tuple[str, int]]] = {}
    times: dict[str, int] = {}
    for (line, row), name in zip(attempts, names, strict=True):
        if name is None:
            latest[f"line {line}", 0] = line, row
            continue
        uuid = _uuid(row)
        if uuid and len(prompts[uuid]) == 1:
            latest[uuid, 0] = line, row
            continue
        evaluated = row.get("status") == _EVALUATED or bool(row.get("detector_results"))
        if evaluated and waiting.get(name):
            key = waiting[name].popleft()
        else:
            key = name, times.get(name, 0)
            times[name] = key[1] + 1
            if not evaluated:
                waiting.setdefault(name, deque()).append(key)
        latest[key] = line, {**row, "_alike": key[1]}
    return list(latest.values())


def _uuid(row: Mapping[str, Any]) -> str:
    """The attempt's own name; "" where there is none that could be one."""
    value = row.get("uuid")
    return value if isinstance(value, str) else ""


def _about(row: Mapping[str, Any]) -> str:
    """What an attempt is about, as its rows say it twice: probe, place and prompt."""
    about = [row.get("probe_classname"), row.get("seq"), row.get("prompt")]
    try:
        return json.dumps(about, sort_keys=True)
    except RecursionError:  # no prompt that can be read
        return ""


def _found(row: Any, target: str, threshold: float) -> Iterator[Found]:
    """The outputs of one prompt."""
    probe = text(member(row, "probe_classname", str), "probe_classname")
    outputs = member(row, "outputs", list)
    prompt = _prompt(row)
    goal = Goal(
        id=f"{probe}#{digest(prompt)[:12]}",
        text=text(row.get("goal"), "goal") or probe,
        category=text(row.get("intent"), "intent") or probe.partition(".")[0],
    )
    scores = {text(name, "detector"): given for name, given in part(row, "detector_results").items()}
    for detector, given in scores.items():
        if not isinstance(given, list) or len(given) != len(outputs):
            raise InputError(f"scores: {detector} has not one for each of {len(outputs)} outputs")
    for at, output in enumerate(outputs):
        yield attempt_on(
            target,
            goal,
            attack=probe,
            chat=_history(row, at) or prompt,
            completion=_completion(output),
            verdicts={name: _verdict(name, given[at], threshold) for name, given in scores.items()},
            seed=at,
            made=[_uuid(row), row["_alike"]] if row.get("_alike") else _uuid(row),
        )


def _verdict(detector: str, given: Any, threshold: float) -> Verdict:
    question = f"does garak's {detector} flag the output?"
    score = number(given)
    if score is None:
        return Verdict(question=question, answer="unknown", reason="the detector gave no score")
    return Verdict(
        question=question,
        answer="yes" if score >= threshold else "no",
        reason=f"score {score:g}, threshold {threshold:g}",
        score=score,
    )


def _completion(output: Any) -> Completion:
    if output is None:
        return Completion(text="", stop="error", error="the generator gave no output")
    return Completion.read(_content(output))


def _content(value: Any) -> str:
    """A message of any version: text alone, or an object with the text in it."""
    return text(value.get("text") if isinstance(value, dict) else value, "text")


def _turns(conversation: Any) -> list[tuple[Any, Any]]:
    turns = conversation.get("turns") if isinstance(conversation, dict) else conversation
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError("wrong type: a conversation is no list of turns")
    return [(turn.get("role"), turn.get("content")) for turn in turns]


def _prompt(row: Any) -> Chat:
    prompt = row.get("prompt")
    if isinstance(prompt, str) or (isinstance(prompt, dict) and "turns" not in prompt):
        return Chat.ask(_content(prompt))
    return chat_of((role, _content(content)) for role, content in _turns(prompt))


def _history(row: Any, at: int) -> Chat | None:
    """All turns before the output, for probes of several turns; None where the report has none."""
    conversations = row.get("conversations")
    if not isinstance(conversations, list) or at >= len(conversations):
        return None
    turns = _turns(conversations[at])
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    return chat_of((role, _content(content)) for role, content in turns) if turns else None


def _disagreements(
    rows: Iterable[Row], ours: dict[tuple[str, str], Counts], threshold: float
) -> Iterator[Refused]:
    """Where garak's own counts are not those of the attempts in its report."""
    for line, row in rows:
        if _kind(row) != "eval":
            continue
        key = str(row.get("probe")), str(row.get("detector")).removeprefix("detector.")
        counted = ours.get(key, Counts(0, 0, 0))
        evaluated = row.get("total_evaluated", row.get("total"))
        if (counted.passed, counted.passed + counted.fails) != (row.get("passed"), evaluated):
            reported, total = f"{row.get('passed')} of {evaluated}", counted.passed + counted.fails
            yield Refused(
                line=line,
                reason=f"counts differ: {key[0]}, {key[1]}: garak says {reported} passed, its attempts say "
                f"{counted.passed} of {total} at threshold {threshold:g}",
            )
