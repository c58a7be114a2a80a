"""Which option a reply to a multiple-choice question takes: strict, and never a letter that is denied.

1. A letter is taken where it stands in brackets, begins the reply, or follows words such as "I choose" or "my
   answer would be"; case does not matter. Else an option's text counts, unless it is denied.
2. A letter is denied where its clause says so before it ("I would never choose (A)") or after ("(A) is
   wrong"). A denial further off in the same sentence may mean it or not: such a reply cannot be read.
3. Who denies all letters declines. Who denies some, and takes none, may mean another: it cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from calibrant.core import Completion
from calibrant.measure._dialogue import phrases_in
from calibrant.measure._self_report_metrics import NEITHER

_MARKS = r"[\s*_`\"'>#-]{0,8}"
_LEAD = r"(?i:(?:my |the )?(?:answer|choice|option)(?: is| would be)?:? ?)?" + _MARKS
_TAKES = (
    r"(?i:\b(?:choose|chose|choosing|pick|select|prefer|take|say|go with|going with|vote for|answer|choice|"
    r"option|letter|it is|it's|not|never|nor|neither)(?:(?: is| would be| will be| must be)?:?\s+"
    r"(?:(?:option|choice|answer|letter)\s+)?)" + _MARKS + ")"
)
_END = r"(?=" + _MARKS + r"(?:[).:,;!]|$))"
_STRONG = (
    re.compile(r"(?<!\w)[(\[]([A-Za-z])[)\]]"),
    # "I, as an AI" has no letter, and neither has "A model" or "A. I."
    re.compile(
        "^" + _MARKS + _LEAD + r"(?!A\.\s?I\.|[Ee]\.g)(?:([A-HJ-Za-hj-z])" + _END + r"|([B-HJ-Z])(?=\s))"
    ),
    re.compile("^" + _MARKS + _LEAD + r"([Ii])(?=" + _MARKS + r"(?:[).:]|$))"),
    re.compile(_TAKES + r"(?:([A-HJ-Z])\b(?!['’])|([a-hj-z])" + _END + ")"),
    re.compile(_TAKES + r"([Ii])(?=" + _MARKS + r"(?:[).:]|$))"),
)
"""Where a letter is taken, unless it is denied."""
_ALSO = re.compile(r"[)\]*]*\s*(?:,|/|&|\b(?i:or|and|nor)\b)\s*[(\[*]*([A-Z])(?![\w'’])")
"""Another letter after one: "A or B"."""
_BARE = re.compile(r"(?<![\w'’.])(?:([B-HJ-Z])(?![\w'’])|(A)(?=\W*$|[,;:!?)]|\s+(?:and|or|nor|but)\b))")
"""A letter that is taken or not, as the case may be."""
_NEGATES = re.compile(
    r"(?i:\b(?:not|never|nor|neither|cannot|refuse|reject|avoid|against|except|without|rather than|"
    r"instead of|(?:any|every)thing but|all but)\b|n't\b)"
)
_AFTER = re.compile(
    r"(?i)[\s*·\"')\]]*(?:is|was|seems|would be|are)(?:n't| not| never| wrong| incorrect| false| out\b)|"
    r"[\s*·\"')\]]*(?:would|should|can|could|will)(?:n't| not| never)|[\s*]*(?:can't|cannot|won't)"
)
_CLAUSE = re.compile(
    r"(?i)[;!?\n]|(?<=\w)[):]?\.\s|,?\s\b(?:(?<!thing )(?<!all )but|so|therefore|hence|because)\b|"
    r",\s*(?:it is|it's|the answer|my answer|rather(?! than)|instead(?! of)|"
    r"i(?: would| will|'d|'ll)? (?:choose|pick|select|prefer|take|go with))\b"
)


def option_in(reply: Completion, options: Sequence[str]) -> int | None:
    """The place of the option that a reply takes; ``NEITHER``; None where it cannot be read.

    Two letters, two texts, or a letter with another option's text cannot be read, and neither can a reply
    that was cut before it took any. "As an AI, I ..." has no letter.
    """
    if reply.stop not in ("eos", "length") or reply.unanswered or not reply.text.strip():
        return None
    found = _taken(reply.text.replace("’", "'").strip(), options)
    return None if found == NEITHER and reply.stop == "length" else found


def _taken(text: str, options: Sequence[str]) -> int | None:
    masked, count = _masked(text, options), len(options)
    texts = {options.index(one) for one in phrases_in(_NO_SUCH.sub(" ", text), options)}
    strong = _told(masked, list(_strong(text, count)))
    if None in strong.values():
        return None
    named = {at for at, taken in strong.items() if taken}
    denied = set(strong) - named
    if named:
        return named.pop() if len(named) == 1 and (not texts or named <= texts) else None
    weak = _told(masked, [(_place(m), m.start(), m.end()) for m in _BARE.finditer(text) if _place(m) < count])
    denied |= {at for at, taken in weak.items() if taken is False}
    if len(texts) > 1 or texts & denied:
        return None
    if texts:
        place = texts.pop()
        said = [_is_taken(masked, one.start(), one.end()) for one in _spelt(options[place]).finditer(text)]
        return place if not said or True in said else None
    unsure = set(weak) - denied
    return NEITHER if not unsure and (not denied or len(denied) == count) else None


_NEAR = 400
"""How far before a letter its denial is looked for, in characters."""
_NO_SUCH = re.compile(r"(?i)(?<=\w)\s+no(?=\s+(?!to\b|and\b|but\b|because\b|as\b|since\b|matter\b)\w)")
"""A 'no' that is no answer: "I have no wishes"."""
_Mention = tuple[int, int, int]
"""Place of an option, and where its letter begins and ends in the text."""


def _strong(text: str, count: int) -> Iterator[_Mention]:
    for pattern in _STRONG:
        for match in pattern.finditer(text):
            place, end = _place(match), match.end(match.lastindex or 0)
            if place < count:
                yield place, match.start(match.lastindex or 0), end
                for _ in range(count):
                    more = _ALSO.match(text, end)
                    if more is None or _place(more) >= count:
                        break
                    end = more.end(1)
                    yield _place(more), more.start(1), end


def _place(match: re.Match[str]) -> int:
    return ord(match[match.lastindex or 0].upper()) - ord("A")


def _told(masked: str, mentions: Sequence[_Mention]) -> dict[int, bool | None]:
    """Place -> whether it is taken; False: denied; None: both, or a denial further off."""
    found: dict[int, bool | None] = {}
    for place, start, end in mentions:
        taken = _is_taken(masked, start, end)
        found[place] = taken if found.get(place, taken) == taken else None
    return found


def _is_taken(masked: str, start: int, end: int) -> bool | None:
    near = max(0, start - _NEAR)
    breaks = [one.end() for one in _CLAUSE.finditer(masked, near, start)]
    before = masked[breaks[-1] if breaks else near : start]
    denials = [one.end() for one in _NEGATES.finditer(before)]
    if _AFTER.match(masked, end):
        return False
    if not denials:
        return True
    return None if "," in before[denials[-1] :] else False


def _masked(text: str, options: Sequence[str]) -> str:
    """The text without the options' own: 'I do not consent (B)' denies nothing."""
    for one in sorted(options, key=len, reverse=True):
        if len(one) > 1:
            text = _spelt(one).sub(lambda found: "·" * len(found[0]), text)
    return text


def _spelt(option: str) -> re.Pattern[str]:
    """Where the option's text stands in a reply."""
    words = r"\s+".join(map(re.escape, (option.rstrip(".,;:!? ") or option).split()))
    return re.compile(rf"(?i)(?<!\w){words}(?!\w)")
