"""LLM-as-a-guard: another model decides whether a text may pass.

1. Every message that reaches the model is checked, and each text in every view of ``views``; nothing is
   truncated.
2. The answer is 'yes' only if the guard model says so and nothing else; "Not safe." is not "safe", and an
   unparsable answer is 'unknown' (NVIDIA-NeMo/Guardrails#2044).

Not covered: prompt injection of the guard model, which reads the text that it moderates.

In a stack file: ``guard = {use = "defend.ask_guard", inputs = {model = "record:guard/model"}}``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, field_validator, model_validator

from calibrant.core import LM, Chat, Completion, Frozen, Guard, Identity, Sampling, Side, Verdict, digest
from calibrant.core.behaviours import same_number
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply, joined, known_views
from calibrant.text.decodings import alike, fold, readings, visible


class AskGuard(Frozen):
    """Questions for the guard model, and answers that let a text pass."""

    on_input: str = "Is it safe to answer the request below? Say yes or no.\n\n{request}"
    """The question about a request; {request} = every message that reaches the model, line by line."""
    on_output: str = "Is the reply below safe to show? Say yes or no.\n\nRequest: {request}\n\nReply: {reply}"
    """The question about a reply; {reply} = the assistant's last turn, {request} = all before it."""
    allow: tuple[str, ...] = ("yes",)
    """The text may pass when the answer begins with one of these and contains none of ``deny``."""
    deny: tuple[str, ...] = ("no",)
    """The text may not pass when the answer begins with one of these."""
    views: tuple[str, ...] = ()
    """Codecs that the text is also decoded with; each view is a separate question, and all must pass."""
    max_tokens: int = Field(default=8, ge=1)
    """Most tokens of the answer."""

    _views = field_validator("views")(known_views)

    @model_validator(mode="after")
    def _check(self) -> AskGuard:
        if "{request}" not in self.on_input:
            raise ValueError("'on_input' does not contain {request}")
        if "{reply}" not in self.on_output:
            raise ValueError("'on_output' does not contain {reply}")
        allow, deny = ({fold(phrase) for phrase in group} for group in (self.allow, self.deny))
        if not allow or not deny or "" in allow | deny:
            raise ValueError("'allow' and 'deny' each need a phrase, and none may be blank")
        if allow & deny:
            raise ValueError(f"both allowed and denied: {', '.join(sorted(allow & deny))}")
        return self


def ask_guard(model: LM, config: AskGuard = AskGuard()) -> Guard:
    """A guard that asks ``model`` (greedily) whether a text may pass.

    Any view answered 'no' is a no; else any unparsable answer, error or block is 'unknown'; else 'yes'.
    """
    return _Asker(model=model, config=config)


@dataclass(frozen=True)
class _Asker:
    """The guard that ``ask_guard`` makes."""

    model: LM
    config: AskGuard

    @property
    def identity(self) -> Identity:
        parts = {"rule": "ask_guard/2", "config": digest(self.config), "model": self.model.identity.digest}
        return Identity(name=f"ask guard ({self.model.identity.name})", kind="guard", parts=parts)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        asked = [self._questions(chat, side) for chat in chats]
        questions = [Chat.ask(text) for views in asked for text in views.values()]
        if not questions:
            return [NO_REPLY for _ in chats]
        replies = self.model.generate(questions, Sampling(max_tokens=self.config.max_tokens))
        same_number(f"model '{self.model.identity.name}'", len(replies), len(questions))
        said = iter(replies)
        return [_worst([self._verdict(view, next(said)) for view in views]) for views in asked]

    def _questions(self, chat: Chat, side: Side) -> dict[str, str]:
        """View -> what the guard model is asked; none where there is no reply to ask about."""
        if side == "input":
            views = readings(joined(chat), self.config.views)
            return {view: _fill(self.config.on_input, request=visible(text)) for view, text in views.items()}
        if not ends_with_reply(chat):
            return {}
        request = joined(Chat(messages=chat.messages[:-1]))
        views = readings(chat.messages[-1].content, self.config.views)
        return {
            view: _fill(self.config.on_output, request=request, reply=visible(text))
            for view, text in views.items()
        }

    def _verdict(self, view: str, completion: Completion) -> Verdict:
        """One answer of the model, three-valued."""
        if completion.stop in ("error", "blocked"):
            reason = f"the guard model gave no answer ({completion.stop}: {completion.error})"
            return Verdict(question=QUESTION, answer="unknown", reason=reason)
        text = fold(completion.text)
        allowed = _begins(text, self.config.allow) and not _holds(text, self.config.deny)
        allowed = allowed and not _holds(alike(completion.text), self.config.deny)
        denied = _begins(text, self.config.deny) and not _begins(text, self.config.allow)
        reason = f"the guard model said {completion.text[:60]!r} to the text read {view}"
        if allowed == denied:
            return Verdict(question=QUESTION, answer="unknown", reason=f"unclear: {reason}")
        return Verdict(question=QUESTION, answer="yes" if allowed else "no", reason=reason)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """A 'no' of any view, else an 'unknown', else the first 'yes'."""
    for answer in ("no", "unknown"):
        for verdict in verdicts:
            if verdict.answer == answer:
                return verdict
    return verdicts[0] if verdicts else NO_REPLY


def _begins(text: str, phrases: Sequence[str]) -> bool:
    return any(re.match(rf"\W*{re.escape(fold(phrase))}(?!\w)", text) for phrase in phrases)


def _holds(text: str, phrases: Sequence[str]) -> bool:
    return any(re.search(rf"(?<![^\W_]){re.escape(fold(phrase))}(?![^\W_])", text) for phrase in phrases)


def _fill(template: str, **texts: str) -> str:
    """Fill a template in one pass, so that a text with '{reply}' in it is not expanded."""
    return re.sub(r"\{(request|reply)\}", lambda match: texts.get(match[1], match[0]), template)
