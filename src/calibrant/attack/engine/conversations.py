"""Conversations with branches and backtracking: the building block of multi-turn attacks.

A conversation holds the target's real replies. On each turn every conversation has up to ``branches``
continuations, of which the ``width`` best go on. A turn that is refused in every branch is removed and
rephrased (backtracking); once ``backtracks`` are used up, or no other wording is left, the refusal stays and
the conversation goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from calibrant.attack.engine.attacker_prompts import (
    SubEpisode,
    Try,
    attempted,
    consult,
    conversation,
    grade,
    history,
    question,
)
from calibrant.attack.engine.protocol import AskTarget, Response, Tools
from calibrant.core import Chat, Completion, Goal, Sampling

REFUSALS = (
    *("i can't", "i cannot", "i can not", "i won't", "i will not", "i must decline", "i apologize", "sorry"),
    *("i'm sorry", "i am sorry", "i'm unable", "i am unable", "i'm not able", "i am not able"),
)
"""How refusals begin, in English; a config may name others. They only steer a conversation (which turn is
backtracked); verdicts come from judges.

Not the list of ``measure.string_judge``: that one was chosen on human labels, is searched in more than the
first words, and may grow. This one is part of the digest of every job of ``attack.crescendo`` and
``attack.multi_turn``; with the judge's list, recorded conversations would backtrack other turns."""


class Limits(NamedTuple):
    """Limits of a conversation."""

    turns: int
    branches: int
    width: int
    backtracks: int
    refusals: tuple[str, ...]
    stop: bool

    @property
    def queries(self) -> int:
        """Most queries to the target."""
        return self.branches * (1 + self.width * (self.turns - 1 + self.backtracks))


class Talk(NamedTuple):
    """A conversation so far."""

    chat: Chat = Chat(messages=())
    """Its turns, the target's replies included."""
    heard: Response | None = None
    """The last reply."""
    refused: bool = False
    """Whether that is a refusal, or none at all."""
    taken_back: tuple[Talk, ...] = ()
    """Refused wordings of the next turn."""

    @property
    def score(self) -> float:
        """Of the last reply; see ``grade``."""
        return grade(self.heard.completion, self.heard.verdict) if self.heard else 1.0

    @property
    def hit(self) -> bool:
        """Whether the last reply reached the goal."""
        return self.heard is not None and self.heard.outcome == "success"


class Writer(NamedTuple):
    """The source of the next turns."""

    write: Callable[[Sequence[Talk], int], SubEpisode[list[list[str]]]]
    """Conversations, and the number of their next turn from 0 -> candidate turns of each."""
    more: Callable[[Talk, int], bool]
    """Whether that turn has a wording that was not refused yet."""


def converse(goal: Goal, writer: Writer, limits: Limits, tools: Tools, variant: str = "") -> SubEpisode[bool]:
    """Part of an episode: run a conversation to its end. True where the goal was reached."""
    talks, backtracks, reached = [Talk()], limits.backtracks, False
    for turn in range(limits.turns):
        waiting, gone_on = talks, list[Talk]()
        while before := waiting:
            options = yield from writer.write(before, turn)
            children = yield from _say(goal, before, options, limits, variant)
            reached |= any(child.hit for siblings in children for child in siblings)
            if reached and limits.stop:
                return True
            waiting = []
            for talk, siblings in zip(before, children, strict=True):
                met = [child for child in siblings if not child.refused]
                back = talk._replace(taken_back=(*talk.taken_back, *siblings))
                if siblings and not met and backtracks and writer.more(back, turn):
                    waiting.append(back)
                else:
                    gone_on += met or [_with_refusal(back)]
            backtracks -= bool(waiting)
        tools.rng.shuffle(gone_on)
        gone_on.sort(key=lambda talk: (talk.refused, -talk.score))
        talks = gone_on[: limits.width]
    return reached


def _say(
    goal: Goal, talks: Sequence[Talk], options: Sequence[Sequence[str]], limits: Limits, variant: str
) -> SubEpisode[list[list[Talk]]]:
    """Send all turns at once; the resulting conversations, per branch."""
    asks = [
        AskTarget(goal, talk.chat.then("user", text), variant, talk.heard.id if talk.heard else None)
        for talk, texts in zip(talks, options, strict=True)
        for text in texts
    ]
    responses: list[Response] = yield asks
    children = iter(
        Talk(
            ask.chat.then("assistant", reply.completion.text),
            reply,
            reply.outcome != "success" and refuses(reply.completion, limits.refusals),
        )
        for ask, reply in zip(asks, responses, strict=True)
    )
    return [[next(children) for _ in texts] for texts in options]


def _with_refusal(talk: Talk) -> Talk:
    """The conversation when no wording works: with the last refusal, or without the turn."""
    spoken = [child for child in talk.taken_back if child.chat.messages[-1].content.strip()]
    return spoken[-1] if spoken else talk._replace(taken_back=())


def refuses(reply: Completion, phrases: Sequence[str]) -> bool:
    """Whether there is no reply, or one that begins with one of ``phrases``."""
    if reply.stop in ("blocked", "error"):
        return True
    text = _even(reply.text).lstrip("\"'*-.,! ")
    return not text or any(text.startswith(start) for phrase in phrases if (start := _even(phrase)))


def _even(text: str) -> str:
    """Straight quotes, no case, single spaces."""
    return " ".join(text.replace("\u2019", "'").casefold().split())


def planned(goal: Goal, plan: Sequence[Sequence[str]], branches: int) -> Writer:
    """The plan's wordings of each turn, without the refused ones."""
    spans = goal.spans or (goal.text,)
    slots = {"{request}": goal.text, "{act}": spans[0], "{thing}": spans[-1]}
    wordings = [list(dict.fromkeys(_filled(wording, slots) for wording in turn)) for turn in plan]

    def write(talks: Sequence[Talk], turn: int) -> SubEpisode[list[list[str]]]:
        yield from ()  # nobody has to be asked
        return [[text for text in wordings[turn] if text not in _tried(talk)][:branches] for talk in talks]

    return Writer(write, lambda talk, turn: not _tried(talk).issuperset(wordings[turn]))


def written_by_attacker(goal: Goal, how: str, limits: Limits, writing: Sampling) -> Writer:
    """Turns by the attacker model, which sees the conversation, its score, and the backtracked turns."""

    def write(talks: Sequence[Talk], turn: int) -> SubEpisode[list[list[str]]]:
        questions = [
            question(
                how,
                goal.text,
                f"TURN: {turn + 1} of {limits.turns}",
                conversation(talk.chat) + (f"\nSCORE: {round(talk.score)}" if talk.heard else ""),
                history([_as_try(child) for child in talk.taken_back]),
            )
            for talk in talks
            for _ in range(limits.branches)
        ]
        drafts = iter((yield from consult(questions, writing, turn)))
        options = []
        for talk in talks:
            texts = [one.prompt for one in islice(drafts, limits.branches) if one]
            options.append([text for text in dict.fromkeys(texts) if text not in _tried(talk)])
        return options

    return Writer(write, lambda talk, turn: True)


def _filled(wording: str, slots: dict[str, str]) -> str:
    """Filled in one pass, so that braces in a goal are not expanded."""
    return re.sub("|".join(map(re.escape, slots)), lambda found: slots[found.group()], wording)


def _tried(talk: Talk) -> set[str]:
    return {child.chat.last_user for child in talk.taken_back}


def _as_try(talk: Talk) -> Try:
    assert talk.heard is not None
    return attempted(talk.chat.last_user, talk.heard)
