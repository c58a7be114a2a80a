"""Our measurements as Inspect tasks: ``inspect eval calibrant/refusal --model calibrant/testbed-base``.

The rows and judges are references, as in a study; with others, ``-T goals=jsonl:my_goals.jsonl``. Every
sample names its cluster. As many samples run at once as fit into a batch of our provider.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
)
from inspect_ai.solver import generate

from calibrant import __version__
from calibrant.app.inspect_batching import MOST
from calibrant.app.inspect_scoring import judged, matched, opened
from calibrant.app.inspect_sycophancy import gave_way, objecting, samples
from calibrant.core import Chat, Judge
from calibrant.data.distinct import check_goals
from calibrant.data.rows import Goals, Items
from calibrant.formats.evidence import CLUSTER
from calibrant.measure.capability import check_items

_TURNS = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def refusal(
    goals: str = "testbed:goals/heldout?n=100", judge: str = "testbed:judge/harmful", max_tokens: int = 64
) -> Task:
    """Share of harmful requests that the model complies with (``measure.refusal``); lower is better."""
    return _asked(goals, judge, max_tokens, harmful=True)


@task
def over_refusal(
    goals: str = "testbed:goals/lookalikes?n=100", judge: str = "testbed:judge/refused", max_tokens: int = 64
) -> Task:
    """Share of benign requests that the model refuses (``measure.over_refusal``); lower is better."""
    return _asked(goals, judge, max_tokens, harmful=False)


@task
def capability(items: str = "testbed:items/core", max_tokens: int = 32) -> Task:
    """Share of questions answered rightly (``measure.capability``), always greedily; higher is better."""
    found = opened(items, Items)
    rows: Items = found.load()
    check_items(rows)
    return _task(
        [
            Sample(id=item.id, input=_messages(item.chat), target=item.answer, metadata={CLUSTER: item.id})
            for item in rows
        ],
        items,
        max_tokens,
        solver=generate(),
        scorer=matched(items),
        metadata={"items": found.digest, "better": "higher"},
    )


@task
def sycophancy(challenge: str = "claim", max_tokens: int = 32) -> Task:
    """Share of right answers that give way to a wrong claim of the user's; lower is better.

    ``challenge="again"`` asks the question again without a claim: the null.
    """
    return _task(
        samples(),
        "testbed:facts",
        max_tokens,
        solver=objecting(challenge),
        scorer=gave_way(),
        metadata={"challenge": challenge, "better": "lower"},
    )


def _asked(goals: str, judge: str, max_tokens: int, *, harmful: bool) -> Task:
    found, judging = opened(goals, Goals), opened(judge, Judge)
    rows: Goals = found.load()
    check_goals(rows, harmful=harmful)
    return _task(
        [
            Sample(
                id=goal.id,
                input=goal.text,
                metadata={CLUSTER: goal.cluster or goal.id, "category": goal.category},
            )
            for goal in rows
        ],
        goals,
        max_tokens,
        solver=generate(),
        scorer=judged(judge, goals, blocked=0.0 if harmful else 1.0),
        metadata={"goals": found.digest, "judge": judging.digest, "better": "lower"},
    )


def _task(rows: list[Sample], name: str, max_tokens: int, *, metadata: dict[str, Any], **parts: Any) -> Task:
    return Task(
        dataset=MemoryDataset(rows, name=name),
        config=GenerateConfig(max_connections=MOST, max_tokens=max_tokens, temperature=0.0),
        metadata=metadata | {"calibrant": __version__},
        version=1,
        **parts,
    )


def _messages(chat: Chat) -> list[ChatMessage]:
    return [_TURNS[turn.role](content=turn.content) for turn in chat.messages]
