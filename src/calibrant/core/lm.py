"""Language models by access: LM generates, ScoringLM gives log-probs, OpenLM has weights and activations.

A technique asks for the least access that it needs. ``Defended`` offers ``generate`` only, so no technique
bypasses the guards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.digest import digest
from calibrant.core.reasoning import part
from calibrant.core.verdict import LayerVerdict

if TYPE_CHECKING:
    from torch import Tensor, nn

Role = Literal["system", "user", "assistant"]


class Message(Frozen):
    """One turn."""

    role: Role
    """Author of the turn."""
    content: str
    """Text of the turn."""


class Chat(Frozen):
    """A conversation, oldest turn first; the model's reply comes next."""

    messages: tuple[Message, ...]
    """The turns so far."""

    @classmethod
    def ask(cls, text: str, *, system: str | None = None) -> Chat:
        """One user turn, after an optional system message."""
        first = (Message(role="system", content=system),) if system is not None else ()
        return cls(messages=(*first, Message(role="user", content=text)))

    def then(self, role: Role, content: str) -> Chat:
        """This chat with one more turn."""
        return Chat(messages=(*self.messages, Message(role=role, content=content)))

    @property
    def last_user(self) -> str:
        """The text of the latest user turn, or ""."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


class Sampling(Frozen):
    """Sampling parameters of a completion."""

    max_tokens: int = Field(default=64, ge=1)
    """Most tokens to generate for one completion."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 is greedy; above 0 the logits are divided by it."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus: keep the smallest set of tokens whose probability reaches this share."""
    seed: int = 0
    """Each item is seeded by hash(seed, chat, occurrence), never by its place in a batch."""


def _absent(value: object) -> bool:
    return value is None


class Completion(Frozen):
    """The result for one chat (contract C5). ``generate`` never raises for one item."""

    text: str
    """The reply as text, without the stop token and without the reasoning before it."""
    reasoning: str | None = Field(default=None, exclude_if=_absent)
    """The reasoning before the reply, as text; None where there is none or it is hidden."""
    ids: tuple[int, ...] | None = None
    """Generated token ids, stop token and reasoning included; None where the model does not expose them."""
    logprobs: tuple[float, ...] | None = None
    """Natural-log probability of each of ``ids`` under the sampling distribution's temperature."""
    stop: Literal["eos", "length", "blocked", "error"] = "eos"
    """Why it ended."""
    error: str | None = None
    """What went wrong when ``stop`` is 'error', or which layer blocked."""
    layers: tuple[LayerVerdict, ...] = ()
    """Verdict of each guard layer, for a defended system."""
    tokens: int | None = Field(default=None, exclude_if=_absent)
    """Tokens generated, reasoning included, by the server's count; None where it gives none."""
    answered_by: str | None = Field(default=None, exclude_if=_absent)
    """Name of the model that answered, as the server says, where it is not the requested one."""

    @classmethod
    def read(cls, written: str, opened: bool | None = None, **more: Any) -> Completion:
        """A completion from a model's whole output: reasoning is split from the reply.

        ``opened``: whether the prompt ended inside a block of reasoning; see ``core.reasoning.part``.
        """
        found = part(written, opened)
        return cls(text=found.reply, reasoning=found.reasoning, **more)

    @property
    def unanswered(self) -> bool:
        """Whether there is reasoning and no reply."""
        return self.reasoning is not None and not self.text.strip()


class Piece(Frozen):
    """A part of a reply, as it is generated."""

    text: str = ""
    """What the reply goes on with."""
    reasoning: str = ""
    """What the reasoning before the reply goes on with."""
    tokens: int = 0
    """Tokens that were generated since the piece before."""
    completion: Completion | None = None
    """On the last piece: the whole; the pieces' texts together are its text."""


class Scored(Frozen):
    """Log-probs of a given reply, token by token."""

    ids: tuple[int, ...]
    """Token ids of the reply, end-of-turn token included."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each id given all before it."""

    @property
    def total(self) -> float:
        """Sum over the reply's tokens, in nats."""
        return float(sum(self.logprobs))


class Identity(Frozen):
    """What exactly was measured: a digest over everything that can change an answer."""

    name: str
    """A name for people; not part of the digest."""
    kind: str = "model"
    """'model', 'defended', 'judge', 'guard', 'reward', ..."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Digest or text of each part: weights, tokenizer, template, system_prompt, guards, endpoint."""

    @property
    def digest(self) -> str:
        """SHA-256 over kind and parts."""
        return digest({"kind": self.kind, "parts": self.parts})


@runtime_checkable
class LM(Protocol):
    """Generates replies (black box): an API, local weights, a defended system."""

    @property
    def identity(self) -> Identity: ...

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]: ...


@runtime_checkable
class LayeredLM(LM, Protocol):
    """A model behind layers of guards, which can be left out one by one."""

    @property
    def layer_names(self) -> tuple[str, ...]: ...

    def with_layers(self, names: Sequence[str]) -> LM:
        """The same model behind these layers alone, in the order of the stack: none, one, all."""

    def lets_pass(self, chats: Sequence[Chat], replies: Sequence[Completion]) -> list[bool]:
        """Whether each reply, had the model given it to that chat, would reach the user."""


@runtime_checkable
class StreamingLM(LM, Protocol):
    """Also gives a reply piece by piece, the same as ``generate`` gives for that chat alone."""

    def stream(self, chat: Chat, sampling: Sampling = Sampling()) -> Iterator[Piece]: ...


@runtime_checkable
class ScoringLM(LM, Protocol):
    """Also gives the log-probs of a given reply."""

    def logprobs(self, chats: Sequence[Chat], replies: Sequence[str]) -> list[Scored]: ...


@runtime_checkable
class OpenLM(ScoringLM, Protocol):
    """White box: local weights exactly as published, never folded or re-implemented."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def max_length(self) -> int | None: ...

    def prompt_ids(self, chat: Chat) -> list[int]: ...

    def reply_ids(self, text: str) -> list[int]: ...

    def encode(self, chats: Sequence[Chat], replies: Sequence[str] | None = None) -> Batch: ...

    def forward(self, batch: Batch) -> Tensor: ...

    def sites(self) -> tuple[str, ...]: ...

    def trace(self, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]: ...

    def edit(self, changes: Mapping[str, Any]) -> AbstractContextManager[None]: ...

    def unembed(self, hidden: Tensor) -> Tensor: ...

    def copy(self) -> OpenLM: ...

    def save(self, path: Path) -> None: ...


class Batch(Protocol):
    """Right-padded token ids for a forward pass.

    ``ids`` (B, T) int64; ``mask`` (B, T) bool, True on real tokens; ``reply`` (B, T) bool, True on the
    tokens of the reply that is scored, its end-of-turn token included.
    """

    @property
    def ids(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor: ...

    @property
    def reply(self) -> Tensor: ...
