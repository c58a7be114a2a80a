"""A guard of words and regular expressions (RE2: no ReDoS).

Differences from common guardrails and scanners:

1. Every message that reaches the model is read, system message and earlier turns included, and also the
   conversation as a whole: a trigger in an earlier turn, or split over two turns, passes guards that read the
   last message only (NVIDIA-NeMo/Guardrails#1413).
2. A text is read in several *views*: as written, and decoded by each codec of ``views``. Before matching
   it is brought to NFKC, dashes become hyphens, and invisible characters and case are dropped.
3. Nothing is truncated. RE2 takes time linear in the text.

Not covered: look-alike letters of other alphabets, two encodings on top of each other, and a phrase of which
only some words are encoded.

In a stack file: ``guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import re2
from pydantic import field_validator

from calibrant.core import Chat, ConfigError, Frozen, Guard, Identity, Side, Verdict, digest
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply, joined, known_views
from calibrant.text.codecs import CODECS
from calibrant.text.decodings import fold, readings

_WORD_END = r"[^\pL\pM\pN_]"  # RE2's \b knows ASCII only


class PatternGuard(Frozen):
    """What the pattern guard forbids, and how it reads."""

    words: tuple[str, ...] = ()
    """Forbidden words and phrases, found as whole words in any case; for a stem use ``patterns``."""
    patterns: tuple[str, ...] = ()
    """Forbidden RE2 patterns, found anywhere in any case; each run of white space is one space."""
    views: tuple[str, ...] = tuple(CODECS)
    """Codecs (``calibrant.text.codecs``) that each text is also decoded with before matching."""

    _views = field_validator("views")(known_views)

    @field_validator("words")
    @classmethod
    def _not_blank(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not all(fold(word) for word in words):
            raise ValueError("a forbidden word is blank")
        return words


def pattern_guard(config: PatternGuard = PatternGuard()) -> Guard:
    """A guard that answers 'no' where the text has a forbidden word or pattern, else 'yes'.

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
    for rule, source in [*sources, *((pattern, pattern) for pattern in config.patterns)]:
        try:
            compiled.append((rule, re2.compile(source, options)))
        except re2.error as error:
            why = error.args[0] if error.args else "not RE2"
            text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
            problems.append(f"patterns: '{rule}': {text}")
    if problems:
        raise ConfigError(problems, hint="RE2 has no look-around and no back-references")
    return _Patterns(config=config, compiled=tuple(compiled))


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
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        messages = chat.messages[-1:] if side == "output" else chat.messages
        texts = {f"message {place} ({m.role})": m.content for place, m in enumerate(messages, 1)}
        if len(messages) > 1:
            texts["the conversation as a whole"] = joined(chat)
        for where, text in texts.items():
            for view, reading in readings(text, self.config.views).items():
                folded = fold(reading)
                for rule, pattern in self.compiled:
                    if pattern.search(folded):
                        reason = f"'{rule}' stands in {where}, read {view}"
                        return Verdict(question=QUESTION, answer="no", reason=reason)
        return Verdict(question=QUESTION, answer="yes", reason="nothing forbidden was found")


def _whole_words(phrase: str) -> str:
    return f"(?:^|{_WORD_END}){re2.escape(fold(phrase))}(?:$|{_WORD_END})"
