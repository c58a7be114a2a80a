"""Traffic through layers: audits of the guard proxy, or attempts, as what was done with each request.

An audit holds a line a request, each with the digest of the line before; its header names the policy. The
chain is checked here: a line that was changed, taken out or put in is an ``EvidenceError``. The last line of
a run says that it is closed; without it, lines may be missing at the end. Audits of several runs may stand
one after the other in one file.

Texts are not read: an audit that keeps digests of them serves as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from calibrant.core.attempt import HIT, Attempt
from calibrant.core.config import Frozen
from calibrant.core.digest import digest
from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.verdict import Answer
from calibrant.data.attempts import attempts_from
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.rows import Attempts, Refused, Table

FIRST = "0" * 64
"""What stands for the digest of the line before the first one."""
FAILED = "failed"
"""A layer gave no answer."""
_LATEST = 253_402_300_800
"""The year 10000, in seconds since 1970: no date lies beyond it."""
_SAID = (*get_args(Answer), FAILED)
_HINT = "give a file of LEDGER/audit as the proxy wrote it, or the attempts.jsonl of an attack"


class AuditLine(Frozen):
    """What was done with one request."""

    id: str
    """Digest of the line of an audit, or an attempt's id."""
    line: int
    """Line of the file, or number of the attempt; 1 = first."""
    at: float | None = None
    """Seconds since 1970; None where the source does not say."""
    outcome: str
    """'answered', 'blocked_input', 'blocked_output', 'error', 'client_left', ...; 'blocked' of an attempt."""
    released: bool
    """Whether the user saw anything of a reply."""
    said: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Layer that was asked -> 'yes', 'no', 'unknown' or 'failed', one for each choice that it read."""
    judged: Answer | None = None
    """What the judge of an attempt said; None without one."""


class Audits(Table[AuditLine]):
    """Requests in the order in which they came."""

    layers: tuple[str, ...] = ()
    """Layers that headers name, or attempts went through."""
    policies: int = 1
    """Policies that headers name: more than one, and the system changed on the way."""
    closed: bool = False
    """Whether each run in the file ended with its closing line; a file of attempts has none."""


def read_audits(path: Path) -> Audits:
    """Read a file of an audit, or of attempts.

    Raises:
        InputError, EvidenceError: see ``raw_rows`` and ``audits_from``.
    """
    return audits_from(raw_rows(path), str(path))


def audits_from(rows: Iterable[RawRow], source: str) -> Audits:
    """Shape raw rows: lines of audits, the chain checked, or attempts.

    Raises:
        EvidenceError: the chain is broken. InputError: there is no request in it, or it is another file.
    """
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        raise InputError(f"{source} holds no lines", hint=_HINT)
    whole = chain([first], stream)
    if isinstance(first[1], Mapping) and "audit" not in first[1] and "before" not in first[1]:
        return audits_of(attempts_from(whole, source))
    return _chained(whole, source)


def audits_of(attempts: Attempts) -> Audits:
    """The same of attempts, in their order."""
    lines = tuple(_of_attempt(number, one) for number, one in enumerate(attempts.rows, 1))
    layers = tuple(dict.fromkeys(layer for line in lines for layer in line.said))
    return Audits(
        rows=lines, source=attempts.source, refused=attempts.refused, unused=attempts.unused, layers=layers
    )


def _of_attempt(number: int, one: Attempt) -> AuditLine:
    said: dict[str, tuple[str, ...]] = {}
    for layer in one.layers:
        answer = layer.verdict.answer if layer.status == "answered" else FAILED
        said[layer.layer] = (*said.get(layer.layer, ()), answer)
    outcome = {"blocked": "blocked", "error": "error"}.get(one.completion.stop, "answered")
    answers: dict[bool | None, Answer] = {True: "yes", False: "no", None: "unknown"}
    asked = bool(one.verdicts) and outcome == "answered"
    return AuditLine(
        id=one.id,
        line=number,
        outcome=outcome,
        released=outcome == "answered",
        said=said,
        judged=answers[HIT[one.outcome]] if asked else None,
    )


def _chained(rows: Iterable[RawRow], source: str) -> Audits:
    """Lines of audits; only the last may be torn, by a run that was killed."""
    lines: list[AuditLine] = []
    refused: list[Refused] = []
    layers: dict[str, None] = {}
    policies: set[str] = set()
    runs = closed = 0
    before: str | None = None
    torn: Refused | None = None
    for number, row in rows:
        if torn is not None:
            raise EvidenceError(f"{source}, line {torn.line}: it is no line of an audit: {torn.reason}")
        if isinstance(row, Refused):
            torn = row
            continue
        begins = row.get("before") == FIRST and "audit" in row
        if not begins and (before is None or row.get("before") != before):
            raise EvidenceError(
                f"{source}, line {number}: the line before it is not the one that was", hint=_HINT
            )
        before = digest(row)
        runs += begins
        if row.get("closed") is True and "outcome" not in row:
            closed += 1
            continue
        shaped = _header(number, row) if begins else _line(number, before, row)
        if isinstance(shaped, Refused):
            refused.append(shaped)
        elif isinstance(shaped, AuditLine):
            lines.append(shaped)
        else:
            layers |= dict.fromkeys(shaped)
            policies.add(digest(row["policy"]))
    if not lines:
        why = f"; line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise InputError(f"{source} holds no requests{why}", hint=_HINT)
    for line in lines:
        layers |= dict.fromkeys(line.said)
    torn_line = () if torn is None else (torn,)
    return Audits(
        rows=tuple(lines), source=source, refused=(*refused, *torn_line), layers=tuple(layers),
        policies=len(policies), closed=closed == runs,
    )  # fmt: skip


def _header(number: int, row: Mapping[str, Any]) -> tuple[str, ...] | Refused:
    """The layers that a header names."""
    policy = row.get("policy")
    named = policy.get("layers", ()) if isinstance(policy, Mapping) else None
    if not isinstance(named, list | tuple):
        return Refused(line=number, reason="no header: it has no policy")
    names = [one.get("name") if isinstance(one, Mapping) else None for one in named]
    if not all(isinstance(name, str) for name in names):
        return Refused(line=number, reason="no header: a layer has no name")
    return tuple(str(name) for name in names)


def _line(number: int, own: str, row: Mapping[str, Any]) -> AuditLine | Refused:
    outcome, released, at = row.get("outcome"), row.get("released"), row.get("at")
    if not isinstance(outcome, str):
        return Refused(line=number, reason="no request: 'outcome' is no text")
    if isinstance(released, bool) or not isinstance(released, int) or released < 0:
        return Refused(line=number, reason="no request: 'released' is no number of characters")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < _LATEST:
        return Refused(line=number, reason="no request: 'at' is no time")
    said: dict[str, tuple[str, ...]] = {}
    try:
        for side in row.get("verdicts", ()):
            for one in side["layers"]:
                answer = one["answer"] if one.get("status", "answered") == "answered" else FAILED
                if answer not in _SAID or not isinstance(one["layer"], str):
                    raise ValueError(str(answer)[:40])
                said[one["layer"]] = (*said.get(one["layer"], ()), answer)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        return Refused(line=number, reason=f"no request: 'verdicts' cannot be read: {error!r:.80}")
    return AuditLine(id=own, line=number, at=float(at), outcome=outcome, released=released > 0, said=said)
