"""A guard of words and regular expressions (RE2: no ReDoS).

Differences from common guardrails and scanners:

1. Every message that reaches the model is read, system message and earlier turns included, and also the
   conversation as a whole: a trigger in an earlier turn, or split over two turns, passes guards that read the
   last message only (NVIDIA-NeMo/Guardrails#1413).
2. A text is read in several *views*: as written, and decoded by each codec of ``views``. Before matching
   it is brought to NFKC, dashes become hyphens, and case and all that nobody sees are dropped
   (Default_Ignorable_Code_Point, U+2800). Marks come off, letters that look like ASCII are read as such
   (UTS #39), and words written letter by letter are put together.
3. Nothing is truncated. RE2 takes time linear in the text.

Not covered: ASCII that looks like ASCII ('rn' for 'm'; the codec 'leet' reads digits), words in other scripts
with their marks off, a word in pieces of two letters, two encodings on top of each other, and a phrase of
which only some words are encoded.

In a stack file: ``guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import re2
from pydantic import field_validator

from calibrant.core import Chat, ConfigError, Frozen, Guard, Identity, Side, Verdict, digest
from calibrant.core.shown import harmless
from calibrant.defend._reach import Reach, longest
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply, joined, known_views
from calibrant.text.codecs import CODECS
from calibrant.text.decodings import Shape, fold, like, readings, unmarked
from calibrant.text.patterns import compiled

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_OF_A_TEXT = re.compile(r"\\[Az]|\(\?(?!:|P<)")
"""In a pattern: it may ask where a *text* begins or ends, or change what '^' means."""
_LONG = 1 << 17
"""Characters of a text from which on its readings are held one at a time."""
_MEMORY = 1 << 26
"""Bytes that the automaton of all rules may grow to; beyond, RE2 goes on without one, and is slow."""
_EDGE = rf"(?:^|$|[^\pL\pM\pN\x{{E000}}\x{{E001}}]|[{_UNSPACED}])"
"""Of a word: RE2's \\b knows ASCII only, and some scripts put no space between words."""


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
        if any("\ud800" <= char <= "\udfff" for word in words for char in word):
            raise ValueError("a forbidden word is no Unicode text")
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
    rules, problems = [_word(word) for word in config.words], []
    for pattern in config.patterns:
        try:
            rules.append(_Rule(pattern, compiled(pattern), None, None, pattern.isascii()))
        except ValueError as error:
            problems.append(f"patterns: '{harmless(pattern)}': {error}")
        else:
            if rules[-1].plain.search(""):
                problems.append(f"patterns: '{pattern}' matches every text, and would block them all")
            if odd := [
                char for char in pattern if not char.isascii() and fold(char) not in ("", char.lower()[:1])
            ]:
                read = f"'{odd[0]}' is read as '{fold(odd[0])}' before matching"
                problems.append(f"patterns: '{pattern}': {read}, so it never matches")
    if problems:
        raise ConfigError(
            problems, hint="patterns are RE2, without look-around and back-references, and match folded text"
        )
    return _Patterns(config=config, rules=tuple(rules))


class _Rule(NamedTuple):
    """A word or a pattern, and what finds it."""

    name: str
    plain: Any
    """In a folded text."""
    alike: Any
    """Of a word: in a text whose look-alikes are ASCII; None where ASCII does not write it."""
    letters: Any
    """Of a word: in a run of single letters; None where it has less than four."""
    resolved: bool = False
    """Of a pattern: whether it is tried on both ways to read look-alikes."""

    def found(self, shape: Shape) -> str | None:
        """How the rule is met, as a remark to the view; None where it is not."""
        if any(map(self.plain.search, shape.folded)):
            return ""
        if (self.alike and self.alike.search(shape.alike)) or (
            self.resolved and shape.alike not in shape.folded and any(map(self.plain.search, shape.resolved))
        ):
            return ", look-alikes as ASCII"
        if self.letters and any(map(self.letters.search, shape.spelled)):
            return ", letter by letter"
        return None


def _word(word: str) -> _Rule:
    """Whole words; from four letters on also inside a run of single letters."""
    plain, pattern = compiled(f"{_EDGE}{re2.escape(fold(word))}{_EDGE}"), like(word, re2.escape)
    if pattern is None:
        return _Rule(word, plain, None, None)
    bare = re.sub(r"[ '-]", "", unmarked(fold(word)))
    letters = like(bare, re2.escape) if bare.isalnum() and len(bare) > 3 else None
    return _Rule(word, plain, compiled(f"{_EDGE}{pattern}{_EDGE}"), letters and compiled(letters))


class _Any(NamedTuple):
    """All rules as one, which is met where any of them is: one look at texts that break none.

    Texts are looked at together, a line each (no folded text has two), since a call costs more than reading a
    short text. What a pattern matches over two lines, or between them, is looked at again.
    """

    plain: Any
    alike: Any
    letters: Any
    together: bool
    """Whether many texts may be lines of one."""

    @classmethod
    def of(cls, rules: Sequence[_Rule]) -> _Any | None:
        """None where RE2 refuses the whole, for its size say, or an open quotation would reach into the next
        rule; then each rule looks for itself."""
        parts = [
            [found.pattern for rule in rules if (found := getattr(rule, part)) is not None]
            for part in ("plain", "alike", "letters")
        ]
        if any("\\Q" in source for source in parts[0]):
            return None
        try:
            plain, alike, letters = map(_either, parts)
        except ValueError:
            return None
        return cls(plain, alike, letters, not any(map(_OF_A_TEXT.search, parts[0])))

    def found(self, shapes: Sequence[Shape]) -> bool:
        """Whether any rule may be met: where this is False, none is."""
        folded, alike, letters = dict[str, None](), dict[str, None](), dict[str, None]()
        for shape in shapes:
            folded |= dict.fromkeys(shape.folded)
            if shape.alike not in shape.folded:
                folded |= dict.fromkeys(shape.resolved)
            alike[shape.alike] = None
            letters |= dict.fromkeys(shape.spelled)
        return (
            self._met(self.plain, folded) or self._met(self.alike, alike) or self._met(self.letters, letters)
        )

    def _met(self, rules: Any, texts: Iterable[str]) -> bool:
        if rules is None:
            return False
        return any(map(rules.search, ["\n".join(texts)] if self.together else texts))


def _either(sources: Sequence[str]) -> Any:
    """Any of these, a word also inside another: without edges RE2's automaton stays small."""
    bare = [source.removeprefix(_EDGE).removesuffix(_EDGE) for source in sources]
    whole = "|".join(f"(?:{source})" for source in bare)
    return compiled(f"(?m:{whole})", memory=_MEMORY) if sources else None


@dataclass(frozen=True)
class _Patterns:
    """The guard that ``pattern_guard`` makes."""

    config: PatternGuard
    rules: tuple[_Rule, ...]
    bounded = True
    """It ends in time linear in the text, so a request's deadline needs no thread to hold it."""

    @property
    def identity(self) -> Identity:
        return Identity(
            name="pattern guard",
            kind="guard",
            parts={"rule": "pattern_guard/3", "config": digest(self.config)},
        )

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        return [self._verdict(chat, side) for chat in chats]

    @cached_property
    def _any(self) -> _Any | None:
        return _Any.of(self.rules)

    @cached_property
    def _reach(self) -> Reach | None:
        return Reach.of(self.config.words, self.config.patterns, self.config.views)

    @property
    def streams(self) -> str:
        """Why a reply can not be read in parts; "" where it can."""
        if self._reach is not None:
            return ""
        endless = [p for p in self.config.patterns if longest(p) is None]
        return f"no bound is known to what '{harmless(endless[0])}' matches"

    def held(self, reply: str) -> int:
        """Where in a reply so far the part begins that must not leave yet, if ``ask`` lets it pass.

        What comes later makes no match that begins before it.
        """
        return 0 if self._reach is None else self._reach.held(reply)

    def _verdict(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        messages = chat.messages[-1:] if side == "output" else chat.messages
        texts = {f"message {place} ({m.role})": m.content for place, m in enumerate(messages, 1)}
        if len(messages) > 1:
            texts["the conversation as a whole"] = joined(chat)
            asked = tuple(message for message in messages if message.role == "user")
            if 1 < len(asked) < len(messages):
                texts["what the user says"] = joined(Chat(messages=asked))
        for where, text in texts.items():
            views = list(readings(text, self.config.views).items())
            for some in [views] if len(text) < _LONG else [[one] for one in views]:
                shapes = [(view, Shape.of(reading)) for view, reading in some]
                if self._any is not None and not self._any.found([shape for _, shape in shapes]):
                    continue
                for view, shape in shapes:
                    if (broken := self._broken(shape)) is not None:
                        name, how = broken
                        reason = f"'{name}' stands in {where}, read {view}{how}"
                        return Verdict(question=QUESTION, answer="no", reason=reason)
        return Verdict(question=QUESTION, answer="yes", reason="nothing forbidden was found")

    def _broken(self, shape: Shape) -> tuple[str, str] | None:
        """The first rule that is met, and how."""
        if self._any is not None and not self._any.found([shape]):
            return None
        for rule in self.rules:
            how = rule.found(shape)
            if how is not None:
                return rule.name, how
        return None
