"""Finds personal data and secrets in a text: every match, with its place in the text as written.

Shapes are RE2 patterns or groups of digits, and each candidate is checked: an IBAN by ISO 7064 MOD 97-10 and
the length of its country (SWIFT IBAN registry), a payment card by its issuer's prefix and length and by
Luhn's formula (ISO/IEC 7812-1, annex B), an address by ``ipaddress``, an SSN by the numbers that are never
issued, a secret by a known prefix and its entropy. Every step is linear in the text.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from calibrant.defend._aligned import Aligned, apart, plain, views
from calibrant.defend._numbers import numbers
from calibrant.text.decodings import fold, unmarked
from calibrant.text.patterns import Later

Kind = Literal["email", "phone", "iban", "card", "ip", "ssn", "url", "secret"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAID = {
    "email": "an e-mail address",
    "phone": "a telephone number",
    "iban": "a bank account (IBAN)",
    "card": "a payment card",
    "ip": "an IP address",
    "ssn": "a US social security number",
    "url": "a URL with credentials",
    "secret": "an API key or other secret",
    "name": "a listed name",
    "pattern": "a listed pattern",
}
"""Kind -> how a reason names it, without what was found."""


_EMAIL = Later(
    r"[\pL\pN_](?:[\pL\pM\pN._%+'&=/-]*[\pL\pM\pN_+'-])?@(?:[\pL\pN](?:[\pL\pM\pN-]*[\pL\pM\pN])?\.)+"
    r"(?:xn--[a-z0-9-]+|\pL[\pL\pM]+)"
)
_URL = Later(
    r"\b[a-z][a-z0-9+.-]*://(?:[^\s/?#:@]*:[^\s/?#@]+@[^\s\"'<>(),;]+"
    r"|[^\s?#]+\?(?:[^\s#]*&)?(?:api_?key|access_?token|auth_?token|token|secret|passw(?:or)?d|pwd)=[^\s&#]{6,})"
)
_SECRET = Later(
    r"\b(?:sk-(?P<loose>[A-Za-z0-9_-]{20,})|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}|A[KS]IA[A-Z0-9]{16}\b|AIza[A-Za-z0-9_-]{35}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}"
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})",
    ignore_case=False,
)
_KEY = Later(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]*-----END [A-Z ]*PRIVATE KEY-----)?")
_ENTROPY = 2.5
"""Bits a character, by their own frequencies: random letters and digits have more, 'xxxxxxxx' has none."""
_IPV4 = Later(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_IPV6 = Later(r"[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,8}(?:\.\d{1,3}){0,3}")
_WORD = re.compile("[A-Za-z0-9]")
_IBAN = Later(r"\b[a-z]{2}[0-9]{2}")
_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC",
        32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
"""Country -> characters of an IBAN."""


class Found(NamedTuple):
    """A match."""

    kind: str
    """One of ``KINDS``, 'name' or 'pattern'."""
    start: int
    """Where it begins in the text as written."""
    end: int
    """Where it ends."""


@dataclass(frozen=True)
class Finder:
    """Finds ``kinds``, names and patterns."""

    kinds: tuple[str, ...]
    """Which of ``KINDS``."""
    names: tuple[str, ...]
    """As ``name_forms`` gives them."""
    patterns: tuple[Any, ...]
    """Compiled."""

    def find(self, text: str) -> list[Found]:
        """Every match, by place; two may overlap, and none lies within another of its kind."""
        found = {one for view in views(text) for one in self._found(view)}
        kept: list[Found] = []
        reach = dict.fromkeys(SAID, 0)
        for one in sorted(found, key=lambda one: (one.start, -one.end, one.kind)):
            if one.end > reach[one.kind]:
                kept.append(one)
                reach[one.kind] = one.end
        return kept

    def _found(self, view: Aligned) -> Iterator[Found]:
        for kind, seek in _SEEK.items():
            if kind in self.kinds:
                yield from (Found(kind, *view.span(*span)) for span in seek(view.text))
        if {"card", "phone", "ssn"} & set(self.kinds):
            rest = list(view.text)
            for start, end in _accounts(view.text):  # its digits are no numbers of their own
                rest[start:end] = "," * (end - start)
            found = numbers("".join(rest))
            yield from (Found(k, *view.span(*span)) for k, *span in found if k in self.kinds)
        for pattern in self.patterns:
            spans = (match.span() for match in pattern.finditer(view.text))
            yield from (Found("pattern", *view.span(*span)) for span in spans if span[0] < span[1])
        if self.names:
            folded = view.folded()
            for name in self.names:
                yield from (Found("name", *folded.span(*span)) for span in _named(folded.text, name))


def name_forms(names: Sequence[str]) -> tuple[str, ...]:
    """Each name as it is looked for: without case, and where that leaves ASCII also without marks."""
    forms = dict.fromkeys(" ".join(plain(name).casefold().split()) for name in names)
    bare = dict.fromkeys(form for name in names if (form := unmarked(fold(name))).isascii())
    return tuple(forms | bare)


def _named(text: str, name: str) -> Iterator[tuple[int, int]]:
    start = text.find(name)
    while start >= 0:
        if apart(text, start, start + len(name)):
            yield start, start + len(name)
        start = text.find(name, start + 1)


def _all(*patterns: Any) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (match.span() for pattern in patterns for match in pattern.finditer(text))


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    """Tokens with a known prefix that look drawn at random; behind 'sk-' there must be a digit, too."""
    for match in _SECRET.finditer(text):
        loose = match["loose"]
        worded = loose is not None and not any(char.isdigit() for char in loose)
        if not worded and _entropy(match[0]) >= _ENTROPY:
            yield match.span()
    yield from (match.span() for match in _KEY.finditer(text))


def _entropy(text: str) -> float:
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """IP addresses, those of the machine itself apart (127.0.0.1, ::1, 0.0.0.0)."""
    for match in _IPV4.finditer(text):
        start, end = match.span()
        longer = text[start - 1 : start] == "." or (
            text[end : end + 1] == "." and text[end + 1 : end + 2].isdigit()
        )
        if not longer and _is_address(match[0]):
            yield start, end
    for match in _IPV6.finditer(text):
        start, end = match.span()
        if text[end - 1] == ":" and text[end - 2] != ":":  # punctuation
            end -= 1
        inside = _WORD.match(text, start - 1) if start else None
        digits = any(char.isdigit() for char in text[start:end])
        if digits and not inside and not _WORD.match(text, end) and _is_address(text[start:end]):
            yield start, end


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _accounts(text: str) -> Iterator[tuple[int, int]]:
    """IBANs: as many letters and digits as the country has, a blank or hyphen between any two."""
    for match in _IBAN.finditer(text):
        length = _LENGTHS.get(match[0][:2].upper(), 0)
        read, end = "", match.start()
        while end < len(text) and len(read) < length:
            if text[end].isascii() and text[end].isalnum():
                read += text[end].upper()
            elif text[end] not in " -" or text[end - 1] in " -":
                break
            end += 1
        whole = len(read) == length > 0 and not _WORD.match(text, end)
        if whole and int("".join(str(int(char, 36)) for char in read[4:] + read[:4])) % 97 == 1:
            yield match.start(), end


_SEEK: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _all(_EMAIL),
    "iban": _accounts,
    "ip": _addresses,
    "url": _all(_URL),
    "secret": _secrets,
}
"""Kind -> what finds it in a view; numbers are found together."""
