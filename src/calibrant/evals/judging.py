"""Judge a batch of replies: one verdict each, unknown where target or judge failed."""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core.behaviours import Goal, Judge, same_number
from calibrant.core.errors import CalibrantError
from calibrant.core.lm import Chat, Completion
from calibrant.core.reasoning import part
from calibrant.core.verdict import Verdict


def verdicts(
    judge: Judge, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
) -> list[Verdict]:
    """One verdict a completion, in order.

    A missing reply is 'unknown', also where the model was still reasoning when it was truncated, and so is
    every reply of a batch in which the judge failed. The judge reads the reply and not the reasoning before
    it. Where a chat ends with a prefill, it reads the prefill, too.

    Raises:
        CapabilityError: the judge returned the wrong number of answers.
    """
    wholes = [whole(chat, completion) for chat, completion in zip(chats, completions, strict=True)]
    heard = [i for i, (_, c) in enumerate(wholes) if c.stop == "blocked" or not _silent(c)]
    read = [wholes[i] for i in heard]
    given: list[Verdict] = []
    if heard:
        try:
            given = judge.judge([goals[i] for i in heard], [c for c, _ in read], [r for _, r in read])
        except CalibrantError as error:
            given = [_unknown(f"the judge failed: {error.message}")] * len(heard)
        same_number(f"judge '{judge.identity.name}'", len(given), len(heard))
    if len(heard) == len(completions):
        return list(given)
    found = dict(zip(heard, given, strict=True))
    return [found[i] if i in found else _unknown(_silent(c)) for i, (_, c) in enumerate(wholes)]


def tokens(completion: Completion, most: int) -> int:
    """Tokens generated, reasoning included, as far as they can be counted.

    By the ids, else by the server's own count, else by the log-probs; ``most`` where a reply has none of
    these, or only log-probs of the reply.
    """
    if completion.ids is not None:
        return len(completion.ids)
    if completion.tokens is not None:
        return completion.tokens
    if completion.logprobs is not None and completion.reasoning is None:
        return len(completion.logprobs)
    return most if completion.text or completion.reasoning is not None else 0


def _silent(completion: Completion) -> str:
    """Why there is no reply to judge, or ""."""
    if completion.stop == "error":
        return f"the target did not answer: {completion.error or 'no reason given'}"
    return "the target was still reasoning: no reply follows" if completion.unanswered else ""


def whole(chat: Chat, completion: Completion) -> tuple[Chat, Completion]:
    """The chat up to the reply, and the reply with its prefill, without reasoning.

    Where the model reasoned, the prefill was before or in the reasoning, not in the reply.
    """
    if completion.stop in ("blocked", "error"):
        return chat, completion
    begun = ""
    if chat.messages and chat.messages[-1].role == "assistant":
        begun, chat = chat.messages[-1].content, Chat(messages=chat.messages[:-1])
    if completion.reasoning is not None:
        return chat, completion
    found = part(begun + completion.text, opened=False)  # an LM of somebody else's may not have parted it
    if not begun and found.reasoning is None:
        return chat, completion
    return chat, completion.model_copy(update={"text": found.reply, "reasoning": found.reasoning})


def _unknown(reason: str) -> Verdict:
    return Verdict(question="did the behaviour happen?", answer="unknown", reason=reason)
