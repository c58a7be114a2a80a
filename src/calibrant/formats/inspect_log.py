"""An Inspect evaluation log (inspect.aisi.org.uk, log version 2), for its viewer and its tools.

    read_eval_log("attempts.eval").samples[0].scores["attack_success"].value   # 1.0 = the attack succeeded

The log names no model that Inspect could open: ``eval.model`` is 'none/none', so that its viewer and
`inspect score` need none of our providers, and ``eval.metadata["target"]`` says whom it is about.

One sample an attempt: ``id`` is the goal, ``epoch`` counts the attempts on it. ``attack_success`` is our
outcome; an undetermined one is Inspect's *unscored* (NaN), so that its metrics leave it out, too. Every
judge has a score of its own beside it. The results hold our rates with their bounds, a score a finding.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from datetime import UTC, datetime, time
from pathlib import Path

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentReasoning,
    ContentText,
    ModelOutput,
    StopReason,
)
from inspect_ai.scorer import Score

from calibrant import __version__
from calibrant.core import Attempt, Completion, Verdict, digest
from calibrant.formats.findings import Finding, Report

SCORE = "attack_success"
"""Name of the score that is our outcome."""
NO_MODEL = "none/none"
"""Inspect's own name for no model."""
_VALUES = {"success": 1.0, "failure": 0.0, "yes": 1.0, "no": 0.0}
_STOPS: dict[str, StopReason] = {"eos": "stop", "length": "max_tokens", "blocked": "content_filter"}
TURNS = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def inspect_log(report: Report) -> bytes:
    """The log as the bytes of an .eval file."""
    return packed(
        EvalLog(
            status="success",
            eval=_spec(report),
            results=_results(report),
            samples=_samples(report),
        )
    )


def packed(log: EvalLog) -> bytes:
    """A log as Inspect writes it."""
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "log.eval"
        write_eval_log(log, str(path), format="eval")
        return path.read_bytes()


def _spec(report: Report) -> EvalSpec:
    name = digest([report.source, report.target, [attempt.id for attempt in report.attempts]])[:22]
    made = datetime.now(UTC) if report.made is None else datetime.combine(report.made, time(), UTC)
    goals = list(dict.fromkeys(attempt.goal_id for attempt in report.attempts))
    return EvalSpec(
        eval_id=name,
        run_id=name,
        task_id=name,
        created=made.isoformat(timespec="seconds"),
        task="calibrant",
        task_display_name=report.source or "attempts",
        dataset=EvalDataset(name=report.source or "attempts", samples=len(goals), sample_ids=list(goals)),
        model=NO_MODEL,
        config=EvalConfig(),
        packages={"calibrant": __version__},
        metadata={
            "target": report.target or "unknown",
            "revealed": report.reveal,
            "caveats": list(report.caveats),
        },
    )


def _results(report: Report) -> EvalResults:
    return EvalResults(
        total_samples=len(report.attempts),
        completed_samples=sum(attempt.completion.stop != "error" for attempt in report.attempts),
        scores=[_rate(finding) for finding in report.findings],
    )


def _rate(finding: Finding) -> EvalScore:
    """A finding's rate; a number that is not known is left out, with the reason beside it."""
    rate = finding.estimate
    numbers = {"attack_success_rate": rate.value, "low": rate.low, "high": rate.high}
    return EvalScore(
        name=finding.rule,
        scorer=SCORE,
        scored_samples=rate.n - rate.missing,
        unscored_samples=rate.missing,
        metrics={
            name: EvalMetric(name=name, value=value) for name, value in numbers.items() if value is not None
        },
        metadata={"tags": list(finding.tags), "family": finding.family, **rate.model_dump(mode="json")},
    )


def _samples(report: Report) -> list[EvalSample]:
    epochs: Counter[str] = Counter()
    samples = []
    for attempt in report.attempts:
        epochs[attempt.goal_id] += 1
        samples.append(_sample(attempt, epochs[attempt.goal_id], report.target or "unknown"))
    return samples


def _sample(attempt: Attempt, epoch: int, model: str) -> EvalSample:
    messages: list[ChatMessage] = [TURNS[turn.role](content=turn.content) for turn in attempt.chat.messages]
    completion = attempt.completion
    reply = _content(completion)
    output = ModelOutput.from_content(
        model, reply, _STOPS.get(completion.stop, "unknown"), error=completion.error
    )
    return EvalSample(
        id=attempt.goal_id,
        epoch=epoch,
        input=messages,
        target="",
        messages=[*messages, ChatMessageAssistant(content=reply, model=model)],
        output=output,
        scores={SCORE: _outcome(attempt)} | {name: _score(reply) for name, reply in attempt.verdicts.items()},
        metadata={
            "attempt": attempt.id,
            "attack": attempt.attack,
            "family": attempt.family,
            "category": attempt.category,
            "access": attempt.access,
            "parent": attempt.parent,
            "degraded": attempt.degraded,
            "human": attempt.human,
            "stop": completion.stop,
            "cost": attempt.cost.model_dump(),
        },
        total_time=attempt.cost.seconds,
        error=_error(completion),
        uuid=attempt.id[:22],
    )


def _error(completion: Completion) -> EvalError | None:
    if completion.stop != "error":
        return None
    return EvalError(message=completion.error or "no reason given", traceback="", traceback_ansi="")


def _content(completion: Completion) -> str | list[Content]:
    """The reply, with the reasoning before it as a part of its own."""
    if completion.reasoning is None:
        return completion.text
    return [ContentReasoning(reasoning=completion.reasoning), ContentText(text=completion.text)]


def _outcome(attempt: Attempt) -> Score:
    if attempt.outcome not in _VALUES:
        return Score.unscored(reason="no_response" if attempt.completion.stop == "error" else "grader_failed")
    return Score(value=_VALUES[attempt.outcome])


def _score(verdict: Verdict) -> Score:
    if verdict.answer not in _VALUES:
        return Score.unscored(reason="grader_failed", explanation=verdict.reason)
    return Score(
        value=_VALUES[verdict.answer],
        explanation=verdict.reason,
        metadata={"question": verdict.question, "score": verdict.score},
    )
