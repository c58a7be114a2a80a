"""Asking a judge about a batch of replies: one verdict each, unknown where target or judge failed."""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core.behaviours import Goal, Judge
from calibrant.core.errors import CalibrantError, CapabilityError
from calibrant.core.lm import Chat, Completion
from calibrant.core.verdict import Verdict


def verdicts(
    judge: Judge, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
) -> list[Verdict]:
    """One verdict a completion, in order.

    A reply that never came is 'unknown', and so is every reply of a batch in which the judge failed. Where a
    chat ends with the beginning of the reply (prefill), the judge reads the beginning, too.

    Raises:
        CapabilityError: the judge returned the wrong number of answers.
    """
    heard = [i for i, c in enumerate(completions) if c.stop != "error"]
    read = [_whole(chats[i], completions[i]) for i in heard]
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
    return [
        found[i] if i in found else _unknown(f"the target did not answer: {c.error or 'no reason given'}")
        for i, c in enumerate(completions)
    ]


def same_number(who: str, got: int, asked: int) -> None:
    """Raise CapabilityError unless there is one answer a question."""
    if got != asked:
        raise CapabilityError(
            f"{who} returned {got} answers to {asked} questions",
            hint="it must return one for each, in order, and 'unknown' or an error where it has none",
        )


def tokens(completion: Completion, most: int) -> int:
    """Tokens generated, as far as they can be counted; ``most`` where a reply does not show them."""
    shown = completion.ids if completion.ids is not None else completion.logprobs
    if shown is not None:
        return len(shown)
    return most if completion.text else 0


def _whole(chat: Chat, completion: Completion) -> tuple[Chat, Completion]:
    """The chat up to the reply, and the reply with what was put into its mouth."""
    if not chat.messages or chat.messages[-1].role != "assistant" or completion.stop == "blocked":
        return chat, completion
    begun = chat.messages[-1].content
    joined = completion.model_copy(update={"text": begun + completion.text})
    return Chat(messages=chat.messages[:-1]), joined


def _unknown(reason: str) -> Verdict:
    return Verdict(question="did the behaviour happen?", answer="unknown", reason=reason)
