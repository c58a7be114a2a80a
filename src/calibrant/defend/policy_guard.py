"""A guard that holds a written policy against a chat: a model is asked which rule is violated, if any.

1. The policy is a file with a version (``data/guard_policy.py``). Its digest, like the model's and every
   setting's, is part of the guard's identity.
2. The chat stands in a fence made of a digest, with chat markers broken, so that no text can end its fence,
   speak as another turn or write a verdict outside it (HarmBench#91).
3. A text may pass only if the first line of the answer is 'allowed' and nothing else. "Not safe.", "safe
   unsafe" (NVIDIA-NeMo/Guardrails#2044), a reply that was cut off (any-guardrail PR 249), a rule that the
   policy does not have and an explanation before the verdict are 'unknown', which blocks.
4. Nothing is truncated: a long chat is asked about in overlapping parts, and any 'no' is a no.
5. With ``by_logprob`` the model does not speak: the log-probabilities of the two answers give a score.

The form is that of the policies of gpt-oss-safeguard and of Llama Guard (2312.06674), the score that of
ShieldGemma (2407.21772). Not covered: a guard model that does what the text in the fence says.

In a stack file: ``guard = {use = "defend.policy_guard", inputs = {model = "api:http://localhost:8000/v1#NAME",
policy = "starter_policy.toml"}}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field, model_validator

from calibrant.core import (
    LM,
    CalibrantError,
    CapabilityError,
    Chat,
    Frozen,
    Guard,
    Identity,
    InputError,
    Sampling,
    ScoringLM,
    Side,
    Verdict,
    digest,
)
from calibrant.core.behaviours import same_number
from calibrant.data.guard_policy import GuardPolicy
from calibrant.defend._policy_prompt import (
    ALLOWED,
    MATERIAL,
    ON_ALL,
    ON_REPLY,
    TASK,
    VIOLATION,
    Question,
    Read,
    answer_form,
    questions,
    read,
)
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply
from calibrant.evals.judging import tokens


class PolicyGuard(Frozen):
    """How the policy guard asks."""

    size: int = Field(default=6000, ge=200)
    """Most characters of a chat in one question; on 'output', of the reply and of what is before it each."""
    overlap: int = Field(default=400, ge=0)
    """Characters that a part shares with the one before; at most half of ``size``."""
    most: int = Field(default=64, ge=1)
    """Most questions about one chat; 'unknown', which blocks, where its length needs more."""
    max_tokens: int = Field(default=32, ge=1)
    """Most tokens of an answer; raise it for a model that reasons before it answers."""
    salt: str = ""
    """A text of your own that enters the fences' digest; records show it."""
    by_logprob: bool = False
    """Compare the log-probabilities of 'allowed' and 'violation' instead of reading an answer."""
    threshold: float = Field(default=0.5, gt=0.0, le=1.0)
    """Blocked from this probability of 'violation' on, of the two answers; with ``by_logprob``."""
    least: float = Field(default=0.01, ge=0.0, lt=1.0)
    """'unknown' where the two answers together are less probable than this; with ``by_logprob``."""

    @model_validator(mode="after")
    def _check(self) -> PolicyGuard:
        if self.overlap > self.size // 2:
            raise ValueError(f"'overlap' {self.overlap} is more than half of 'size' {self.size}")
        return self


def policy_guard(model: LM, policy: GuardPolicy, config: PolicyGuard = PolicyGuard()) -> Guard:
    """A guard that answers 'no' where ``model`` says, greedily, that a rule of ``policy`` is violated.

    Any part of a chat that is answered 'no' is a no; else any that is 'unknown' is unknown; else 'yes'.
    """
    return _Holder(model=model, policy=policy, config=config)


class _Answer(NamedTuple):
    """What the guard model made of one question."""

    read: Read
    score: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class _Holder:
    """The guard that ``policy_guard`` makes."""

    model: LM
    policy: GuardPolicy
    config: PolicyGuard

    @property
    def identity(self) -> Identity:
        parts = {
            "rule": "policy_guard/1",
            "prompt": digest([TASK, MATERIAL, ON_ALL, ON_REPLY, self._form]),
            "config": digest(self.config),
            "policy": self.policy.digest,
            "model": self.model.identity.digest,
        }
        name = f"policy guard ({self.policy.name} {self.policy.version}, {self.model.identity.name})"
        return Identity(name=name, kind="guard", parts=parts)

    @property
    def _form(self) -> str:
        return answer_form(self.policy, by_logprob=self.config.by_logprob)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        """One verdict a chat. Raises InputError: no such side. CapabilityError: see ``_scored``."""
        if side not in ("input", "output"):
            raise InputError(f"a guard has no side {side!r:.40}", hint="ask about 'input' or 'output'")
        asked = [self._questions(chat, side) for chat in chats]
        every = [question for one in asked if not isinstance(one, Verdict) for question in one]
        answers = iter(self._scored(every) if self.config.by_logprob else self._spoken(every))
        return [
            one if isinstance(one, Verdict) else _worst(one, [next(answers) for _ in one]) for one in asked
        ]

    def _questions(self, chat: Chat, side: Side) -> list[Question] | Verdict:
        """What the model is asked; a verdict where there is nothing that it could be asked."""
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        if not chat.messages:
            return Verdict(question=QUESTION, answer="unknown", reason="the chat has no turns")
        config = self.config
        found = questions(
            self.policy, chat, side,
            how=self._form, salt=config.salt, size=config.size, overlap=config.overlap, most=config.most,
        )  # fmt: skip
        if found is None:
            reason = f"too long: more than {config.most} parts of {config.size:,} characters"
            return Verdict(question=QUESTION, answer="unknown", reason=reason)
        return found

    def _spoken(self, asked: Sequence[Question]) -> list[_Answer]:
        """Answers that the model writes."""
        if not asked:
            return []
        most = self.config.max_tokens
        replies = self.model.generate([one.chat for one in asked], Sampling(max_tokens=most))
        same_number(f"model '{self.model.identity.name}'", len(replies), len(asked))
        return [_Answer(read(reply, self.policy.ids), tokens=tokens(reply, most)) for reply in replies]

    def _scored(self, asked: Sequence[Question]) -> list[_Answer]:
        """Answers by log-probability, a question at a time: none depends on what else is asked.

        Raises:
            CapabilityError: the model only talks.
        """
        if not isinstance(self.model, ScoringLM):
            raise CapabilityError(
                f"model '{self.model.identity.name}' gives no log-probabilities, which by_logprob needs",
                hint="give local weights, or leave by_logprob out",
            )
        return [self._weighed(self.model, one.chat) for one in asked]

    def _weighed(self, model: ScoringLM, chat: Chat) -> _Answer:
        """The probability of 'violation', of the two answers."""
        try:
            scored = model.logprobs([chat, chat], [ALLOWED, VIOLATION])
        except CalibrantError as error:
            return _Answer(Read("unknown", f"the guard model gave no log-probabilities: {error.message}"))
        same_number(f"model '{model.identity.name}'", len(scored), 2)
        totals = [one.total if one.logprobs else math.nan for one in scored]
        if not all(math.isfinite(total) and total < 1e-3 for total in totals):
            return _Answer(Read("unknown", f"{totals[0]} and {totals[1]} are no log-probabilities"))
        allowed, violation = totals
        both = math.exp(allowed) + math.exp(violation)
        score = 1 / (1 + math.exp(min(700.0, allowed - violation)))
        reason = f"probability of a violation {score:.3f}, blocked from {self.config.threshold:g} on"
        if both < self.config.least:
            why = f"the two answers have the probability {both:.2g} together; {reason}"
            return _Answer(Read("unknown", why), score)
        return _Answer(Read("no" if score >= self.config.threshold else "yes", reason), score)


def _worst(asked: Sequence[Question], answers: Sequence[_Answer]) -> Verdict:
    """A 'no' of any part, else an 'unknown', else 'yes'; the score is the highest of any part."""
    order = {"no": 0, "unknown": 1, "yes": 2}
    place = min(range(len(answers)), key=lambda at: (order[answers[at].read.answer], at))
    found, part = answers[place].read, asked[place].part
    reason = f"{part}: {found.reason}" if part else found.reason
    scores = [one.score for one in answers if one.score is not None]
    decided = found.answer == "no" or len(scores) == len(answers)
    return Verdict(
        question=QUESTION,
        answer=found.answer,
        reason=reason,
        score=max(scores, default=None) if decided else None,
        tokens=sum(one.tokens for one in answers),
    )
