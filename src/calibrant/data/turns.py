"""Turns of a dialogue as files write them: text, a transcript as in HH-RLHF, a list of messages.

A reason reads "kind: detail", as in ``shapes.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from calibrant.core.errors import InputError, nearest
from calibrant.core.lm import Chat, Message
from calibrant.data.cells import Row, as_text, column, shown

_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_SPEAKER = {"Human": "user", "Assistant": "assistant"}


def parted(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Chat, str, str]:
    """Split two dialogues into the turns that they share and the one reply in which they differ."""
    better, worse = final("chosen", chosen), final("rejected", rejected)
    if chosen == rejected:
        raise InputError("equal replies: chosen and rejected are the same dialogue")
    alike = [one == other for one, other in zip(chosen, rejected, strict=False)]
    shared = alike.index(False) if False in alike else len(alike)
    if shared == 0:
        raise InputError("no common prompt: chosen and rejected differ from the first turn on")
    if not len(chosen) == len(rejected) == shared + 1:
        raise InputError(
            f"more than one turn differs: the dialogues part at turn {shared + 1}, "
            f"chosen has {len(chosen)} turns and rejected {len(rejected)}"
        )
    return asked("prompt", chosen[:shared]), better, worse


def dialogue(row: Row, name: str) -> tuple[Message, ...]:
    """Read a whole dialogue, prompt included: a transcript or a list of messages."""
    value = column(row, name, wanted="chosen and rejected, with prompt unless they share one")[1]
    if not isinstance(value, str):
        return messages_of(name, value)
    turns = _transcript(name, as_text(name, value))
    if not turns:
        raise InputError(
            f"no common prompt: there is no 'prompt'{nearest('prompt', row)}, "
            f"and '{name}' has no 'Human:' and 'Assistant:' turns"
        )
    return turns


def _transcript(name: str, text: str) -> tuple[Message, ...]:
    """Split HH-RLHF's text into turns, outer space removed; () if it does not start with a turn."""
    before, *parts = _TURN.split(text)
    if before:
        return ()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        _message(name, at, _SPEAKER[who], words.strip()) for at, (who, words) in enumerate(pairs, start=1)
    )


def messages_of(name: str, value: Any) -> tuple[Message, ...]:
    """Read a list of {role, content}; other keys are for ``columns.py`` to tell."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"wrong type: '{name}' must be text or a list of messages, got {shown(value)}")
    if not value:
        raise InputError(f"empty text: '{name}' has no messages")
    turns = []
    for at, item in enumerate(value, start=1):
        if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
            raise InputError(
                f"wrong type: message {at} of '{name}' must have role and content, got {shown(item)}"
            )
        turns.append(_message(name, at, item["role"], item["content"]))
    return tuple(turns)


def _message(name: str, at: int, role: Any, content: Any) -> Message:
    if role not in ("system", "user", "assistant"):
        raise InputError(
            f"unknown role: message {at} of '{name}' is by {shown(role)}, not system, user or assistant"
        )
    return Message(role=role, content=as_text(f"message {at} of {name}", content))


def prompt_in(row: Row, *names: str, wanted: str = "") -> Chat:
    """Read what is answered: text, a transcript, a list of messages or {messages: [...]}."""
    name, value = column(row, *names, wanted=wanted)
    if isinstance(value, Mapping):
        value = value.get("messages")
    if not isinstance(value, str):
        return asked(name, messages_of(name, value))
    # A transcript may end with a bare "Assistant:", which is where the reply begins.
    turns = _transcript(name, re.sub(r"\r?\n\r?\nAssistant:\s*\Z", "", as_text(name, value)))
    return asked(name, turns) if turns else Chat.ask(value)


def asked(name: str, turns: tuple[Message, ...]) -> Chat:
    """Turns that end with a user's as what is asked."""
    if not turns or turns[-1].role != "user":
        raise InputError(
            f"no user turn at the end: what '{name}' asks must end with a user turn before the reply"
        )
    return Chat(messages=turns)


def final(name: str, turns: tuple[Message, ...]) -> str:
    """The reply with which a dialogue ends."""
    if turns[-1].role != "assistant":
        raise InputError(f"no assistant turn at the end: '{name}' ends with a {turns[-1].role} turn")
    return turns[-1].content


def reply_in(row: Row, name: str, prompt: Chat) -> str:
    """Read a reply: text, or one assistant message, with or without the prompt's turns before it."""
    value = column(row, name)[1]
    if isinstance(value, str):
        return as_text(name, value)
    turns = messages_of(name, value)
    reply = final(name, turns)
    if len(turns) > 1 and turns[:-1] != prompt.messages:
        raise InputError(f"another prompt: the turns of '{name}' before its reply are not those of 'prompt'")
    return reply
