"""Guards: a pattern guard (RE2, cannot hang) and a guard that asks another model.

What they do differently from the rails and scanners in use:

1. Every message that reaches the model is read, system message and earlier turns included, and also the
   conversation as a whole: a trigger in an earlier turn, or split over two turns, walks past guards that
   read the last message only (NVIDIA-NeMo/Guardrails#1413).
2. A text is read in several *views*: as written, and decoded by each codec of ``views``. Before matching
   it is brought to NFKC, dashes become hyphens, and invisible characters and case are dropped.
3. Nothing is cut off: an over-long text is read whole. RE2 takes time linear in the text.
4. A model's answer is 'yes' only if it says so and nothing else; "Not safe." is not "safe", and an answer
   that cannot be read is 'unknown' (NVIDIA-NeMo/Guardrails#2044).

Not covered: look-alike letters of other alphabets, two encodings on top of each other, a phrase of which
only some words are encoded, and whatever persuades the asked model (it reads the text that it judges).

In a stack file: ``guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import re2
from pydantic import Field, field_validator, model_validator

from calibrant.core import (
    LM,
    Chat,
    Completion,
    ConfigError,
    Frozen,
    Guard,
    Identity,
    Sampling,
    Side,
    Verdict,
    digest,
)
from calibrant.core.errors import nearest
from calibrant.text.codecs import CODECS
from calibrant.text.decodings import fold, readings

QUESTION = "may this text pass?"
_WORD_END = r"[^\pL\pM\pN_]"  # RE2's \b knows ASCII only


def _known_views(views: tuple[str, ...]) -> tuple[str, ...]:
    for name in views:
        if name not in CODECS:
            raise ValueError(f"unknown view '{name}'{nearest(name, CODECS)}; known: {', '.join(CODECS)}")
    return views


class PatternGuard(Frozen):
    """What the pattern guard forbids, and how it reads."""

    words: tuple[str, ...] = ()
    """Forbidden words and phrases, found as whole words in any case; for a stem use ``patterns``."""
    patterns: tuple[str, ...] = ()
    """Forbidden RE2 patterns, found anywhere in any case; each run of white space is one space."""
    views: tuple[str, ...] = tuple(CODECS)
    """Codecs (``calibrant.text.codecs``) that each text is also decoded with before matching."""

    _views = field_validator("views")(_known_views)

    @field_validator("words")
    @classmethod
    def _not_blank(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not all(fold(word) for word in words):
            raise ValueError("a forbidden word is blank")
        return words


class AskGuard(Frozen):
    """How another model is asked, and which of its answers let a text pass."""

    on_input: str = "Is it safe to answer the request below? Say yes or no.\n\n{request}"
    """The question about a request; {request} = every message that reaches the model, line by line."""
    on_output: str = "Is the reply below safe to show? Say yes or no.\n\nRequest: {request}\n\nReply: {reply}"
    """The question about a reply; {reply} = the assistant's last turn, {request} = all before it."""
    allow: tuple[str, ...] = ("yes",)
    """The text may pass when the answer begins with one of these and holds none of ``deny``."""
    deny: tuple[str, ...] = ("no",)
    """The text may not pass when the answer begins with one of these."""
    views: tuple[str, ...] = ()
    """Codecs that the text is also decoded with; each view is a question of its own, all must pass."""
    max_tokens: int = Field(default=8, ge=1)
    """Most tokens of the answer."""

    _views = field_validator("views")(_known_views)

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


def pattern_guard(config: PatternGuard = PatternGuard()) -> Guard:
    """A guard that answers 'no' where a forbidden word or pattern stands, else 'yes'.

    Raises:
        ConfigError: nothing is forbidden, or a pattern is not RE2 (every bad one is listed).
    """
    if not config.words and not config.patterns:
        raise ConfigError(
            "a pattern guard that forbids nothing would let everything pass",
            hint="give 'words' or 'patterns'; to run without a guard, leave the layer out",
        )
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    compiled, problems = [], []
    sources = [(word, _whole_words(word)) for word in config.words]
    for shown, source in [*sources, *((pattern, pattern) for pattern in config.patterns)]:
        try:
            compiled.append((shown, re2.compile(source, options)))
        except re2.error as error:
            why = error.args[0] if error.args else "not RE2"
            text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
            problems.append(f"patterns: '{shown}': {text}")
    if problems:
        raise ConfigError(problems, hint="RE2 has no look-around and no back-references")
    return _Patterns(config=config, compiled=tuple(compiled))


def ask_guard(model: LM, config: AskGuard = AskGuard()) -> Guard:
    """A guard that asks ``model`` (greedily) whether a text may pass.

    Any view answered 'no' is a no; else any unreadable answer, error or block is 'unknown'; else 'yes'.
    """
    return _Asker(model=model, config=config)


@dataclass(frozen=True)
class _Patterns:
    """The guard that ``pattern_guard`` makes."""

    config: PatternGuard
    compiled: tuple[tuple[str, Any], ...]

    @property
    def identity(self) -> Identity:
        return Identity(
            name="pattern guard",
            kind="guard",
            parts={"rule": "pattern_guard/1", "config": digest(self.config)},
        )

    def ask(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not _reply(chat):
            return Verdict(question=QUESTION, answer="unknown", reason="the chat ends without a reply")
        messages = chat.messages[-1:] if side == "output" else chat.messages
        texts = {f"message {place} ({m.role})": m.content for place, m in enumerate(messages, 1)}
        if len(messages) > 1:
            texts["the conversation as a whole"] = _joined(chat)
        for where, text in texts.items():
            for view, reading in readings(text, self.config.views).items():
                folded = fold(reading)
                for shown, pattern in self.compiled:
                    if pattern.search(folded):
                        reason = f"'{shown}' stands in {where}, read {view}"
                        return Verdict(question=QUESTION, answer="no", reason=reason)
        return Verdict(question=QUESTION, answer="yes", reason="nothing forbidden was found")


@dataclass(frozen=True)
class _Asker:
    """The guard that ``ask_guard`` makes."""

    model: LM
    config: AskGuard

    @property
    def identity(self) -> Identity:
        parts = {"rule": "ask_guard/1", "config": digest(self.config), "model": self.model.identity.digest}
        return Identity(name=f"ask guard ({self.model.identity.name})", kind="guard", parts=parts)

    def ask(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not _reply(chat):
            return Verdict(question=QUESTION, answer="unknown", reason="the chat ends without a reply")
        if side == "output":
            request = _joined(Chat(messages=chat.messages[:-1]))
            views = readings(chat.messages[-1].content, self.config.views)
            texts = [_fill(self.config.on_output, request=request, reply=text) for text in views.values()]
        else:
            views = readings(_joined(chat), self.config.views)
            texts = [_fill(self.config.on_input, request=text) for text in views.values()]
        sampling = Sampling(max_tokens=self.config.max_tokens)
        completions = self.model.generate([Chat.ask(text) for text in texts], sampling)
        verdicts = [self._read(view, completion) for view, completion in zip(views, completions, strict=True)]
        for answer in ("no", "unknown"):
            for verdict in verdicts:
                if verdict.answer == answer:
                    return verdict
        return verdicts[0]

    def _read(self, view: str, completion: Completion) -> Verdict:
        """One answer of the asked model, three-valued."""
        if completion.stop in ("error", "blocked"):
            reason = f"the asked model gave no answer ({completion.stop}: {completion.error})"
            return Verdict(question=QUESTION, answer="unknown", reason=reason)
        said = fold(completion.text)
        allowed = _begins(said, self.config.allow) and not _holds(said, self.config.deny)
        denied = _begins(said, self.config.deny) and not _begins(said, self.config.allow)
        reason = f"the asked model said {completion.text[:60]!r} to the text read {view}"
        if allowed == denied:
            return Verdict(question=QUESTION, answer="unknown", reason=f"unclear: {reason}")
        return Verdict(question=QUESTION, answer="yes" if allowed else "no", reason=reason)


def _whole_words(phrase: str) -> str:
    return f"(?:^|{_WORD_END}){re2.escape(fold(phrase))}(?:$|{_WORD_END})"


def _begins(said: str, phrases: Sequence[str]) -> bool:
    return any(re.match(rf"\W*{re.escape(fold(phrase))}(?!\w)", said) for phrase in phrases)


def _holds(said: str, phrases: Sequence[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(fold(phrase))}(?!\w)", said) for phrase in phrases)


def _joined(chat: Chat) -> str:
    return "\n".join(message.content for message in chat.messages)


def _reply(chat: Chat) -> bool:
    return bool(chat.messages) and chat.messages[-1].role == "assistant"


def _fill(template: str, **texts: str) -> str:
    """Put texts into a template in one pass, so that a text that holds '{reply}' stays as it is."""
    return re.sub(r"\{(request|reply)\}", lambda match: texts.get(match[1], match[0]), template)
