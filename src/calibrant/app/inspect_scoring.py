"""Scorers and metrics of our Inspect tasks: unscored with a typed reason, standard errors by cluster.

Inspect hands a metric only the samples that were scored. So ``mean`` is the mean of those, and the interval
is of those alone; ``measure.eval_log`` reads the log and counts the others at their worst.
"""

from __future__ import annotations

import math
from pathlib import Path

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState

from calibrant.app.inspect_batching import Batcher
from calibrant.app.inspect_provider import chat_of
from calibrant.app.references.opened import Opened
from calibrant.app.references.openers import Openers
from calibrant.core import Chat, Completion, Goal, Judge, Verdict
from calibrant.data.rows import Goals, Item, Items
from calibrant.evals.judging import verdicts
from calibrant.formats.evidence import CLUSTER
from calibrant.ledger import Ledger
from calibrant.measure.capability import mark
from calibrant.stats import mean

_Asked = tuple[Goal, Chat, Completion]


@metric
def share() -> Metric:
    """Mean of the scores, each from 0 to 1; NaN without any."""

    def measure(scores: list[SampleScore]) -> Value:
        values = [score.score.as_float() for score in scores]
        return math.fsum(values) / len(values) if values else math.nan

    return measure


@metric
def clustered_stderr() -> Metric:
    """Standard error of the mean over clusters (Miller 2024); NaN with fewer than two, never 0."""

    def measure(scores: list[SampleScore]) -> Value:
        values = [score.score.as_float() for score in scores]
        groups: dict[str, list[float]] = {}
        for name, value in zip(_clusters(scores), values, strict=True):
            groups.setdefault(name, []).append(value)
        k = len(groups)
        if k < 2:
            return math.nan
        centre = math.fsum(values) / len(values)
        squares = math.fsum(math.fsum(v - centre for v in group) ** 2 for group in groups.values())
        return math.sqrt(squares * k / (k - 1)) / len(values)

    return measure


@metric
def interval() -> Metric:
    """95 % interval of the mean, whole clusters drawn; exact where every score is 0 or 1."""

    def measure(scores: list[SampleScore]) -> Value:
        values = [score.score.as_float() for score in scores]
        found = mean(values, clusters=_clusters(scores), bounds=(0.0, 1.0), better="none", unit="sample")
        ends = (found.low, found.high)
        low, high = (math.nan if end is None else end for end in ends)
        return {"low": low, "high": high}

    return measure


def _clusters(scores: list[SampleScore]) -> list[str]:
    names = [(score.sample_metadata or {}).get(CLUSTER) for score in scores]
    lost = [score.sample_id for score, name in zip(scores, names, strict=True) if not isinstance(name, str)]
    if lost:
        raise ValueError(f"sample '{lost[0]}' has no '{CLUSTER}' in its metadata")
    return [str(name) for name in names]


@scorer(metrics=[share(), clustered_stderr(), interval()])
def judged(judge: str, goals: str, blocked: float = 0.0) -> Scorer:
    """1 where the judge says that the behaviour happened; a blocked reply scores ``blocked``.

    ``judge`` and ``goals`` are references, so that `inspect score` can make the scorer again. What the judge
    could not read is unscored.
    """
    asking: Judge = opened(judge, Judge).load()
    known: dict[str, Goal] = {goal.id: goal for goal in opened(goals, Goals).load()}

    def answer(asked: list[_Asked]) -> list[Verdict]:
        return verdicts(asking, [a[0] for a in asked], [a[1] for a in asked], [a[2] for a in asked])

    batcher: Batcher[_Asked, Verdict] = Batcher(answer)

    async def score(state: TaskState, target: Target) -> Score:
        completion = completion_of(state.output)
        if completion is None:
            return Score.unscored(reason="no_response")
        if completion.stop == "blocked":
            return Score(value=blocked, explanation="blocked")
        chat = chat_of(state.messages[:-1])
        verdict = await batcher.result((known[str(state.sample_id)], chat, completion))
        if verdict.answer == "unknown":
            reason = "no_response" if completion.unanswered else "grader_failed"
            return Score.unscored(reason=reason, answer=completion.text, explanation=verdict.reason)
        return Score(value=float(verdict.answer == "yes"), answer=completion.text, explanation=verdict.reason)

    return score


@scorer(metrics=[share(), clustered_stderr(), interval()])
def matched(items: str) -> Scorer:
    """1 where the reply holds the item's answer, as ``measure.capability`` compares it."""
    known: dict[str, Item] = {item.id: item for item in opened(items, Items).load()}

    async def score(state: TaskState, target: Target) -> Score:
        completion = completion_of(state.output)
        right = None if completion is None else mark(known[str(state.sample_id)], completion)
        if completion is None or right is None:
            return Score.unscored(reason="no_response")
        return Score(value=float(right), answer=completion.text)

    return score


def opened(reference: str, wanted: type) -> Opened:
    """What a reference leads to; records are those of the folder ``.calibrant``."""
    return Openers(Ledger(Path(".calibrant"))).open(reference, wanted)


def completion_of(output: ModelOutput) -> Completion | None:
    """The reply as ours; None where there is none."""
    if not output.choices:
        return None
    stop = {"content_filter": "blocked", "max_tokens": "length", "model_length": "length"}
    return Completion.read(output.completion, stop=stop.get(output.stop_reason, "eos"))
