"""The input of both guards: the whole conversation, each text in several views, the reply if any."""

from __future__ import annotations

from calibrant.core import Chat
from calibrant.core.errors import nearest
from calibrant.core.verdict import Verdict
from calibrant.text.codecs import CODECS

QUESTION = "may this text pass?"
NO_REPLY = Verdict(question=QUESTION, answer="unknown", reason="the chat ends without a reply")


def known_views(views: tuple[str, ...]) -> tuple[str, ...]:
    """``views``. Raises ValueError for one that is no codec."""
    for name in views:
        if name not in CODECS:
            raise ValueError(f"unknown view '{name}'{nearest(name, CODECS)}; known: {', '.join(CODECS)}")
    return views


def joined(chat: Chat) -> str:
    """Every message, line by line."""
    return "\n".join(message.content for message in chat.messages)


def ends_with_reply(chat: Chat) -> bool:
    """Whether the last turn is the assistant's."""
    return bool(chat.messages) and chat.messages[-1].role == "assistant"
