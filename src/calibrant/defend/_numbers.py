"""Payment cards, telephone numbers and US social security numbers: groups of digits with checks.

A text's digits fall into groups; a number is one group or several in a row. Every row of groups that may be a
number is tried, so a number is found beside others, and each try is bounded, so time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_GROUP = re.compile(r"[0-9]+")
_JOINED = re.compile(r"[ .()/-]{1,3}")
_LOOSE = re.compile(r"[ ()/]")
_LEAST, _MOST = 8, 19
"""Digits of the shortest and the longest number."""
_PARTS = 7
"""Groups of a telephone number without a +, at most."""
_ISSUERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("4", "4", (16, 19)),
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),
    ("37", "37", (15,)),
    ("300", "305", (14,)),
    ("36", "36", (14,)),
    ("38", "39", (14,)),
    ("3528", "3589", (16, 17, 18, 19)),
    ("50", "50", (16, 17, 18, 19)),
    ("56", "58", (16, 17, 18, 19)),
    ("60", "69", (16, 17, 18, 19)),
)
"""First and last prefix, and the lengths of their cards: Visa, Mastercard, American Express, Diners Club,
JCB, Maestro, Discover, UnionPay."""


class _Digits(NamedTuple):
    """The groups of digits of a text, and what stands around them."""

    text: str
    groups: list[tuple[int, int]]
    gaps: list[str]
    """What stands before each group, back to the last one; and behind the last."""
    joined: list[bool]
    """Whether a number may run over the gap."""
    tight: list[bool]
    """Whether the gap has no blank, as in '12-555' and '3.141': no telephone number ends there."""


def numbers(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind ('card', 'phone' or 'ssn'), start and end of each number in a normalised text."""
    groups = [match.span() for match in _GROUP.finditer(text)]
    ends = [0, *(end for _, end in groups)]
    starts = [*(start for start, _ in groups), len(text)]
    gaps = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    inner = [0 < place < len(groups) for place in range(len(gaps))]
    joined = [here and _JOINED.fullmatch(gap) is not None for here, gap in zip(inner, gaps, strict=True)]
    tight = [here and not _LOOSE.search(gap) for here, gap in zip(joined, gaps, strict=True)]
    digits = _Digits(text, groups, gaps, joined, tight)
    ended, code = -1, False
    for first, (start, _) in enumerate(groups):
        code = _letter(gaps[first][-1:]) or (joined[first] and code) or _fours(digits, first)
        inside = joined[first] and code and ended != first - 1  # in a code such as an IBAN no number begins
        for kind, last in _from(digits, first, inside=inside):
            ended = max(ended, last)
            opened = text[start - 1 : start]
            begins = opened == "+" or (opened == "(" and ")" in text[start : groups[last][0]])
            yield kind, start - (kind == "phone" and begins), groups[last][1]


def _fours(digits: _Digits, first: int) -> bool:
    """Whether two groups of four digits go before in the same row, as in a card number."""
    before = digits.groups[max(0, first - 2) : first]
    return (
        digits.joined[first] and digits.joined[first - 1] and [end - start for start, end in before] == [4, 4]
    )


def _from(digits: _Digits, first: int, *, inside: bool) -> Iterator[tuple[str, int]]:
    """The numbers that begin with a group: of each kind at most one; which, and the group that ends it."""
    text, groups, gaps, joined, tight = digits
    before = gaps[first]
    worded = inside or tight[first] or _letter(before[-1:])
    plus = before[-1:] == "+" and not _letter(before[-2:-1]) and (not first or before != "+")
    found: dict[str, int] = {}
    parts: list[str] = []
    count = 0
    for last in range(first, len(groups)):
        count += groups[last][1] - groups[last][0]
        if (last > first and not joined[last]) or count > _MOST:
            break
        parts.append(text[groups[last][0] : groups[last][1]])
        if count < _LEAST:
            continue
        after = gaps[last + 1]
        decimal = (joined[first] and before == ".") or (joined[last + 1] and after == ".")
        if not decimal and "card" not in found and _card(parts, count):
            found["card"] = last
        if worded or _letter(after[:1]) or tight[last + 1]:
            continue
        if len(parts) > _PARTS and not plus:
            continue
        between = gaps[first + 1 : last + 1]
        if _ssn(parts, between):
            found["ssn"] = last
        if _phone(parts, between, count, plus=plus):
            found["phone"] = last
    yield from found.items()


def _letter(char: str) -> bool:
    return char == "_" or (char.isascii() and char.isalpha())


def _card(parts: Sequence[str], count: int) -> bool:
    """Equal groups, the last perhaps shorter, or 4-6-5 and 4-6-4; issuer, length and Luhn's formula."""
    if count < 14:
        return False
    sizes = [len(part) for part in parts]
    if not (len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]) and sizes not in ([4, 6, 5], [4, 6, 4]):
        return False
    digits = "".join(parts)
    return luhn(digits) and any(
        low <= digits[: len(low)] <= high and count in lengths for low, high, lengths in _ISSUERS
    )


def luhn(digits: str) -> bool:
    """Luhn's formula (US patent 2,950,048; ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def _ssn(parts: Sequence[str], gaps: Sequence[str]) -> bool:
    """Three, two and four digits, none of a number that is never issued (SSA, POMS RM 10201.035)."""
    if [len(part) for part in parts] != [3, 2, 4] or gaps[0] != gaps[1] or "/" in gaps[0]:
        return False
    area, group, serial = parts
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def _phone(parts: Sequence[str], gaps: Sequence[str], count: int, *, plus: bool) -> bool:
    """International (E.164: + or 00, up to 15 digits), North American, or local with a leading 0."""
    sizes = [len(part) for part in parts]
    if plus:
        return parts[0][0] != "0" and 8 <= count <= 15 and (len(parts) != 2 or gaps != ["."])
    if parts[0].startswith("00"):
        return parts[0][2:3] not in ("", "0") and 10 <= count <= 17
    if sizes[-3:] == [3, 3, 4] and (sizes[:-3] == [] or parts[:-3] == ["1"]):
        return parts[-3][0] in "23456789"
    if parts[0][0] != "0" or parts[0][1:2] in ("", "0"):
        return False
    if len(parts) == 1:
        return count in (10, 11)
    dated = sizes[:3] == [2, 2, 4] and parts[2][:2] in ("19", "20")
    return not dated and 9 <= count <= 12 and len(parts) <= 5 and sizes[0] <= 6 and min(sizes) >= 2
