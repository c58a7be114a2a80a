"""Advice that is shown beside a row to somebody who answers about it: what it says, and in which words.

    {"id": "q1", "advice": "yes", "text": "The reply names the tool."}

Also read: the attempts of a job, with the verdicts of its judges; a critic's critiques, where one that quotes
a flaw is a yes; preference pairs about the same comparisons, of which the preferred side is the advice. What
a judge could not say, and what two judges say differently, is no advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError, nearest
from calibrant.data.cells import as_text, as_written, found_in, given, shown
from calibrant.data.files import RawRow
from calibrant.data.rows import Pair, Refused
from calibrant.data.shapes import pair_of

_NONE = ("unknown", "unsure", "none")


class Advised(Frozen):
    """The advice on one row."""

    says: str
    """One of the answers; "" where it says none."""
    text: str = ""
    """Its words."""


def advice_from(
    rows: Iterable[RawRow], source: str, answers: tuple[str, ...], pairs: Iterable[Pair] = ()
) -> dict[str, Advised]:
    """Row -> the advice on it.

    Args:
        rows: lines of a file.
        source: its name.
        answers: what advice may say: ('yes', 'no'), or ('a', 'b', 'tie').
        pairs: the comparisons, side a chosen, where preference pairs are advice on them.

    Raises:
        InputError: a line that holds no advice, two on one row, or none at all.
    """
    known = {pair.id: pair for pair in pairs}
    found: dict[str, Advised] = {}
    for line, raw in rows:
        try:
            name, advised = _advised(line, raw, answers, known)
        except InputError as error:
            raise InputError(f"{source}:{line}: {error.message}", hint=error.hint) from None
        if name in found:
            raise InputError(f"{source}:{line}: a second advice on '{name}'", hint="take one of them out")
        found[name] = advised
    if not found:
        raise InputError(f"{source} holds no advice", hint="a line is {id, advice, text}")
    return found


def _advised(
    line: int, raw: Mapping[str, Any] | Refused, answers: tuple[str, ...], known: Mapping[str, Pair]
) -> tuple[str, Advised]:
    if isinstance(raw, Refused):
        raise InputError(raw.reason)
    name = given(raw, "id", "item")
    if name is None:
        raise InputError(f"no 'id'; found: {found_in(raw)}")
    name, text = as_written("id", name), given(raw, "text", "reason")
    words = "" if text is None else as_text("text", text)
    if "advice" in raw:
        return name, Advised(says=_said(raw["advice"], answers), text=words)
    if isinstance(raw.get("verdicts"), Mapping):
        return name, _of_judges(raw["verdicts"], answers)
    if "quotes" in raw and "reply" in raw:  # never 'named' or 'flaw', which hold the truth
        reply = raw["reply"] if isinstance(raw["reply"], str) else ""
        return name, Advised(
            says=_said("yes" if raw["quotes"] else "no", answers) if reply else "", text=reply
        )
    if known and "chosen" in raw:
        return name, Advised(says=_preferred(line, raw, known.get(name)), text=words)
    raise InputError(f"it holds no advice; found: {found_in(raw)}", hint="a line is {id, advice, text}")


def _said(value: Any, answers: tuple[str, ...]) -> str:
    if value in (None, ""):
        return ""
    word = ("yes" if value else "no") if isinstance(value, bool) else as_text("advice", value)
    word = word.strip().lower()
    if word in _NONE:
        return ""
    if word not in answers:
        raise InputError(
            f"the advice is {word[:40]!r}{nearest(word, answers)}", hint=f"one of: {', '.join(answers)}"
        )
    return word


def _of_judges(verdicts: Mapping[str, Any], answers: tuple[str, ...]) -> Advised:
    said: list[str] = []
    words: list[str] = []
    for judge, verdict in verdicts.items():
        if not isinstance(verdict, Mapping):
            raise InputError(f"the verdict of '{judge}' is {shown(verdict)}")
        said.append(_said(verdict.get("answer"), answers))
        words.append(": ".join(filter(None, (said[-1] or "unknown", str(verdict.get("reason") or "")))))
    alike = len(set(said)) == 1
    return Advised(says=said[0] if alike else "", text="\n".join(words))


def _preferred(line: int, raw: Mapping[str, Any], compared: Pair | None) -> str:
    """The side of the comparison that a pair prefers; "" where prompt or replies are others."""
    made = pair_of(line, raw)
    if isinstance(made, Refused):
        raise InputError(made.reason)
    if compared is None:
        return ""
    if made.prompt != compared.prompt:
        return ""
    sides = {compared.chosen: "a", compared.rejected: "b"}
    return sides.get(made.chosen, "") if {made.chosen, made.rejected} == set(sides) else ""
