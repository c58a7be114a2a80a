"""A guard of personal data and secrets: e-mail addresses, telephone numbers, cards, accounts, keys, names.

1. It finds *every* match, not the first of a kind or of a pattern (microsoft/presidio#1925: of three e-mail
   addresses one is redacted; llm-guard: of two patterns of one scanner the second is not).
2. A text is read as written and normalised: invisible characters dropped, full-width and other digits as
   ASCII, look-alikes as ASCII. Each match keeps its place in the text as written, so that ``Vault`` can hide
   it.
3. What can be checked is: a number that fails Luhn's formula is no card, one with a wrong check sum no IBAN.
4. A reason names the kind and the message, never the value: logs of a guard would leak what it keeps.

Not covered: addresses in words ("bob at example dot com"), postal addresses, dates of birth, names that are
not listed, secrets without a known prefix, and encodings that are not in ``views``.

In a stack file: ``guard = {use = "defend.pii_guard", config = {kinds = ["email", "card"]}}``.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import field_validator

from calibrant.core import Chat, ConfigError, Frozen, Guard, Identity, InputError, Side, Verdict, digest
from calibrant.core.shown import harmless
from calibrant.defend._personal import KINDS, SAID, Finder, Kind, name_forms
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply, joined, known_views
from calibrant.text.decodings import fold, readings, tables
from calibrant.text.patterns import compiled


class PiiGuard(Frozen):
    """What counts as personal data or a secret."""

    kinds: tuple[Kind, ...] = KINDS
    """Kinds that are looked for: 'email', 'phone', 'iban', 'card', 'ip', 'ssn', 'url', 'secret'."""
    patterns: tuple[str, ...] = ()
    """RE2 patterns of your own (customer numbers, say), found anywhere in any case, every match."""
    names: tuple[str, ...] = ()
    """Names and other words, found as whole words in any case."""
    views: tuple[str, ...] = ("base64",)
    """Codecs (``calibrant.text.codecs``) that the guard also decodes each text with; ``Vault`` does not."""

    _views = field_validator("views")(known_views)

    @field_validator("names")
    @classmethod
    def _not_blank(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any("\ud800" <= char <= "\udfff" for name in names for char in name):
            raise ValueError("a name is no Unicode text")
        if not all(fold(name) for name in names):
            raise ValueError("a name is blank")
        return names


def pii_guard(config: PiiGuard = PiiGuard()) -> Guard:
    """A guard that answers 'no' where a text holds personal data or a secret of the config, else 'yes'.

    Raises:
        ConfigError: it would look for nothing, or a pattern is not RE2 (every bad one is listed).
    """
    return _Personal(config=config, finder=finder(config))


@lru_cache(maxsize=64)
def finder(config: PiiGuard) -> Finder:
    """What finds every match of the config; made once. Raises ConfigError: see ``pii_guard``."""
    if not (config.kinds or config.patterns or config.names):
        raise ConfigError(
            "it looks for no personal data, so everything would pass",
            hint="give 'kinds', 'patterns' or 'names'",
        )
    patterns, problems = [], []
    for place, source in enumerate(config.patterns, 1):
        try:
            patterns.append(compiled(source))
        except ValueError as error:
            problems.append(f"patterns: '{harmless(source)}': {error}")
        else:
            if patterns[-1].search(""):
                problems.append(f"patterns: number {place} matches every text, and would block them all")
    if problems:
        raise ConfigError(problems, hint="patterns are RE2, without look-around and back-references")
    return Finder(kinds=config.kinds, names=name_forms(config.names), patterns=tuple(patterns))


@dataclass(frozen=True)
class _Personal:
    """The guard that ``pii_guard`` makes."""

    config: PiiGuard
    finder: Finder

    @property
    def identity(self) -> Identity:
        parts = {"rule": "pii_guard/1", "config": digest(self.config), "unicode": str(tables()["digest"])}
        parts["unicode database"] = unicodedata.unidata_version
        return Identity(name="personal-data guard", kind="guard", parts=parts)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        if side not in ("input", "output"):
            raise InputError(f"a guard was asked about side {side!r}", hint="ask about 'input' or 'output'")
        return [self._verdict(chat, side) for chat in chats]

    def _verdict(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        messages = chat.messages[-1:] if side == "output" else chat.messages
        texts = {f"message {place} ({m.role})": m.content for place, m in enumerate(messages, 1)}
        if len(messages) > 1:  # a number may be split over two turns
            texts["the conversation as a whole"] = joined(chat)
            texts["what the user says"] = joined(
                Chat(messages=tuple(m for m in messages if m.role == "user"))
            )
        for where, text in texts.items():
            for view, reading in ({"as written": text} | _decoded(text, self.config.views)).items():
                if found := self.finder.find(reading):
                    counts = Counter(SAID[one.kind] for one in found)
                    said = ", ".join(f"{what} ({count})" for what, count in counts.items())
                    reason = f"{where}, read {view}, holds {said}"
                    return Verdict(question=QUESTION, answer="no", reason=reason)
        return Verdict(question=QUESTION, answer="yes", reason="no personal data and no secret was found")


def _decoded(text: str, views: Sequence[str]) -> dict[str, str]:
    """The readings of a text through the codecs."""
    return {view: reading for view, reading in readings(text, views).items() if view != "as written"}
