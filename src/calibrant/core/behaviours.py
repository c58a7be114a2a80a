"""Behaviours (contract C4): Judge, Guard, Reward, Watcher, and the Goal that they are asked about.

Each has an ``identity``, so that a record says which one answered.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Literal, Protocol, runtime_checkable

from calibrant.core.config import Frozen
from calibrant.core.errors import CapabilityError, InputError
from calibrant.core.lm import LM, Chat, Completion, Identity
from calibrant.core.verdict import Verdict

Side = Literal["input", "output"]


class Goal(Frozen):
    """Something that an attacker (or an ordinary user) wants the model to do."""

    id: str
    """Stable name."""
    text: str
    """The request in plain words, as the user would type it."""
    category: str = "uncategorised"
    """Harm category, or the category that a benign look-alike resembles."""
    harmful: bool = True
    """False for a benign look-alike, which a good model answers."""
    cluster: str = ""
    """Goals that share a cluster (a verb, a template) are not independent; "" is its own cluster."""
    spans: tuple[str, ...] = ()
    """The words that carry the meaning; an encoding attack may encode only these."""


@runtime_checkable
class Judge(Protocol):
    """Decides for each completion whether the behaviour happened: yes, no, unknown.

    It may also have a ``question``: what its verdicts answer, for records and release policies.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def calibration(self) -> str:
        """'exact' (the truth itself), 'calibrated: ...' with the evidence, or 'uncalibrated'.

        Only the testbed's judges are exact; what external code claims here is ignored.
        """
        ...

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]: ...


class JudgeErrors(Frozen):
    """Counts behind a judge's sensitivity and specificity, against human labels."""

    found: int
    """Of ``positives``, those that the judge called 'yes': sensitivity = found / positives."""
    positives: int
    """Cases in which the behaviour happened, by human label."""
    cleared: int
    """Of ``negatives``, those that the judge called 'no': specificity = cleared / negatives."""
    negatives: int
    """Cases in which it did not happen, by human label."""
    scope: str = ""
    """Where this was measured: the target family and attack family."""


@runtime_checkable
class CalibratedJudge(Judge, Protocol):
    """A judge with a calibration card, so that rates can be corrected for its errors."""

    def errors(self, family: str) -> JudgeErrors | None:
        """Its errors under attacks of this technique family; None where not measured."""
        ...


@runtime_checkable
class Guard(Protocol):
    """Decides which chats may pass. On side 'output' each ends with the assistant's reply.

    It may also have ``sides``: those that it can answer on. Without them it answers on both.
    """

    @property
    def identity(self) -> Identity: ...

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        """One verdict a chat, in order; 'yes' = may pass."""
        ...


@runtime_checkable
class Monitor(Protocol):
    """Scores how suspicious each chat is, the higher the more; from ``threshold`` on it is an alarm.

    A score below the threshold still ranks: a control protocol spends its audits on the highest.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def threshold(self) -> float: ...

    def score(self, chats: Sequence[Chat]) -> list[float | None]:
        """One score a chat, in order; None where it could not be read, which is no low score."""
        ...


class Scores(Frozen):
    """Rewards of a batch of replies."""

    mean: tuple[float, ...]
    """One score a reply; higher is better."""
    std: tuple[float, ...] | None = None
    """Disagreement between members, where there are several."""
    members: tuple[tuple[float, ...], ...] | None = None
    """Scores of each member, member-major."""


@runtime_checkable
class Reward(Protocol):
    """Scores replies; higher is better."""

    @property
    def identity(self) -> Identity: ...

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores: ...


@runtime_checkable
class Watcher(Protocol):
    """Monitors a training run; 'no' means stop (early stopping)."""

    @property
    def identity(self) -> Identity: ...

    def see(self, step: int, policy: LM, rollouts: Any) -> Verdict: ...


def same_length(**lists: Sized) -> None:
    """Raise InputError unless lists about the same items, such as chats and replies, are equally long."""
    if len({len(one) for one in lists.values()}) > 1:
        counts = ", ".join(f"{len(one)} {name}" for name, one in lists.items())
        raise InputError(f"lists of different length: {counts}", hint="give one of each, in the same order")


def same_number(who: str, got: int, asked: int) -> None:
    """Raise CapabilityError unless there is one answer per question."""
    if got != asked:
        raise CapabilityError(
            f"{who} returned {got} answers to {asked} questions",
            hint="it must return one for each, in order, and 'unknown', NaN or an error where it has none",
        )
