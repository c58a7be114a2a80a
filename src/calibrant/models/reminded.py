"""Reminded: a model whose user turns stand between two reminders, as a model (self-reminder).

    careful = Reminded(lm, "Answer responsibly.\\n{request}\\nRemember: responsibly.")
    # in a study: reminder:self_reminder.txt#MODEL

Xie et al. 2023, "Defending ChatGPT against jailbreak attack via self-reminders", Nature Machine Intelligence
5, 1486-1496: the request is put between two sentences that remind the model of its duty.
``self_reminder.txt``, among the packaged studies, is such a text. It is an ``LM``, so that it can be
measured, attacked and gated.

1. The last user turn is put in the place of ``{request}``, in one pass: a request that holds '{request}' is
   not expanded. Other turns stay; a chat without a user turn stays as it is.
2. It only talks: log-probs and weights are those of the model below, which has no such text.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import LM, Chat, Completion, Identity, InputError, Message, Sampling, digest

_SLOT = "{request}"


class Reminded:
    """``lm`` with a text around the last user turn of every chat."""

    def __init__(self, lm: LM, text: str) -> None:
        """Raises InputError where the text does not hold '{request}' once, or nothing beside it."""
        if text.count(_SLOT) != 1 or not text.replace(_SLOT, "").strip():
            raise InputError(
                f"the reminder holds {_SLOT} {text.count(_SLOT)} times, or nothing else",
                hint=f"write what goes before the request, {_SLOT}, and what goes behind it",
            )
        self._lm, self.text = lm, text.strip()

    @property
    def identity(self) -> Identity:
        """Model and text."""
        parts = {"model": self._lm.identity.digest, "reminder": digest(self.text)}
        return Identity(name=f"{self._lm.identity.name} with a reminder", kind="reminded", parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion a chat, in order."""
        return self._lm.generate([self._with_reminder(chat) for chat in chats], sampling)

    def _with_reminder(self, chat: Chat) -> Chat:
        places = [place for place, message in enumerate(chat.messages) if message.role == "user"]
        if not places:
            return chat
        last = places[-1]
        before, _, behind = self.text.partition(_SLOT)
        turn = Message(role="user", content=f"{before}{chat.messages[last].content}{behind}")
        return chat.model_copy(update={"messages": (*chat.messages[:last], turn, *chat.messages[last + 1 :])})
