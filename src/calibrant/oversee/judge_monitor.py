"""A judge as a monitor: what it calls 'yes' is suspicious, what it can not read has no score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calibrant.core import Chat, Completion, Frozen, Goal, Identity, Judge, Monitor, digest
from calibrant.evals.judging import verdicts


class JudgeMonitor(Frozen):
    """What is read of a verdict."""

    read: Literal["answer", "score"] = "answer"
    """'answer': 1 for yes, 0 for no. 'score': the verdict's own score; a verdict without one is missing."""
    threshold: float = 0.5
    """The score from which on it is an alarm."""


def judge_monitor(judge: Judge, config: JudgeMonitor = JudgeMonitor()) -> Monitor:
    """A monitor that asks ``judge`` about the last reply of each chat; 'unknown' is a missing score."""
    return _Judging(judge, config)


@dataclass(frozen=True)
class _Judging:
    """The monitor that ``judge_monitor`` makes."""

    judge: Judge
    config: JudgeMonitor

    @property
    def identity(self) -> Identity:
        parts = {"rule": "judge_monitor/1", "config": digest(self.config)}
        parts["judge"] = self.judge.identity.digest
        return Identity(name=f"monitor {self.judge.identity.name}", kind="monitor", parts=parts)

    @property
    def threshold(self) -> float:
        return self.config.threshold

    def score(self, chats: Sequence[Chat]) -> list[float | None]:
        told = [place for place, chat in enumerate(chats) if chat.messages[-1:] and _replied(chat)]
        before = [Chat(messages=chats[place].messages[:-1]) for place in told]
        goals = [Goal(id=digest(chat)[:16], text=chat.last_user) for chat in before]
        replies = [Completion(text=chats[place].messages[-1].content) for place in told]
        found: list[float | None] = [None] * len(chats)
        for place, verdict in zip(told, verdicts(self.judge, goals, before, replies), strict=True):
            if verdict.answer != "unknown":
                found[place] = (
                    verdict.score if self.config.read == "score" else float(verdict.answer == "yes")
                )
        return found


def _replied(chat: Chat) -> bool:
    return chat.messages[-1].role == "assistant"
