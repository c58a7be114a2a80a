"""Answers to questions with a known answer (``measure.capability``) as an Inspect log: a sample a question.

    read_eval_log("answers.eval").samples[0].scores["correct"].value   # 1.0, 0.0, or NaN: unscored

A question without an answer is a sample that ended in an error, and its score is Inspect's *unscored*.
"""

from __future__ import annotations

from datetime import UTC, datetime, time

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
)
from inspect_ai.model import ChatMessageAssistant, ModelOutput
from inspect_ai.scorer import Score
from pydantic import Field

from calibrant import __version__
from calibrant.core import Chat, Estimate, Frozen, digest
from calibrant.formats.inspect_log import NO_MODEL, TURNS, packed
from calibrant.formats.redact import cover

CORRECT = "correct"
"""Name of the score."""
_LOST = "no answer: the model failed, or was still reasoning"


class Answer(Frozen):
    """One question with its reply."""

    id: str
    """The item's id."""
    chat: Chat
    """The question."""
    answer: str
    """The right answer."""
    reply: str
    """What the model said."""
    correct: bool | None
    """None where there was no answer to mark."""
    kind: str = ""
    """The item's kind."""
    match: str = "exact"
    """How the reply was compared."""


class AnswerReport(Frozen):
    """All that is written; texts are covered unless ``reveal``."""

    answers: tuple[Answer, ...]
    """In their order."""
    target: str
    """Name of the model."""
    source: str = ""
    """Where they come from: 'record:tax/answers.jsonl'."""
    identity: str = ""
    """Digest of the model's identity."""
    dataset: str = ""
    """Digest of the items."""
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """The measurement's own estimates, with their intervals."""
    caveats: tuple[str, ...] = ()
    """What the numbers do not show."""
    made: datetime | None = None
    """When; given, so that equal input is an equal log."""
    reveal: bool = False
    """True shows questions and replies."""


def inspect_answers(report: AnswerReport) -> bytes:
    """The log as the bytes of an .eval file."""
    name = digest([report.source, report.identity, report.dataset])[:22]
    made = report.made or datetime.combine(datetime.now(UTC).date(), time(), UTC)
    ids: list[str] = [answer.id for answer in report.answers]
    lost = sum(answer.correct is None for answer in report.answers)
    return packed(
        EvalLog(
            status="success",
            eval=EvalSpec(
                eval_id=name,
                run_id=name,
                task_id=name,
                created=made.isoformat(timespec="seconds"),
                task="calibrant_capability",
                task_display_name=report.source or "answers",
                dataset=EvalDataset(name=report.source or "items", samples=len(ids), sample_ids=ids),
                model=NO_MODEL,
                config=EvalConfig(),
                packages={"calibrant": __version__},
                metadata={
                    "target": report.target,
                    "target_digest": report.identity,
                    "items_digest": report.dataset,
                    "revealed": report.reveal,
                    "caveats": list(report.caveats),
                },
            ),
            results=EvalResults(
                total_samples=len(ids),
                completed_samples=len(ids) - lost,
                scores=[_estimate(key, value) for key, value in report.metrics.items()],
            ),
            samples=_samples(report),
        )
    )


def _estimate(name: str, found: Estimate) -> EvalScore:
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return EvalScore(
        name=name,
        scorer=CORRECT,
        scored_samples=found.n - found.missing,
        unscored_samples=found.missing,
        metrics={key: EvalMetric(name=key, value=end) for key, end in numbers.items() if end is not None},
        metadata=found.model_dump(mode="json"),
    )


def _samples(report: AnswerReport) -> list[EvalSample]:
    shown = str if report.reveal else cover
    samples = []
    for one in report.answers:
        messages = [TURNS[turn.role](content=shown(turn.content)) for turn in one.chat.messages]
        reply = shown(one.reply)
        if one.correct is None:
            score = Score.unscored(reason="no_response", explanation=_LOST)
        else:
            score = Score(value=float(one.correct), answer=reply)
        samples.append(
            EvalSample(
                id=one.id,
                epoch=1,
                input=messages,
                target=shown(one.answer),
                messages=[*messages, ChatMessageAssistant(content=reply, model=report.target)],
                output=ModelOutput.from_content(report.target, reply),
                scores={CORRECT: score},
                metadata={"kind": one.kind, "match": one.match},
                error=None
                if one.correct is not None
                else EvalError(message=_LOST, traceback="", traceback_ansi=""),
            )
        )
    return samples


def _no_answer() -> EvalError:
    return EvalError(message=_LOST, traceback="", traceback_ansi="")
