"""``Opened``: a resolved reference with its digest, before it is loaded; and placeholders for names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrant.core import (
    LM,
    CapabilityError,
    Chat,
    Completion,
    EvidenceError,
    Goal,
    Guard,
    Identity,
    Judge,
    OpenLM,
    Reward,
    Sampling,
    Scores,
    ScoringLM,
    Side,
    Verdict,
)
from calibrant.core.digest import digest_path
from calibrant.ledger.layout import disk
from calibrant.models.sentence import SentenceEncoder

_KINDS = {
    LM: ("model", "an LM (to talk)"),
    ScoringLM: ("model", "a ScoringLM (log-probs)"),
    OpenLM: ("model", "an OpenLM (weights, activations)"),
    Reward: ("reward", "a Reward"),
    SentenceEncoder: ("encoder", "a sentence encoder"),
    Identity: ("system", "a name"),
}
"""Wanted type -> the kind that a record names, and what is wanted in words."""


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


def identified(identity: Identity, load: Callable[[], Any], reference: str, wanted: Any) -> Opened:
    """A model or a reward, known by its identity; that alone, where an ``Identity`` is wanted.

    Loading it raises EvidenceError where it has changed since, CapabilityError where it is no ``wanted``.
    """

    def loaded() -> Any:
        model = load()
        _check_same(identity.digest, model.identity.digest, reference)
        if not isinstance(model, wanted):
            raise talks_only(reference, wanted)
        return model

    kind = _KINDS[wanted][0]
    call = (lambda: identity) if wanted is Identity else loaded
    return Opened(identity.digest, kind, call, name=identity.name, parts=identity.parts, identity=identity)


def talks_only(reference: str, wanted: Any) -> CapabilityError:
    """The error for a model that gives replies, and neither log-probs nor weights."""
    return CapabilityError(
        f"'{reference}' does not offer what {_KINDS[wanted][1]} needs",
        hint="it only talks; give local weights: a folder, hf:NAME@COMMIT or record:JOB/model",
    )


def from_bytes(path: Path, load: Callable[[], Any], reference: str) -> Opened:
    """A file or folder, known by its bytes; loading it raises EvidenceError where they have changed."""
    with disk("reading", path):
        named = digest_path(path)

    def loaded() -> Any:
        with disk("reading", path):
            value = load()
            _check_same(named, digest_path(path), reference)
        return value

    return Opened(named, "data", loaded, name=reference)


def _check_same(named: str, current: str, reference: str) -> None:
    """Files may have changed since a job named them: then the record would be of something else."""
    if current != named:
        raise EvidenceError(
            f"'{reference}' has changed since the job named it: {named[:12]} became {current[:12]}",
            hint="let nothing write there while a study runs, and run it again",
        )


@dataclass(frozen=True)
class _Named:
    """Stands for what need only be named; asked all the same, it loads it."""

    opened: Opened

    @property
    def identity(self) -> Identity | None:
        return self.opened.identity


class _NamedModel(_Named):
    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        replies: list[Completion] = self.opened.load().generate(chats, sampling)
        return replies


class _NamedEncoder(_Named):
    @property
    def most(self) -> int:
        most: int = self.opened.load().most
        return most

    def size(self, text: str) -> int:
        size: int = self.opened.load().size(text)
        return size

    def vectors(self, texts: Sequence[str]) -> Any:
        return self.opened.load().vectors(texts)


class _NamedReward(_Named):
    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        scores: Scores = self.opened.load().score(chats, replies)
        return scores


class _NamedJudge(_Named):
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


class _NamedGuard(_Named):
    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(self.opened.parts.get("sides", "input output").split())

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        verdicts: list[Verdict] = self.opened.load().ask(chats, side)
        return verdicts


STAND_INS: dict[Any, Callable[[Opened], Any]] = {
    LM: _NamedModel,
    OpenLM: _NamedModel,
    SentenceEncoder: _NamedEncoder,
    Guard: _NamedGuard,
    Judge: _NamedJudge,
    Reward: _NamedReward,
}
"""Wanted type -> what stands for it."""
