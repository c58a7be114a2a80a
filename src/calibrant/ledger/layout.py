"""The layout of a ledger on disk, and the parser of its lines. Writer and verifier share only this.

``records.jsonl``        one in-toto Statement a line, in RFC 8785 bytes, and beside its fields ``previous``:
                         the SHA-256 of the line before
``objects/ab/<sha256>``  stored files by content, read-only
``trees/<digest>/``      stored folders by manifest digest, made from objects when first opened
``work/<job digest>/``   what a running job may find again after a kill
``records.cut``          the bytes of last lines that a kill cut short, for the curious
``cache/``               what jobs share to save work, made again when it is deleted
``tmp/``                 drafts; what a kill leaves there is ignored, and swept away after a day
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from calibrant.core.digest import canonical, digest, digest_bytes
from calibrant.core.errors import InputError
from calibrant.core.estimate import impossible
from calibrant.core.record import PREDICATE, STATEMENT, Artifact, Record, job_digest, result_digest

RECORDS = "records.jsonl"
START = "0" * 64
"""What the first line carries in the place of the digest of a line before it."""
_KIND = b'"predicateType":' + canonical(PREDICATE)
_HEX64 = re.compile(r"[0-9a-f]{64}")
_SAFE = 2**53
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEPT = "then run the same command again: what is finished is kept"


@contextmanager
def disk(doing: str, path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a plain sentence.

    Raises:
        InputError: disk full, no permission, not a folder, ...; the hint says how to go on.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(f"disk full while {doing} {path}", hint=f"free space, {_KEPT}") from error
        why = (error.strerror or type(error).__name__).lower()
        remedy = f"make {error.filename or path} usable, or choose another folder, {_KEPT}"
        raise InputError(f"{why} while {doing} {path}", hint=remedy) from error


def is_digest(text: str) -> bool:
    """True for 64 lower-case hex digits: only such a text may become part of a path."""
    return _HEX64.fullmatch(text) is not None


def object_path(root: Path, digest: str) -> Path:
    """Where the file with this digest lies, if it is there."""
    return root / "objects" / digest[:2] / digest


def tree_path(root: Path, digest: str) -> Path:
    """Where the folder with this manifest digest lies, once it was opened."""
    return root / "trees" / digest


def read_lines(root: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of the ledger, and the bytes of a last line that was cut short (else b"").

    A missing ledger is an empty one. Raises InputError when it is there and cannot be read.
    """
    path = root / RECORDS
    with disk("reading", path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return [], b""
    *lines, cut = data.split(b"\n")
    return lines, cut


class Line(NamedTuple):
    """One line as it was read."""

    record: Record | None
    """None when it cannot be made out."""
    digest: str
    """The record's digest: over the line without its link."""
    previous: str | None
    """The digest of the line before it, as this line carries it; None where it carries none."""
    problems: list[str]
    """Everything that is wrong with it by itself."""


def linked(statement: bytes, previous: str) -> tuple[bytes, bytes, bytes]:
    """The line of a canonical statement, in three parts: before the link, the link, and behind it.

    ``previous`` is the digest of the line before. The parts together are canonical: among the fields of a
    statement the link's name comes just before ``subject``, whose texts cannot hold the bytes looked for.
    """
    at = statement.rfind(_KIND + b',"subject":') + len(_KIND)
    return statement[:at] + b',"previous":"', previous.encode(), b'"' + statement[at:]


def link_faults(digests: Sequence[str], links: Sequence[str | None]) -> list[str]:
    """Where lines do not follow each other as they were written, one sentence each with its line.

    Lines at the head that carry no link were written before there were links; they are no fault here.
    """
    faults, begun = [], False
    for at, link in enumerate(links):
        if link is None and begun:
            faults.append(f"line {at + 1}: carries no link to the line before it, as lines above do")
        elif link is not None and link != (digests[at - 1] if at else START):
            told = f"line {at} was edited, or lines were removed, added or moved there" if at else (
                "lines before it were removed or moved"
            )  # fmt: skip
            faults.append(f"line {at + 1}: does not follow the line before it: {told}")
        begun = begun or link is not None
    return faults


def read_line(line: bytes) -> Line:
    """Read one line and list what is wrong with it by itself.

    Digests are recomputed from the numbers as they are written, not from the parsed record, so a field that
    a later version adds to ``Record`` or ``Estimate`` does not make an old line look altered.
    """
    try:
        statement = json.loads(line.decode(), parse_int=_integer)
        kind = statement["_type"], statement["predicateType"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Line(None, "", None, ["not an in-toto statement in JSON"])
    previous = statement.pop("previous", None)
    if kind != (STATEMENT, PREDICATE):
        told = f"unknown kind of statement {kind[0]!r} with predicate {kind[1]!r}"
        return Line(None, "", None, [told])
    try:
        record = Record.from_statement(statement)
        bare = canonical(statement)
        same = line == (bare if previous is None else b"".join(linked(bare, str(previous))))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Line(None, "", None, [f"not a record: {reason(error)}"])
    problems = [] if same else ["not in canonical form (RFC 8785): edited, or written by another program"]
    problems += [] if previous is None or is_digest(str(previous)) else ["its link is no digest"]
    return Line(record, digest_bytes(bare), previous, problems + _mismatches(record, statement))


def reason(error: Exception) -> str:
    """The first thing that is wrong, in one line, without the validator's own words around it."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"'{'.'.join(map(str, first['loc']))}': {first['msg'][:1].lower()}{first['msg'][1:200]}"
    return " ".join(str(error).split())[:200]


def _mismatches(record: Record, statement: dict[str, Any]) -> list[str]:
    """Stored digests that do not follow from what stands beside them."""
    problems = []
    envelope = {"_type": STATEMENT, "subject": _read_back(record.subject), "predicateType": PREDICATE}
    if statement != envelope | {"predicate": statement["predicate"]}:
        problems.append("the subject is not the one that the inputs name, or there is something else in it")
    if result_digest(statement["predicate"].get("metrics", {}), record.artifacts) != record.result:
        problems.append("the result digest does not match the metrics and artefacts")
    inputs = {name: item.digest for name, item in record.inputs.items()}
    key = job_digest(record.technique, record.version, record.config, inputs, record.seed)
    # An intent opens a study: it has no technique function, so its key is its author's choice.
    if record.technique != "intent" and key != record.job:
        problems.append("the job digest does not match technique, version, config, inputs and seed")
    names = [artifact.name for artifact in record.artifacts]
    problems += [
        f"two artefacts are named '{name}'" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    problems += [fault for name, found in record.metrics.items() for fault in impossible(name, found)]
    return problems + [fault for artifact in record.artifacts for fault in artifact_faults(artifact)]


def artifact_faults(artifact: Artifact) -> list[str]:
    """What makes an artefact's own description unusable: it must never lead outside the ledger."""
    files = {} if artifact.files is None else artifact.files
    faults = [f"artefact '{artifact.name}': '{d}' is no digest" for d in (artifact.digest, *files.values())
              if not is_digest(d)]  # fmt: skip
    faults += [f"artefact '{artifact.name}': file name '{name}' leads outside its folder" for name in files
               if any(part in ("", ".", "..") for part in name.split("/"))]  # fmt: skip
    if artifact.files is not None and digest(files) != artifact.digest:
        faults.append(f"artefact '{artifact.name}': its digest is not that of its list of files")
    return faults


def _read_back(value: Any) -> Any:
    """``value`` as it reads back from its canonical bytes."""
    return json.loads(canonical(value), parse_int=_integer)


def _integer(text: str) -> int | float:
    """Integers from 2^53 on are written as strings, so a bare one of that size was a float such as 1e17."""
    value = int(text)
    return value if abs(value) < _SAFE else float(text)
