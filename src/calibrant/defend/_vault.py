"""A reversible vault: personal data leaves a text before a model reads it, and comes back in the reply.

    vault = Vault()
    asked = vault.hide("write to ann@example.org")      # 'write to <EMAIL_1>'
    vault.restore("i wrote to <EMAIL_1>.")              # 'i wrote to ann@example.org.'

1. ``restore(hide(text)) == text`` for every Unicode text, also where the text itself holds '<EMAIL_1>': what
   looks like a placeholder is hidden, too, as '<LITERAL_1>'.
2. One value has one placeholder in a vault; matches that overlap are hidden as one span.
3. A reply that arrives in pieces goes through ``Restorer``: no placeholder is lost at a border.

A vault holds the values in memory only; neither its ``repr`` nor an error shows them. Use one a session.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from calibrant.core import Chat, Completion, InputError
from calibrant.defend._personal import SAID, Found
from calibrant.defend.pii_guard import PiiGuard, finder

_KINDS = (*(kind.upper() for kind in SAID), "LITERAL")
_OPEN = rf"<(?:{'|'.join(_KINDS)})_[1-9][0-9]{{0,8}}"
_PLACEHOLDER, _BEGUN = re.compile(f"{_OPEN}>"), re.compile(_OPEN)
_ROUNDS = 10
"""Searches of one text at most: values without a blank between them hide one another."""
_GONE = ">"
"""Stands for a character that is hidden, while the rest is searched again: no kind holds it."""
_LONGEST = 24
"""No placeholder has more characters: kind of seven, number of nine, and four signs."""


class Vault:
    """Hides personal data behind placeholders, and puts it back."""

    def __init__(self, config: PiiGuard = PiiGuard()) -> None:
        """Hide what ``config`` names; its ``views`` change nothing here.

        Raises:
            ConfigError: see ``pii_guard``.
        """
        self._finder = finder(config)
        self._placeholders: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Vault({len(self._values)} values)"

    def hide(self, text: str) -> str:
        """``text`` with a placeholder for every match.

        Raises:
            InputError: the text holds half of a surrogate pair, so it is no Unicode text.
        """
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InputError(
                "the text holds half a surrogate pair", hint="decode it again, with errors='replace'"
            )
        written, end = [], 0
        for one in _spans(self._found(text)):
            written += [text[end : one.start], self._placeholder(one.kind, text[one.start : one.end])]
            end = one.end
        return "".join([*written, text[end:]])

    def restore(self, text: str) -> str:
        """``text`` with the value of every placeholder of this vault; others stay as they are."""
        return _PLACEHOLDER.sub(lambda match: self._values.get(match[0], match[0]), text)

    def hide_chat(self, chat: Chat) -> Chat:
        """``chat`` with a placeholder for every match in every message; half a surrogate pair becomes '?'."""
        turns = [
            turn.model_copy(update={"content": self.hide(turn.content.encode("utf-8", "replace").decode())})
            for turn in chat.messages
        ]
        return Chat(messages=tuple(turns))

    def restore_reply(self, reply: Completion) -> Completion:
        """``reply`` with the values in text and reasoning; its ids are those of the placeholders."""
        reasoning = reply.reasoning and self.restore(reply.reasoning)
        return reply.model_copy(update={"text": self.restore(reply.text), "reasoning": reasoning})

    def _found(self, text: str) -> list[Found]:
        """Every match, and then those that come to light when these no longer stand beside them."""
        new = [Found("literal", *match.span()) for match in _PLACEHOLDER.finditer(text)]
        new += self._finder.find(text)
        found: list[Found] = []
        rest = list(text)
        for _ in range(_ROUNDS):
            if not new:
                break
            found += new
            for one in new:
                rest[one.start : one.end] = _GONE * (one.end - one.start)
            again = self._finder.find("".join(rest))
            new = [one for one in again if set(rest[one.start : one.end]) != {_GONE}]
        return sorted(found, key=lambda one: (one.start, -one.end, one.kind))

    def _placeholder(self, kind: str, value: str) -> str:
        if value not in self._placeholders:
            name = kind.upper()
            self._counts[name] += 1
            self._placeholders[value] = f"<{name}_{self._counts[name]}>"
            self._values[self._placeholders[value]] = value
        return self._placeholders[value]


class Restorer:
    """``Vault.restore`` for a text that arrives in pieces."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._held = ""

    def __repr__(self) -> str:
        return f"Restorer({len(self._held)} characters held)"

    def push(self, piece: str) -> str:
        """What can be shown after one more piece; the beginning of a placeholder is held back."""
        text = self._held + piece
        last = text.rfind("<", max(0, len(text) - _LONGEST))
        begun = last >= 0 and (
            any(f"<{kind}_".startswith(text[last:]) for kind in _KINDS) or _BEGUN.fullmatch(text, last)
        )
        cut = last if begun else len(text)
        self._held = text[cut:]
        return self._vault.restore(text[:cut])

    def finish(self) -> str:
        """What was held back; afterwards the next text may begin."""
        held, self._held = self._held, ""
        return self._vault.restore(held)


def _spans(found: list[Found]) -> Iterator[Found]:
    """Matches that overlap as one, of the kind of the longest; those that touch stay apart."""
    open_: Found | None = None
    widest = 0
    for one in found:
        if open_ is None or one.start >= open_.end:
            if open_ is not None:
                yield open_
            open_, widest = one, one.end - one.start
            continue
        kind = one.kind if one.end - one.start > widest else open_.kind
        widest = max(widest, one.end - one.start)
        open_ = Found(kind, open_.start, max(open_.end, one.end))
    if open_ is not None:
        yield open_
