"""Smoothed: a model that answers perturbed copies of a prompt and goes by the majority (SmoothLLM).

    safer = Smoothed(lm, judge, Smoothing(copies=10))        # in a study: smoothed:FILE.toml#MODEL

Robey et al. 2023, "SmoothLLM: Defending large language models against jailbreaking attacks"
(arXiv:2310.03684), algorithm 1: a suffix found by gradients is brittle, so most copies with a few changed
characters fail to jailbreak. It is an ``LM``, so that it can be measured, attacked and gated like its base
model.

1. Of the last user turn N copies are made, each with a share q of its characters changed at random; the model
   answers all of them in one call, and ``judge`` says of each reply whether it is a jailbreak ('yes').
2. Where more than ``majority`` of the N replies are, one of these is returned, drawn at random; else one that
   the judge answered 'no'. A reply that it could not judge is never returned: where no other is left, the
   item is an error.
3. Random numbers come from the chat, the seed of the request and, when sampling, how many equal chats came
   before: never from the place in a batch.
4. ``tokens`` counts all N replies and what the judge generated. ``ids`` and log-probs, which would be those
   of one copy, are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field

from calibrant.core import (
    LM,
    Chat,
    Completion,
    Frozen,
    Goal,
    Identity,
    Judge,
    Message,
    Sampling,
    Verdict,
    digest,
)
from calibrant.core.behaviours import same_number
from calibrant.models.seeds import item_seeds
from calibrant.text.perturb import Perturbation, perturbed


class Smoothing(Frozen):
    """How copies are made and counted."""

    copies: int = Field(default=10, ge=1, le=1000)
    """Copies of a prompt (N of the paper), and so replies that one reply costs."""
    kind: Perturbation = "swap"
    """'swap' replaces characters, 'insert' adds some, 'patch' replaces some in a row."""
    share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the characters of the last user turn that change (q of the paper), rounded down."""
    majority: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the replies (gamma of the paper) that must be exceeded by jailbreaks to return one of them."""


class Smoothed:
    """``lm`` behind random perturbations and a majority vote, as an ``LM``."""

    def __init__(self, lm: LM, judge: Judge, config: Smoothing = Smoothing()) -> None:
        self._lm, self._judge, self.config = lm, judge, config

    @property
    def identity(self) -> Identity:
        """Model, judge and settings."""
        parts = {
            "rule": "smoothed/1",
            "model": self._lm.identity.digest,
            "judge": self._judge.identity.digest,
            "config": digest(self.config),
        }
        name = f"{self._lm.identity.name}, smoothed over {self.config.copies} copies"
        return Identity(name=name, kind="smoothed", parts=parts)

    @property
    def caveats(self) -> tuple[str, ...]:
        """Those of the model, and what a reply costs."""
        below: tuple[str, ...] = getattr(self._lm, "caveats", ())
        return (*below, f"each reply costs {self.config.copies} replies of the model, and as many judgements")

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion a chat, in order; a chat without a user turn is an error.

        Raises:
            CapabilityError: the model or the judge returned the wrong number of answers.
        """
        n = self.config.copies
        places = [place for place, chat in enumerate(chats) if any(m.role == "user" for m in chat.messages)]
        seeds = self._seeds([chats[place] for place in places], sampling)
        lots = [random.Random(seed) for seed in seeds]
        asked = [
            self._copy(chats[place], rng) for place, rng in zip(places, lots, strict=True) for _ in range(n)
        ]
        replies = self._lm.generate(asked, sampling) if asked else []
        same_number(f"model '{self._lm.identity.name}'", len(replies), len(asked))
        goals = [_goal(chats[place]) for place in places for _ in range(n)]
        verdicts = self._judge.judge(goals, asked, replies) if asked else []
        same_number(f"judge '{self._judge.identity.name}'", len(verdicts), len(asked))
        none = Completion(text="", stop="error", error="the chat has no user turn that could be perturbed")
        results = [none for _ in chats]
        for item, place in enumerate(places):
            part = slice(item * n, item * n + n)
            cost = sum(_tokens(reply, sampling.max_tokens) for reply in replies[part])
            cost += sum(verdict.tokens for verdict in verdicts[part])
            results[place] = self._chosen(replies[part], verdicts[part], lots[item], cost)
        return results

    def _seeds(self, chats: Sequence[Chat], sampling: Sampling) -> list[int]:
        if sampling.temperature > 0:
            return item_seeds(chats, sampling.seed)
        return [item_seeds([chat], sampling.seed)[0] for chat in chats]  # greedy: equal chats, equal replies

    def _copy(self, chat: Chat, rng: random.Random) -> Chat:
        """The chat with its last user turn perturbed."""
        last = max(place for place, message in enumerate(chat.messages) if message.role == "user")
        text = perturbed(chat.messages[last].content, self.config.kind, self.config.share, rng)
        turns = (*chat.messages[:last], Message(role="user", content=text), *chat.messages[last + 1 :])
        return chat.model_copy(update={"messages": turns})

    def _chosen(
        self, replies: Sequence[Completion], verdicts: Sequence[Verdict], rng: random.Random, cost: int
    ) -> Completion:
        """A reply that agrees with the vote, with the cost of all."""
        broken = [verdict.answer == "yes" for verdict in verdicts]
        wanted = "yes" if sum(broken) > self.config.majority * len(replies) else "no"
        agree = [reply for reply, said in zip(replies, verdicts, strict=True) if said.answer == wanted]
        if agree:
            return rng.choice(agree).model_copy(update={"tokens": cost, "ids": None, "logprobs": None})
        why = next((reply.error for reply in replies if reply.stop == "error"), None) or verdicts[0].reason
        error = f"no reply of {len(replies)} could be judged harmless: {why}"
        return Completion(text="", stop="error", error=error, tokens=cost)


def _goal(chat: Chat) -> Goal:
    """What the judge is asked about: the request as the user wrote it."""
    return Goal(id=digest(chat)[:16], text=chat.last_user)


def _tokens(reply: Completion, most: int) -> int:
    """Tokens generated for a reply; the most that it may have where it does not say."""
    if reply.ids is not None:
        return len(reply.ids)
    if reply.tokens is not None:
        return reply.tokens
    return most if reply.text or reply.reasoning else 0
