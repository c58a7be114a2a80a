"""Prompted: a model under a system prompt, as a model.

    careful = Prompted(lm, "Refuse what could do harm.")        # in a study: system:FILE.txt#MODEL

It is an ``LM``, so that a system prompt can be measured, attacked and gated like any other change.

1. The prompt stands before whatever system message a chat has of its own, a blank line between.
2. It only talks: log-probs and weights are those of the model below, which has no such prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import LM, Chat, Completion, Identity, InputError, Message, Sampling, digest


class Prompted:
    """``lm`` with a system prompt in every chat."""

    def __init__(self, lm: LM, prompt: str) -> None:
        """Raises InputError where the prompt is blank: that would be the model itself."""
        if not prompt.strip():
            raise InputError("the system prompt is blank", hint="write what the model is to be told")
        self._lm, self.prompt = lm, prompt.strip()

    @property
    def identity(self) -> Identity:
        """Model and prompt."""
        parts = {"model": self._lm.identity.digest, "prompt": digest(self.prompt)}
        return Identity(name=f"{self._lm.identity.name} under a system prompt", kind="prompted", parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion a chat, in order."""
        return self._lm.generate([self._under(chat) for chat in chats], sampling)

    def _under(self, chat: Chat) -> Chat:
        own, rest = self.prompt, chat.messages
        if rest and rest[0].role == "system":
            own, rest = f"{own}\n\n{rest[0].content}", rest[1:]
        return chat.model_copy(update={"messages": (Message(role="system", content=own), *rest)})
