"""What a reference leads to, its digest known before it is loaded, and stand-ins for what is only named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrant.core import (
    LM,
    Chat,
    Completion,
    Goal,
    Identity,
    Judge,
    OpenLM,
    Reward,
    Sampling,
    Scores,
    Verdict,
)


@dataclass(frozen=True)
class Opened:
    """Something found: its digest is known, ``load`` makes the object."""

    digest: str
    kind: str
    load: Callable[[], Any]
    reference: Any = None
    name: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    identity: Identity | None = None


@dataclass(frozen=True)
class _Named:
    """Stands for a model of which only the identity is needed; asked all the same, it loads it."""

    opened: Opened

    @property
    def identity(self) -> Identity | None:
        return self.opened.identity

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        replies: list[Completion] = self.opened.load().generate(chats, sampling)
        return replies


@dataclass(frozen=True)
class _NamedReward:
    """The same for a reward."""

    opened: Opened

    @property
    def identity(self) -> Identity | None:
        return self.opened.identity

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        scores: Scores = self.opened.load().score(chats, replies)
        return scores


@dataclass(frozen=True)
class _NamedJudge:
    """The same for a judge."""

    opened: Opened

    @property
    def identity(self) -> Identity | None:
        return self.opened.identity

    @property
    def calibration(self) -> str:
        return self.opened.parts["calibration"]

    @property
    def question(self) -> str:
        return self.opened.parts.get("question", "")

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        verdicts: list[Verdict] = self.opened.load().judge(goals, chats, completions)
        return verdicts


STAND_INS: dict[Any, Callable[[Opened], Any]] = {
    LM: _Named,
    OpenLM: _Named,
    Judge: _NamedJudge,
    Reward: _NamedReward,
}
"""Wanted type -> what stands for it."""
